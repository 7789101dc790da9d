"""Images a second for each core: our loader beside open_clip's and a plain webdataset pipeline.

1. All contenders read the same shards with the same transform and tokenizer, captions alone, and
   have as many cores as workers: the whole process is kept to them, batches are joined there too.
2. A turn is one epoch in a fresh process, from the loader's start to its last batch. Contenders
   take turns, and medians are told. Images a second of the processor's time are told as well: what
   else the machine does changes these less.
3. Images of ours are compared with those decoded and transformed by hand. They are normalized on
   the model's device, no work of a loader; what it takes where that is a CPU is told beside it.
4. Where shards are local, they are listed again and again under other names until there are 100,000
   samples; the time from nothing to the batch in the middle of the epoch is the time to resume.
"""

from __future__ import annotations

import argparse
import functools
import io
import itertools
import multiprocessing
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any

import open_clip
import torch
import webdataset
from PIL import Image
from webdataset.gopen import gopen_schemes

from hnpretrain.bench.machine import machine
from hnpretrain.bench.processes import against_ours, in_processes
from hnpretrain.data.images import Transform, draws_from
from hnpretrain.data.loader import DataSettings, Loader, Position, make_plan
from hnpretrain.data.mixture import DataSet, Mixture, read_mixture
from hnpretrain.data.samples import Tokenizer, draws_for
from hnpretrain.data.texts import TextLayout
from hnpretrain.models.tokenizer import fast_tokenizer
from hnpretrain.shards import storage
from hnpretrain.shards.index import Index, read_index, write_index
from hnpretrain.shards.marker import marker_name, read_marker

_CPU = torch.device("cpu")
_SEED = 0
_CHECKED = 64  # images
_TIMED = 5  # batches
_RESUME_SAMPLES = 100_000
# Samples that the plain pipeline shuffles among, as webdataset's examples have it.
_SHUFFLE_BUFFER = 1000


@dataclass(frozen=True)
class Case:
    """What is measured.

    Attributes:
        shards: folder or URL of shards with an index.
        workers: loader processes, on as many cores.
        B: images a batch.
        size: of images, in pixels.
        samples: of whole shards, about so many are read.
        repeats: turns of each contender.
        resume: whether the time to resume is measured.
    """

    shards: str
    workers: int
    B: int
    size: int
    samples: int
    repeats: int
    resume: bool

    @property
    def cores(self) -> int:
        return min(self.workers, len(os.sched_getaffinity(0)))


def compare(cases: Sequence[Case]) -> Iterator[list[dict[str, Any]]]:
    """The rows of each case.

    Raises:
        ValueError: there is no index, there are too few samples or shards, or open_clip's loader
            cannot be imported.
    """
    for case in cases:
        index = _index(case)
        if len(index.shards) < case.workers:
            raise ValueError(
                f"{case.shards} has {len(index.shards)} shards for {case.workers} workers; "
                "open_clip's loader needs one for each"
            )
        _plan(case, _mixture(case))  # refuses too few samples
    return map(_compare, cases)


def _compare(case: Case) -> list[dict[str, Any]]:
    turns: dict[str, list[dict[str, Any]]] = {name: [] for name in _CONTENDERS}
    for _, name in itertools.product(range(case.repeats), _CONTENDERS):
        turns[name].append(in_processes(_epoch, case, name, device="cpu"))

    def medians(field: str) -> dict[str, float]:
        return {
            name: statistics.median(turn[field] / turn["images"] for turn in found)
            for name, found in turns.items()
        }

    seconds, cpu_seconds = medians("seconds"), medians("cpu_seconds")
    rows = []
    for name, found in turns.items():
        row = {
            "case": name,
            **asdict(case),
            "cores": case.cores,
            "seconds": seconds[name],
            **against_ours(seconds, name),
            "images_per_second_per_core": 1 / (seconds[name] * case.cores),
            "images_per_cpu_second": 1 / cpu_seconds[name],
            "images": found[0]["images"],
            "keys": found[0]["keys"],
            "machine": machine(),
        }
        if name in _OURS:
            row |= in_processes(_differences, case, name, device="cpu")
            row |= in_processes(_normalizing, case, name, device="cpu")
        if name in _OURS and case.resume and not storage.is_url(case.shards):
            with tempfile.TemporaryDirectory() as folder:
                row["resume_samples"] = _repeat_shards(case, Path(folder))
                row |= in_processes(_resume, case, name, folder, device="cpu")
        rows.append(row)
    return rows


def _epoch(case: Case, name: str) -> dict[str, Any]:
    """An epoch of a contender, in a process of its own: seconds, images and different keys."""
    _keep_to(case.cores)
    batches = _CONTENDERS[name](case)
    images = 0
    keys: set[str] = set()
    start, cpu_start = time.perf_counter(), _cpu_seconds()
    for count, of_batch in batches():
        images += count
        keys.update(of_batch)
    return {
        "seconds": time.perf_counter() - start,
        "cpu_seconds": _cpu_seconds() - cpu_start,
        "images": images,
        "keys": len(keys) if keys else None,
    }


def _cpu_seconds() -> float:
    """Of the processor, for this process and its workers, those that have ended and those alive."""
    ended = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    seconds = sum(usage.ru_utime + usage.ru_stime for usage in ended)
    for worker in multiprocessing.active_children():
        fields = Path(f"/proc/{worker.pid}/stat").read_text().rpartition(")")[2].split()
        seconds += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return seconds


def _keep_to(cores: int) -> None:
    """This process and its children share so many cores."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    torch.set_num_threads(cores)
    # Loaders fork their workers, but in a child of a fork server.
    multiprocessing.set_start_method("fork", force=True)


Batches = Callable[[], Iterator[tuple[int, Sequence[str]]]]
"""The batches of an epoch: how many images, and the keys where the contender tells them."""


def _ours(decode: str, case: Case) -> Batches:
    loader = _loader(case, _mixture(case), decode)

    def batches() -> Iterator[tuple[int, Sequence[str]]]:
        for _, (batch,), _ in loader.batches(Position(), 1):
            yield len(batch.image_BCHW), batch.keys

    return batches


def _open_clip(case: Case) -> Batches:
    """open_clip's own training pipeline, of `open_clip_train.data`."""
    try:
        import open_clip_train.data as theirs
    except ImportError as error:
        raise ValueError(f"open_clip's loader needs another package: {error}") from error
    # It asks for webdataset <= 0.2.86, which had no marks between shards to choke on.
    theirs.tar_file_expander = functools.partial(theirs.tar_file_expander, eof_value=None)
    _let_webdataset_read(case.shards)
    arguments = argparse.Namespace(
        train_data="::".join(_urls(case)),
        train_num_samples=_index(case).samples,
        train_data_upsampling_factors=None,
        dataset_resampled=False,
        seed=_SEED,
        batch_size=case.B,
        workers=case.workers,
        world_size=1,
    )
    # Whole batches alone, since ours are, too; else it would read shards anew to fill the last.
    info = theirs.get_wds_dataset(
        arguments, _transform(case.size), True, floor=True, tokenizer=_tokenizer()
    )

    def batches() -> Iterator[tuple[int, Sequence[str]]]:
        for image_BCHW, _ in info.dataloader:
            yield len(image_BCHW), ()

    return batches


def _plain(case: Case) -> Batches:
    """webdataset as its documentation has it."""
    transform, tokenizer = _transform(case.size), _tokenizer()
    _let_webdataset_read(case.shards)
    urls = _urls(case)
    data = (
        webdataset.WebDataset(urls, shardshuffle=len(urls), seed=_SEED)
        .shuffle(_SHUFFLE_BUFFER)
        .decode("pilrgb")
        .to_tuple("__key__", "jpg;jpeg;png;webp", "txt")
        .map_tuple(str, transform, lambda text: tokenizer([text])[0])
        .batched(case.B, partial=False)
    )
    loader = webdataset.WebLoader(data, batch_size=None, num_workers=case.workers)

    def batches() -> Iterator[tuple[int, Sequence[str]]]:
        for keys, image_BCHW, _ in loader:
            yield len(image_BCHW), keys

    return batches


_OURS: dict[str, str] = {"ours, exact": "exact", "ours, fast": "fast"}
_CONTENDERS: dict[str, Callable[[Case], Batches]] = {
    **{name: functools.partial(_ours, decode) for name, decode in _OURS.items()},
    "open_clip": _open_clip,
    "webdataset": _plain,
}


def _let_webdataset_read(place: str) -> None:
    """webdataset knows no s3:// and the like: it gets streams of large requests from fsspec."""
    if not storage.is_url(place):
        return

    def opened(url: str, *_: Any, **__: Any) -> IO[bytes]:
        fs, inner = storage.filesystem(url)
        return fs.open(inner, "rb", block_size=2**24, cache_type="readahead")

    gopen_schemes[place.partition("://")[0]] = opened


def _index(case: Case) -> Index:
    """The index of the shards that are read."""
    index = read_index(case.shards)
    samples = [0, *itertools.accumulate(shard.samples for shard in index.shards)]
    shards = tuple(
        shard for shard, before in zip(index.shards, samples, strict=False) if before < case.samples
    )
    return replace(index, shards=shards, samples=sum(shard.samples for shard in shards))


def _mixture(case: Case) -> Mixture:
    return Mixture((DataSet(case.shards, _index(case)),))


def _urls(case: Case) -> list[str]:
    index = _index(case)
    folder = index.folder_of_tars(case.shards)
    return [storage.join(folder, shard.name) for shard in index.shards]


def _plan(case: Case, mixture: Mixture) -> Any:
    return make_plan(DataSettings(shards=case.shards), mixture, case.B, _SEED, world_size=1)


def _loader(case: Case, mixture: Mixture, decode: str) -> Loader:
    return Loader(
        DataSettings(shards=case.shards, workers=case.workers, decode=decode),
        mixture,
        _plan(case, mixture),
        _transform(case.size),
        _tokenizer(),
        TextLayout("padded"),  # what the others give
        rank=0,
        world_size=1,
    )


def _transform(size: int) -> Transform:
    transform: Transform = open_clip.image_transform(size, is_train=True)
    return transform


@functools.cache
def _tokenizer() -> Tokenizer:
    return fast_tokenizer(open_clip.SimpleTokenizer())


def _differences(case: Case, name: str) -> dict[str, Any]:
    """Of the first images of ours, from those made by hand, in steps of 8 bits."""
    transform = _transform(case.size)
    std_C11 = torch.tensor(open_clip.OPENAI_DATASET_STD).view(-1, 1, 1)
    loader = _loader(replace(case, workers=0), _mixture(case), _OURS[name])
    ours: dict[str, torch.Tensor] = {}
    for _, (batch,), _ in loader.batches(Position(), 1):
        ours.update(zip(batch.keys, batch.to(_CPU).image_BCHW, strict=True))
        if len(ours) >= _CHECKED:
            break
    apart = []
    for key, data in _images(case, set(list(ours)[:_CHECKED])):
        whole = Image.open(io.BytesIO(data)).convert("RGB")
        with draws_from(int(draws_for(_SEED, 0, key).integers(2**63))):
            by_hand = transform(whole)
        apart.append(((ours[key] - by_hand) * std_C11 * 255).abs())
    apart_NCHW = torch.stack(apart)
    return {
        "checked": len(apart),
        "mean_difference": apart_NCHW.mean().item(),
        "largest_difference": apart_NCHW.max().item(),
    }


def _normalizing(case: Case, name: str) -> dict[str, float]:
    """On one core, for one image: from the loader's batch to what the model takes."""
    _keep_to(1)
    loader = _loader(replace(case, workers=0), _mixture(case), _OURS[name])
    _, (batch,), _ = next(loader.batches(Position(), 1))
    seconds = []
    for _ in range(_TIMED):
        start = time.perf_counter()
        batch.to(_CPU)
        seconds.append(time.perf_counter() - start)
    return {"normalizing_seconds": statistics.median(seconds) / case.B}


def _images(case: Case, keys: set[str]) -> Iterator[tuple[str, bytes]]:
    """The bytes of images by their keys, as webdataset reads them."""
    _let_webdataset_read(case.shards)
    for sample in webdataset.WebDataset(_urls(case), shardshuffle=False):
        if sample["__key__"] in keys:
            keys.remove(sample["__key__"])
            (data,) = (sample[x] for x in ("jpg", "jpeg", "png", "webp") if x in sample)
            yield sample["__key__"], data


def _repeat_shards(case: Case, folder: Path) -> int:
    """Lists the shards under further names until there are enough samples; how many there are."""
    index = _index(case)
    markers = []
    samples = 0
    for number in itertools.count():
        shard = index.shards[number % len(index.shards)]
        name = f"{number:06d}.tar"
        tars = index.folder_of_tars(case.shards)
        (folder / name).symlink_to(Path(tars, shard.name).resolve())
        marker = replace(read_marker(case.shards, shard.name), name=name)
        storage.write_bytes(str(folder / marker_name(name)), marker.to_bytes())
        markers.append(marker.without_samples())
        samples += shard.samples
        if samples >= _RESUME_SAMPLES:
            write_index(str(folder), Index.of(markers))
            return samples
    raise AssertionError("unreachable: counting never ends")


def _resume(case: Case, name: str, folder: str) -> dict[str, float]:
    """Until the batch in the middle of an epoch is there, reading the index included."""
    _keep_to(case.cores)
    _tokenizer()  # of the model, which is there before
    start, cpu_start = time.perf_counter(), _cpu_seconds()
    mixture = read_mixture({folder: 1.0})
    loader = _loader(case, mixture, _OURS[name])
    batches = loader.batches(Position(0, loader.plan.steps_per_epoch // 2), 1)
    next(batches)
    return {
        "resume_seconds": time.perf_counter() - start,
        "resume_cpu_seconds": _cpu_seconds() - cpu_start,
    }
