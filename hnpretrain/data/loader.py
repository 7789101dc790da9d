"""The loader: batches of one rank, from any (epoch, step) on, read by DataLoader workers.

Each worker owns a contiguous part of the rank's streams and gives one chunk a step; the loader
joins the workers' chunks in order. What a step holds is therefore independent of the number of
workers, and equal on resume.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from hnpretrain.data.background import Background
from hnpretrain.data.cache import ShardCache
from hnpretrain.data.images import DECODE_MODES, ImageReader, Transform
from hnpretrain.data.ledger import Tally
from hnpretrain.data.mixture import Mixture
from hnpretrain.data.plan import Part, Plan, choose_streams
from hnpretrain.data.samples import Batch, Chunk, SampleDecoder, Tokenizer
from hnpretrain.data.streams import BlockReader, ShardSet, Span, read_stream
from hnpretrain.data.texts import TextLayout
from hnpretrain.data.workers import heed_alone
from hnpretrain.shards import storage

_ON_BAD_SHARD = ("stop", "skip")
# Blocks that one worker reads at once. One request of S3 gives some 50 MB/s.
_READERS = 8

MAX_WEIGHT = 1000


@dataclass
class DataSettings:
    """Section `data:` of a training config.

    Attributes:
        shards: folder or URL with shards, markers and index.json.
        mixture: instead of `shards`, several of them, each with its weight: how often an epoch
            shows the data set. 1 is once, 0.5 one half of it (the next epoch the other), 2 twice.
        negatives: K, negatives a caption at most; 0 trains on captions alone.
        streams: V; must divide the global batch, and the ranks must divide it. 0 chooses it.
        block_size: samples that are read at once and shuffled, in each stream. A rank holds two
            blocks of each of its streams in memory: one it takes samples from, one read ahead.
        workers: loader processes a rank; 0 reads in the training process.
        decode: exact, or fast: images that differ a little, in less time (see data/images.py).
        max_pixels: larger images are rejected before they are decoded.
        max_reject_share: share of broken samples past which the run stops.
        on_bad_shard: what happens at a shard that is missing, is not what its marker or the index
            say, or cannot be read: stop ends the run; skip rejects the shard's samples.
        cache: folder on the node's own disk for copies of shards; empty for none.
        cache_gb: what they may take there, in 10^9 bytes.
    """

    shards: str = ""
    mixture: dict[str, float] = field(default_factory=dict)
    negatives: int = 0
    streams: int = 0
    block_size: int = 256
    workers: int = 2
    decode: str = "exact"
    max_pixels: int = 64_000_000
    max_reject_share: float = 0.01
    on_bad_shard: str = "stop"
    cache: str = ""
    cache_gb: float = 100.0

    def __post_init__(self) -> None:
        if self.shards and self.mixture:
            raise ValueError("set either data.shards or data.mixture")
        for place, weight in self.mixture.items():
            if not 0 < weight <= MAX_WEIGHT:
                raise ValueError(
                    f"data.mixture: {place} has weight {weight}; it must be above 0 and at most "
                    f"{MAX_WEIGHT}"
                )
        if self.decode not in DECODE_MODES:
            raise ValueError(f"data.decode={self.decode!r} is not one of {', '.join(DECODE_MODES)}")
        for name in ("negatives", "streams", "workers"):
            if getattr(self, name) < 0:
                raise ValueError(f"data.{name}={getattr(self, name)} must not be negative")
        if not 0 <= self.max_reject_share <= 1:
            raise ValueError(f"data.max_reject_share={self.max_reject_share} must be from 0 to 1")
        if self.on_bad_shard not in _ON_BAD_SHARD:
            raise ValueError(
                f"data.on_bad_shard={self.on_bad_shard!r} is not one of {', '.join(_ON_BAD_SHARD)}"
            )
        if storage.is_url(self.cache):
            raise ValueError(f"data.cache={self.cache!r} must be a folder on the node's own disk")
        if not self.cache_gb > 0:  # also refuses NaN
            raise ValueError(f"data.cache_gb={self.cache_gb} must be above 0")
        for name in ("block_size", "max_pixels"):
            if getattr(self, name) < 1:
                raise ValueError(f"data.{name}={getattr(self, name)} must be at least 1")

    @property
    def weights(self) -> dict[str, float]:
        """The weight of each data set, by its place."""
        return self.mixture or {self.shards: 1.0}


@dataclass(frozen=True)
class Position:
    """A step of the run: `step` counts from 0 within `epoch`."""

    epoch: int = 0
    step: int = 0


def make_plan(
    settings: DataSettings, mixture: Mixture, batch_size: int, seed: int, world_size: int
) -> Plan:
    """The plan of a run; V is chosen if `settings.streams` is 0.

    Raises:
        ValueError: batch size, streams, ranks and the data sets' sizes do not go together.
    """
    streams = settings.streams or choose_streams(batch_size, world_size)
    plan = Plan(
        parts=tuple(
            Part(tuple(shard.samples for shard in each.index.shards), each.weight)
            for each in mixture.data_sets
        ),
        streams=streams,
        batch_size=batch_size,
        block_size=settings.block_size,
        seed=seed,
    )
    plan.streams_of(0, world_size)  # refuses a world size that does not divide V
    for each, part in zip(mixture.data_sets, plan.parts, strict=True):
        if part.samples_per_epoch < streams:
            raise ValueError(
                f"nothing of {each.folder} would ever be shown: an epoch takes {each.weight:g} of "
                f"its {part.samples} samples, {part.samples_per_epoch}, too few to give each of "
                f"{streams} streams one. Raise its weight, set a smaller data.streams that divides "
                f"batch_size={batch_size}, or leave it out"
            )
    return plan


class Loader:
    """Batches of one rank.

    Args:
        settings: section `data:`.
        mixture: the data.
        plan: of this run (`make_plan`).
        transform: the model's image transform.
        tokenizer: the model's tokenizer.
        layout: what the model's text tower takes.
        rank, world_size: this rank's place; decides which streams it reads.
        micro_batches: into how many equal batches a step's samples are split.
        pin_memory: give out pinned tensors (for CUDA).
    """

    def __init__(
        self,
        settings: DataSettings,
        mixture: Mixture,
        plan: Plan,
        transform: Transform,
        tokenizer: Tokenizer,
        layout: TextLayout,
        rank: int,
        world_size: int,
        micro_batches: int = 1,
        pin_memory: bool = False,
    ) -> None:
        self.plan = plan
        self._settings = settings
        self._mixture = mixture
        self._streams = plan.streams_of(rank, world_size)
        self._read_image = ImageReader(transform, settings.decode, settings.max_pixels)
        self._decoder = SampleDecoder(self._read_image, tokenizer, settings.negatives, plan.seed)
        self._layout = layout
        self._micro_batches = micro_batches
        self._pin_memory = pin_memory

    def batches(
        self, start: Position, epochs: int
    ) -> Iterator[tuple[Position, list[Batch], Tally]]:
        """The batches of each step from `start` to the end of the last of `epochs` epochs.

        Yields:
            (position, its micro-batches, what is to be told of its samples).

        Raises:
            BadShard: a shard cannot be used, and bad ones are not skipped.
            ValueError: nothing can stand in for a broken sample.
        """
        # More workers than streams would leave some with nothing to read.
        workers = min(self._settings.workers, len(self._streams))
        chunks = iter(
            DataLoader(
                _Chunks(self, start, epochs),
                batch_size=None,
                num_workers=workers,
                worker_init_fn=functools.partial(heed_alone, os.getpid()),
            )
        )
        try:
            for position in self.positions(start, epochs):
                parts: list[Chunk] = []
                tally = Tally()
                for _ in range(max(1, workers)):
                    chunk = next(chunks)
                    if isinstance(chunk, Exception):
                        raise chunk
                    parts.append(chunk[0])
                    tally.add(chunk[1])
                yield position, self._batches_of(Chunk.concatenate(parts)), tally
        finally:
            # The workers end now. Left to an error's traceback, and collected with that, the
            # iterator would have lost the queues to tell them by, and wait 5 s for each.
            del chunks

    def _batches_of(self, chunk: Chunk) -> list[Batch]:
        # Texts are laid out here and not by the workers, of which batches must not depend.
        batches = [
            Batch.lay_out(part, self._layout, self._read_image.normalization)
            for part in chunk.split(self._micro_batches)
        ]
        return [batch.pin_memory() for batch in batches] if self._pin_memory else batches

    def positions(self, start: Position, epochs: int) -> Iterator[Position]:
        """Every position from `start` to the end of the last epoch."""
        for epoch in range(start.epoch, epochs):
            first = start.step if epoch == start.epoch else 0
            for step in range(first, self.plan.steps_per_epoch):
                yield Position(epoch, step)

    def chunks(
        self, start: Position, epochs: int, worker: int, workers: int
    ) -> Iterator[tuple[Chunk, Tally]]:
        """One worker's part of every batch: the samples of its share of the streams."""
        streams = np.array_split(self._streams, workers)[worker].tolist()
        reader = block_reader(self._settings, self._mixture, self.plan)
        with contextlib.closing(Background(_READERS)) as background:
            readers = [
                read_stream(reader, background, stream, self._spans(start, epochs), self._decoder)
                for stream in streams
            ]
            for _ in self.positions(start, epochs):
                samples, tally = [], Tally()
                for samples_of_stream in readers:
                    for _ in range(self.plan.samples_per_step):
                        sample, told = next(samples_of_stream)
                        samples.append(sample)
                        tally.add(told)
                yield Chunk.stack(samples), tally

    def _spans(self, start: Position, epochs: int) -> Iterator[Span]:
        """What the steps from `start` on take of each stream."""
        size, steps = self.plan.samples_per_step, self.plan.steps_per_epoch
        for epoch in range(start.epoch, epochs):
            first = start.step if epoch == start.epoch else 0
            yield Span(epoch, first * size, steps * size)


def block_reader(settings: DataSettings, mixture: Mixture, plan: Plan) -> BlockReader:
    """What reads the blocks of a plan; to be made in the process that uses it."""
    cache = ShardCache(settings.cache, settings.cache_gb * 1e9) if settings.cache else None
    shards = ShardSet(mixture, cache)
    return BlockReader(shards, plan, settings.on_bad_shard == "skip")


class _Chunks(IterableDataset):
    """What a DataLoader worker runs."""

    def __init__(self, loader: Loader, start: Position, epochs: int) -> None:
        self._loader, self._start, self._epochs = loader, start, epochs

    def __iter__(self) -> Iterator[tuple[Chunk, Tally] | Exception]:
        info = get_worker_info()
        worker, workers = (0, 1) if info is None else (info.id, info.num_workers)
        try:
            yield from self._loader.chunks(self._start, self._epochs, worker, workers)
        except (ValueError, OSError) as error:
            # As a value: DataLoader would wrap it in the worker's traceback.
            yield error
