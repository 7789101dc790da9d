"""The offline job: source shards in, shards with negatives out.

    1. The source is planned: everything that is wrong with a manifest is found here, before any
       work. Of an array of jobs, each takes its part of the shards.
    2. The output folder is locked, and its record of settings compared (or written).
    3. If the negatives need word frequencies, they are read, or counted from the source.
    4. Shards whose marker agrees (size, configuration, source) are kept; the index and the markers
       of the others are removed.
    5. Each remaining shard is built by one worker process: samples are read, images checked,
       negatives made, tar and marker written. Workers share nothing but the output folder.
    6. The markers of all parts are summed up into the index, written last, unless one is missing or
       too many samples were rejected.

Nothing depends on which worker does what, or when: the same source and settings give the same
bytes. A killed job, started again, redoes its unfinished shards only.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hnpretrain.shards.index import INDEX_NAME, Index
from hnpretrain.shards.lock import Hold
from hnpretrain.shards.marker import Marker, marker_name
from shard_tools import folder, record
from shard_tools.builder import COUNTS, Builder, Task
from shard_tools.counting import CountState
from shard_tools.finish import finish
from shard_tools.negatives import (
    FrequencyTable,
    NegativeMaker,
    NegativeSettings,
    needs_frequencies,
)
from shard_tools.prepare import WaitState, count_words, fits, locked_part, prepare, shared
from shard_tools.settings import BuildSettings
from shard_tools.sources import SourceShard, plan_source
from shard_tools.workers import Tally, alone, cores, spread


@dataclass(frozen=True)
class JobState:
    """How far the job is. Counts are of this run; shards kept from an earlier one are apart.

    Attributes:
        shards: of this part.
        shards_kept: of those, finished in an earlier run.
        shards_built: finished in this run.
        stopping: a signal came, and the job ends once its workers have.
        unit: of the work: samples (rejected ones with them), or bytes of source tars, whose samples
            nobody has counted.
        work: done in this run.
        work_to_do: in all of this run.
        samples: written in this run, and so on.
    """

    shards: int
    shards_kept: int
    shards_built: int
    stopping: bool
    unit: str
    work_to_do: int
    samples: int
    captions: int
    captions_with_negatives: int
    rejects: int
    work: int


@dataclass(frozen=True)
class BuildResult:
    """What a run did.

    Attributes:
        index: as written; while other parts owe shards, that of this part's, which is not written.
        built: shards built now.
        kept: shards of this part that were finished before.
        owed: shards that the other parts have not finished.
    """

    index: Index
    built: int
    kept: int
    owed: int


Report = Callable[[JobState | CountState | WaitState], None]


def build(settings: BuildSettings, report: Report = lambda _: None) -> BuildResult:
    """Builds all shards of this part that are not finished yet, then the index.

    Args:
        settings: the job's settings.
        report: called a few times a second while words are counted and shards are built, and once
            at the end.

    Raises:
        ValueError: the settings or the source are wrong, or not those of the output folder, or
            another job works on it (nothing was written then); or more than max_reject_share of
            the samples were rejected or of the source tars broken (shards and markers stay, no
            index).
        OSError: storage failed, or a worker died; finished shards stay.
        KeyboardInterrupt: Ctrl-C or, in the main thread, SIGTERM; finished shards stay.
    """
    shards = plan_source(settings.source, settings.samples_per_shard)
    folder.check_place(settings.output, shards)
    with locked_part(settings) as hold:
        maker, table = prepare(settings, shards, report)
        configuration = record.fingerprint_of(record.record_of(settings, maker))
        mine = settings.part_of(shards)
        sizes = folder.read_sizes(settings.output)
        folder.remove_leftovers(settings.output, sizes, folder.files_of(mine))
        kept, to_do = folder.find_finished(settings.output, mine, configuration, sizes)
        markers = list(kept)
        if to_do:
            # Before any is built: what the other parts find is then of this run, or missing.
            stale = {marker_name(shard.name) for shard in to_do} & sizes.keys()
            with shared(settings, report):  # no other part may be summing up meanwhile
                folder.remove(settings.output, [INDEX_NAME, *stale])
            task = Task(settings.output, settings.max_pixels, settings.decodes, configuration)
            markers += _build_all(to_do, len(kept), settings, task, maker, table, report, hold)
        hold.check()
        with shared(settings, report):
            index, owed = finish(settings, shards, markers, configuration)
    return BuildResult(index, len(to_do), len(kept), owed)


def count(settings: BuildSettings, report: Report = lambda _: None) -> FrequencyTable:
    """Counts the source's words and writes the table alone into the output folder.

    `build` does so itself, where it has to; for an array of jobs it is better done before.

    Raises:
        ValueError: as `build`; or these settings count nothing.
        OSError, KeyboardInterrupt: as `build`.
    """
    if not needs_frequencies(settings.negatives):
        raise ValueError("nothing to count: no strategy of these settings draws by word frequency")
    if settings.negatives.frequencies:
        raise ValueError(
            f"negatives.frequencies={settings.negatives.frequencies!r} is a table that was counted "
            "before; leave it out to count another"
        )
    shards = plan_source(settings.source, settings.samples_per_shard)
    folder.check_place(settings.output, shards)
    return count_words(settings, shards, report)


def _build_all(
    shards: Sequence[SourceShard],
    kept: int,
    settings: BuildSettings,
    task: Task,
    maker: NegativeMaker,
    table: FrequencyTable | None,
    report: Report,
    hold: Hold,
) -> list[Marker]:
    """Builds the shards, by this process or several; the markers' essentials."""
    tally = Tally(len(shards), COUNTS)
    counts = [shard.samples for shard in shards]
    known = [samples for samples in counts if samples is not None]
    unit = "samples" if len(known) == len(shards) else "bytes"
    to_do = sum(known) if unit == "samples" else sum(shard.size or 0 for shard in shards)
    markers: list[Marker] = []

    def tell() -> None:
        progress = kept + len(shards), kept, len(markers), tally.stopped(), unit, to_do
        report(JobState(*progress, *tally.sums()))
        hold.check()

    tell()
    workers = min(settings.workers or cores(), len(shards))
    if workers == 1:
        built = alone(shards, Builder(task, maker, tally, tell).build, tally)
    else:
        data = table.to_bytes() if table is not None else None
        arguments = (task, settings.negatives, settings.seed, maker.fingerprint, data)
        built = spread(shards, _prepare_worker, arguments, tally, workers, tell)
    with contextlib.closing(built):
        for marker in built:
            markers.append(marker)
            tell()
    return markers


def _prepare_worker(
    task: Task,
    negatives: NegativeSettings,
    seed: int,
    fingerprint: str,
    data: bytes | None,
    tally: Tally,
) -> Callable[[int, SourceShard], Marker]:
    table = None if data is None else FrequencyTable.from_bytes(data, "the counted frequencies")
    if table is None or fits(table, negatives):
        maker = NegativeMaker(negatives, seed, table)
        if maker.fingerprint == fingerprint:
            gc.freeze()  # tables and models stay: looking for garbage in them costs a twentieth
            return Builder(task, maker, tally).build
    raise ValueError(
        "a lexicon or the spaCy model changed while the job was starting; start it again"
    )
