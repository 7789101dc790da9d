"""The offline job: source shards in, shards with negatives out.

    1. The source is planned: everything that is wrong with a manifest is found here, before any
       work.
    2. Shards whose marker agrees (size, configuration, source) are kept; the index is removed if
       any other remains.
    3. Each remaining shard is built by one worker process: samples are read, images decoded once,
       negatives made, tar and marker written. Workers share nothing but the output folder.
    4. The markers are summed up into the index, written last, unless too many samples were
       rejected.

Nothing depends on which worker does what, or when: the same source and settings give the same
bytes. A killed job, started again, redoes its unfinished shards only.

Ctrl-C and SIGTERM set a flag that all workers look at between two samples; a second one kills the
workers. They raise nothing while workers build shards: an exception that a signal handler raises
may come inside a lock, which then is never released, or inside a callback, which swallows it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import multiprocessing
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import (
    FIRST_COMPLETED,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
    wait,
)
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from itertools import islice
from multiprocessing.process import BaseProcess
from types import FrameType

from fsspec.implementations.local import LocalFileSystem

from hnpretrain.shards import storage
from hnpretrain.shards.images import BadImage, check_image
from hnpretrain.shards.index import INDEX_NAME, Index, write_index
from hnpretrain.shards.marker import FORMAT, Marker, Reject, marker_name, read_marker
from hnpretrain.shards.schema import Sample
from shard_tools.negatives import CaptionedSample, NegativeMaker, NegativeSettings
from shard_tools.sources import (
    BAD_CAPTION,
    BROKEN_TAR,
    SourceSample,
    SourceSettings,
    SourceShard,
    has_appeared,
    plan_source,
)
from shard_tools.sources.tars import TarShard
from shard_tools.writer import ShardWriter

# Raised by one whenever this code gives other bytes for the same input and settings.
_VERSION = 2
# Samples that go through spaCy together (a worker stops between two batches), and their bytes.
_BATCH_SAMPLES = 64
_BATCH_BYTES = 64 * 2**20
# Pillow refuses larger images whatever it is told.
_PILLOW_MAX_PIXELS = 178_956_970
_REPORT_SECONDS = 0.25
# How long the other workers may take to end by themselves after one has died.
_GRACE_SECONDS = 5.0
# Shards handed to the pool at a time, for each worker: enough that none waits for the next, few
# enough that looking at them all costs nothing.
_SUBMITTED_PER_WORKER = 3
_NAMES_SHOWN = 3
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# Columns of the tally: samples, captions, captions with negatives, rejects.
_COUNTS = 4


@dataclass
class BuildSettings:
    """What `hnpretrain shard build` is told.

    Attributes:
        source: where captions and images come from.
        output: folder or URL of the shards.
        samples_per_shard: for the manifests (coco, jsonl); a source tar becomes one shard.
        workers: processes; 0 takes one for each core this process may use. No effect on the bytes.
        seed: of all random draws.
        max_pixels: largest width x height of an image; larger ones are rejected undecoded.
        max_reject_share: largest share of samples that may be rejected, and of source tars that may
            be broken, before the build fails.
        negatives: which negatives are made, and how.
    """

    source: SourceSettings = field(default_factory=SourceSettings)
    output: str = ""
    samples_per_shard: int = 1000
    workers: int = 0
    seed: int = 0
    max_pixels: int = 100_000_000
    max_reject_share: float = 0.1
    negatives: NegativeSettings = field(default_factory=NegativeSettings)

    def __post_init__(self) -> None:
        if self.samples_per_shard < 1:
            raise ValueError(f"samples_per_shard={self.samples_per_shard}: at least 1")
        if self.workers < 0:
            raise ValueError(f"workers={self.workers}: 0 (all cores) or more")
        if not 1 <= self.max_pixels <= _PILLOW_MAX_PIXELS:
            raise ValueError(f"max_pixels={self.max_pixels}: between 1 and {_PILLOW_MAX_PIXELS}")
        if not 0 <= self.max_reject_share <= 1:
            raise ValueError(f"max_reject_share={self.max_reject_share}: between 0 and 1")


@dataclass(frozen=True)
class JobState:
    """How far the job is. Counts are of this run; shards kept from an earlier one are apart.

    `stopping` says that a signal came, and the job ends once its workers have.
    """

    shards: int
    shards_kept: int
    shards_built: int
    stopping: bool
    samples_to_do: int | None
    samples: int
    captions: int
    captions_with_negatives: int
    rejects: int


@dataclass(frozen=True)
class BuildResult:
    """The index written, and how many shards were built now or kept from an earlier run."""

    index: Index
    built: int
    kept: int


def build(
    settings: BuildSettings, report: Callable[[JobState], None] = lambda _: None
) -> BuildResult:
    """Builds all shards that are not finished yet, then the index.

    Args:
        settings: the job's settings.
        report: called a few times a second while shards are built, and once at the end.

    Raises:
        ValueError: the settings or the source are wrong (nothing was written then), or more than
            max_reject_share of the samples were rejected or of the source tars broken (shards and
            markers stay, no index).
        OSError: storage failed, or a worker died; finished shards stay.
        KeyboardInterrupt: Ctrl-C or, in the main thread, SIGTERM; finished shards stay.
    """
    shards = plan_source(settings.source, settings.samples_per_shard)
    sizes = _check_output(settings.output, shards)
    maker = NegativeMaker(settings.negatives, settings.seed)
    task = _Task(settings.output, settings.max_pixels, _configuration(settings, maker))

    # Threads: this waits for storage, or hashes source tars, which releases the GIL.
    with ThreadPoolExecutor(max(4, _cores())) as pool:
        kept = list(pool.map(lambda shard: _finished(shard, task, sizes), shards))
    markers = [_essentials(marker) for marker in kept if marker is not None]
    to_do = [shard for shard, marker in zip(shards, kept, strict=True) if marker is None]

    index_path = storage.join(settings.output, INDEX_NAME)
    if to_do:
        storage.remove(index_path)
        tally = _Tally(len(to_do))
        samples = [shard.samples for shard in to_do if shard.samples is not None]
        samples_to_do = sum(samples) if len(samples) == len(to_do) else None

        def tell() -> None:
            done = len(shards) - len(to_do), len(markers) - (len(shards) - len(to_do))
            report(JobState(len(shards), *done, tally.stopped(), samples_to_do, *tally.counts()))

        tell()
        workers = min(settings.workers or _cores(), len(to_do))
        processes: list[BaseProcess] = []  # the workers, once they are started
        if workers == 1:
            built = _build_here(to_do, task, maker, tally, tell)
        else:
            built = _build_in_processes(to_do, task, settings, workers, processes, tally, tell)
        # The workers end with `built`, whatever is raised here.
        try:
            with _signals_stop(tally, processes), contextlib.closing(built):
                for marker in built:
                    markers.append(marker)
                    tell()
        except _Stopped as stopped:
            raise KeyboardInterrupt from stopped

    index = Index.of(markers)
    try:
        _check_rejects(settings, index, markers)
    except ValueError:
        storage.remove(index_path)
        raise
    if not storage.exists(index_path) or storage.read_bytes(index_path) != index.to_bytes():
        write_index(settings.output, index)
    return BuildResult(index, len(to_do), len(shards) - len(to_do))


@dataclass(frozen=True)
class _Task:
    """What a worker must know beside its source shard and the maker's settings."""

    folder: str
    max_pixels: int
    configuration: str


class _Tally:
    """Counts of each shard, and the flag that stops all workers, in shared memory.

    Without locks, which a process that is killed would hold for ever: each row is written by the
    one worker that builds that shard, and a number is read as it was before or after.

    Args:
        shards: rows.
    """

    def __init__(self, shards: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._rows = context.RawArray("q", shards * _COUNTS)
        self._stop = context.RawValue("b", 0)

    def add(self, shard: int, *counts: int) -> None:
        """Adds samples, captions, captions with negatives, and rejects of a shard."""
        for column, count in enumerate(counts):
            self._rows[shard * _COUNTS + column] += count

    def counts(self) -> tuple[int, ...]:
        """The sums over all shards."""
        return tuple(sum(self._rows[column::_COUNTS]) for column in range(_COUNTS))

    def stop(self) -> None:
        self._stop.value = 1

    def stopped(self) -> bool:
        return bool(self._stop.value)


class _Stopped(Exception):
    """The job is to stop; the shard at hand is given up, leaving nothing behind."""


class _Builder:
    """Builds shards, one after the other, in one process."""

    def __init__(
        self,
        task: _Task,
        maker: NegativeMaker,
        tally: _Tally,
        after_batch: Callable[[], None] = lambda: None,
    ) -> None:
        self._task = task
        self._maker = maker
        self._tally = tally
        self._after_batch = after_batch

    def build(self, number: int, shard: SourceShard) -> Marker:
        """Builds one shard, counting in the tally's row of that number."""
        fingerprint = shard.fingerprint()
        keys: set[str] = set()
        batch: list[tuple[SourceSample, str]] = []  # with the image's extension
        held = 0
        with ShardWriter() as writer:
            for item in shard.read():
                if self._tally.stopped():
                    raise _Stopped
                checked = self._check(item, keys)
                if isinstance(checked, Reject):
                    writer.reject(checked)
                    self._tally.add(number, 0, 0, 0, 1)
                    continue
                keys.add(checked[0].key)
                batch.append(checked)
                held += len(checked[0].image)
                if len(batch) == _BATCH_SAMPLES or held >= _BATCH_BYTES:
                    self._write(number, batch, writer)
                    batch, held = [], 0
            self._write(number, batch, writer)
            return writer.finish(
                self._task.folder, shard.name, self._task.configuration, shard.origin, fingerprint
            )

    def _check(
        self, item: SourceSample | Reject, keys: set[str]
    ) -> tuple[SourceSample, str] | Reject:
        if isinstance(item, Reject):
            return item
        if item.key in keys:
            return Reject(item.key, "duplicate_key", "an earlier sample of the shard has this key")
        try:
            return item, check_image(item.image, self._task.max_pixels)
        except BadImage as error:
            return Reject(item.key, error.reason, error.detail)

    def _write(
        self, number: int, batch: Sequence[tuple[SourceSample, str]], writer: ShardWriter
    ) -> None:
        made = self._maker.make([CaptionedSample(s.key, s.captions, s.objects) for s, _ in batch])
        for (source, extension), negatives in zip(batch, made, strict=True):
            writer.add(Sample(source.key, source.image, extension, negatives.captions, source.meta))
            writer.reject_candidates(negatives.rejects)
        captions = [caption for negatives in made for caption in negatives.captions]
        with_negatives = sum(bool(caption.negatives) for caption in captions)
        self._tally.add(number, len(batch), len(captions), with_negatives, 0)
        self._after_batch()


def _build_here(
    shards: Sequence[SourceShard],
    task: _Task,
    maker: NegativeMaker,
    tally: _Tally,
    tell: Callable[[], None],
) -> Generator[Marker, None, None]:
    builder = _Builder(task, maker, tally, tell)
    for number, shard in enumerate(shards):
        yield _essentials(builder.build(number, shard))


def _build_in_processes(
    shards: Sequence[SourceShard],
    task: _Task,
    settings: BuildSettings,
    workers: int,
    processes: list[BaseProcess],
    tally: _Tally,
    tell: Callable[[], None],
) -> Generator[Marker, None, None]:
    """Markers as they come. Spawned, not forked: s3fs and BLAS threads do not survive a fork.

    Args:
        processes: the workers are put here as soon as they are started.
    """
    pool = ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), _start_worker, (task, settings, tally)
    )
    numbered = enumerate(shards)

    def submit(count: int) -> set[Future[Marker]]:
        return {pool.submit(_build_in_worker, *item) for item in islice(numbered, count)}

    try:
        # All workers are started in here, one by each submit. The pool's locks have started
        # multiprocessing's resource tracker before: starting that would unblock the signals.
        with _signals_kept_from_children():
            others = set(multiprocessing.active_children())
            try:
                pending = submit(_SUBMITTED_PER_WORKER * workers)
            finally:
                processes.extend(set(multiprocessing.active_children()) - others)
        while pending:
            done, pending = wait(pending, _REPORT_SECONDS, FIRST_COMPLETED)
            if tally.stopped():
                tell()
                raise _Stopped
            for future in done:
                yield future.result()
            pending |= submit(len(done))
            tell()
    except BrokenProcessPool as error:
        raise ChildProcessError(
            "a worker process died (most often it is killed because memory ran out); finished "
            f"shards are kept: start the job again, with fewer than workers={workers}"
        ) from error
    finally:
        # After a signal or an error, the workers give up their shards at the next sample.
        tally.stop()
        pool.shutdown(wait=False, cancel_futures=True)
        _wait_for(processes)


def _wait_for(processes: Sequence[BaseProcess]) -> None:
    """Waits until all workers have ended; once one was killed, the others for a little while only.

    One that was killed while it waited for work holds the lock of the queue for ever, so that the
    others would wait too. The pool's own remedy, SIGTERM, is blocked in them.
    """
    deadline = math.inf
    while alive := [process for process in processes if process.is_alive()]:
        if deadline == math.inf and any(process.exitcode for process in processes):
            deadline = time.monotonic() + _GRACE_SECONDS
        if time.monotonic() > deadline:
            for process in alive:
                process.kill()
        alive[0].join(_REPORT_SECONDS)


# A worker process's own, or why it has none: of an initializer that raises, the pool tells no more
# than that a worker died.
_builder: _Builder | Exception


def _start_worker(task: _Task, settings: BuildSettings, tally: _Tally) -> None:
    global _builder
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        maker = NegativeMaker(settings.negatives, settings.seed)
        if _configuration(settings, maker) != task.configuration:
            raise ValueError(
                "a lexicon or the spaCy model changed while the job was starting; start it again"
            )
        _builder = _Builder(task, maker, tally)
    except Exception as error:
        _builder = error


def _end_with_parent() -> None:
    """Ends this process when the job's is gone, however that was killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _build_in_worker(number: int, shard: SourceShard) -> Marker:
    if isinstance(_builder, Exception):
        raise _builder
    return _essentials(_builder.build(number, shard))


@contextlib.contextmanager
def _signals_stop(tally: _Tally, processes: Sequence[BaseProcess]) -> Iterator[None]:
    """Inside, the first Ctrl-C or SIGTERM stops the job at its next sample, a second at once: it
    kills the worker processes, or where there are none raises KeyboardInterrupt.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers
        return
    # What was ignored stays so: a job under nohup or in a shell's background.
    before = {
        number: handler
        for number in _STOP_SIGNALS
        if (handler := signal.getsignal(number)) != signal.SIG_IGN
    }

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def stop(_number: int, _frame: FrameType | None) -> None:
        tally.stop()
        for number in before:
            signal.signal(number, stop_at_once)

    def stop_at_once(_number: int, _frame: FrameType | None) -> None:
        restore()
        if not processes:
            raise KeyboardInterrupt
        for process in processes:
            process.kill()

    for number in before:
        signal.signal(number, stop)
    try:
        yield
    finally:
        restore()


@contextlib.contextmanager
def _signals_kept_from_children() -> Iterator[None]:
    """Processes started inside never see Ctrl-C or SIGTERM, which may be sent to the whole group:
    the job tells them to stop, so that they leave no temporary file behind.

    The signals are blocked, not ignored: children inherit either, but what comes meanwhile still
    reaches this process afterwards.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _finished(shard: SourceShard, task: _Task, sizes: Mapping[str, int]) -> Marker | None:
    """The shard's marker, if it agrees with the tar, the settings and the source."""
    if shard.name not in sizes or marker_name(shard.name) not in sizes:
        return None
    try:
        marker = read_marker(task.folder, shard.name)
    except ValueError:
        return None  # of another format, or damaged: built again
    agrees = (
        marker.name == shard.name
        and marker.bytes == sizes[shard.name]
        and marker.configuration == task.configuration
        and marker.source_fingerprint == shard.fingerprint()
    )
    if not agrees:
        return None
    # A manifest's fingerprint does not tell whether a photo that was missing is there by now.
    if not isinstance(shard, TarShard) and any(map(has_appeared, marker.rejected)):
        return None
    return marker


def _essentials(marker: Marker) -> Marker:
    """The marker without offsets, and with a few names a reason: all shards' are kept in memory."""
    named: Counter[str] = Counter()
    few = []
    for reject in marker.rejected:
        named[reject.reason] += 1
        if named[reject.reason] <= _NAMES_SHOWN:
            few.append(reject)
    return dataclasses.replace(marker, offsets=(), rejected=tuple(few))


def _check_output(output: str, shards: Sequence[SourceShard]) -> dict[str, int]:
    """Sizes of the files in the output folder, which may be missing.

    Raises:
        ValueError: the folder is the source's own, or holds shards that this job does not make.
    """
    if not output:
        raise ValueError("output is empty: set it to the folder or URL of the shards")
    for shard in shards:
        if isinstance(shard, TarShard) and _same_place(
            storage.join(output, shard.name), shard.path
        ):
            raise ValueError(f"output={output!r} is the source's own folder; choose another")
    try:
        sizes = storage.list_sizes(output, "")
    except FileNotFoundError:
        return {}
    if storage.is_file(output):
        raise ValueError(f"output={output!r} is a file; choose a folder")
    ours = {name for shard in shards for name in (shard.name, marker_name(shard.name))}
    others = sorted(
        name for name in sizes if name.endswith((".tar", ".marker.json")) and name not in ours
    )
    if others:
        shown = ", ".join(others[:3]) + (", ..." if len(others) > 3 else "")
        raise ValueError(
            f"output={output!r} holds {len(others)} files of shards that this source does not "
            f"give ({shown}); remove them or choose another folder"
        )
    return sizes


def _same_place(first: str, second: str) -> bool:
    (fs, inner), (other_fs, other) = storage.filesystem(first), storage.filesystem(second)
    if isinstance(fs, LocalFileSystem) and isinstance(other_fs, LocalFileSystem):
        return os.path.realpath(inner) == os.path.realpath(other)
    return type(fs) is type(other_fs) and inner == other


def _configuration(settings: BuildSettings, maker: NegativeMaker) -> str:
    """Fingerprint of all that the bytes depend on beside the source."""
    essentials = [FORMAT, _VERSION, settings.max_pixels, settings.seed, maker.fingerprint]
    return hashlib.sha256(json.dumps(essentials).encode()).hexdigest()


def _check_rejects(settings: BuildSettings, index: Index, markers: Sequence[Marker]) -> None:
    """Raises ValueError if too large a share of the samples was left out, or all of them, or too
    large a share of the source tars is broken (how many samples those held can't be known).
    """
    reasons = {reason: n for reason, n in index.rejects.items() if reason != BAD_CAPTION}
    left_out = sum(reasons.values())
    total = index.samples + left_out
    broken = sum(BROKEN_TAR in marker.rejects for marker in markers)
    too_many = left_out > settings.max_reject_share * total
    too_many_broken = broken > settings.max_reject_share * len(markers)
    if index.samples and not too_many and not too_many_broken:
        return
    parts = []
    for reason, count in sorted(reasons.items(), key=lambda item: -item[1]):
        named = [
            f"{reject.key} in {marker.name}: {reject.detail}"
            for marker in sorted(markers, key=lambda marker: marker.name)
            for reject in marker.rejected
            if reject.reason == reason
        ]
        more = "; ..." if count > _NAMES_SHOWN else ""
        parts.append(f"{count} {reason} ({'; '.join(named[:_NAMES_SHOWN])}{more})")
    if too_many or not index.samples:
        what = f"{left_out} of {total} samples were rejected"
    else:
        what = f"{broken} of {len(markers)} source tars are broken"
    why, remedy = "so none is left", "mend the source"
    if index.samples:
        why = f"more than max_reject_share={settings.max_reject_share} allows"
        remedy += " or raise max_reject_share"
    raise ValueError(
        f"{what}, {why}; no index was written: {remedy}, and build again. The markers name them "
        f"all: {', '.join(parts) or 'the source holds no sample'}"
    )


def _cores() -> int:
    """Cores that this process may use, which containers and Slurm set lower than the machine's."""
    return len(os.sched_getaffinity(0))
