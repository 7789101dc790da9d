"""The loader: batches of one rank, from any (epoch, step) on, read by DataLoader workers.

Each worker owns a contiguous part of the rank's streams and gives one chunk a step; the loader
joins the workers' chunks in order. What a step holds is therefore independent of the number of
workers, and equal on resume.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from hnpretrain.data.plan import Plan, choose_streams
from hnpretrain.data.samples import Batch, Chunk, SampleDecoder, Tokenizer, Transform
from hnpretrain.data.streams import ShardSet, read_stream
from hnpretrain.data.texts import TextLayout
from hnpretrain.shards.index import Index
from hnpretrain.shards.marker import Reject


@dataclass
class DataSettings:
    """Section `data:` of a training config.

    Attributes:
        shards: folder or URL with shards, markers and index.json.
        negatives: K, negatives a caption at most; 0 trains on captions alone.
        streams: V; must divide the global batch, and the ranks must divide it. 0 chooses it.
        block_size: samples that are read at once and shuffled, in each stream.
        workers: loader processes a rank; 0 reads in the training process.
        max_pixels: larger images are rejected before they are decoded.
        max_reject_share: share of broken samples past which the run stops.
    """

    shards: str = ""
    negatives: int = 0
    streams: int = 0
    block_size: int = 256
    workers: int = 2
    max_pixels: int = 64_000_000
    max_reject_share: float = 0.01

    def __post_init__(self) -> None:
        for name in ("negatives", "streams", "workers"):
            if getattr(self, name) < 0:
                raise ValueError(f"data.{name}={getattr(self, name)} must not be negative")
        if not 0 <= self.max_reject_share <= 1:
            raise ValueError(f"data.max_reject_share={self.max_reject_share} must be from 0 to 1")
        for name in ("block_size", "max_pixels"):
            if getattr(self, name) < 1:
                raise ValueError(f"data.{name}={getattr(self, name)} must be at least 1")


@dataclass(frozen=True)
class Position:
    """A step of the run: `step` counts from 0 within `epoch`."""

    epoch: int = 0
    step: int = 0


def make_plan(
    settings: DataSettings, index: Index, batch_size: int, seed: int, world_size: int
) -> Plan:
    """The plan of a run; V is chosen if `settings.streams` is 0.

    Raises:
        ValueError: batch size, streams, ranks and the data set's size do not go together.
    """
    streams = settings.streams or choose_streams(batch_size, world_size)
    plan = Plan(
        shard_samples=tuple(shard.samples for shard in index.shards),
        streams=streams,
        batch_size=batch_size,
        block_size=settings.block_size,
        seed=seed,
    )
    plan.streams_of(0, world_size)  # refuses a world size that does not divide V
    return plan


class Loader:
    """Batches of one rank.

    Args:
        settings: section `data:`.
        index: the data set's index.
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
        index: Index,
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
        self._index = index
        self._streams = plan.streams_of(rank, world_size)
        self._decoder = SampleDecoder(
            transform, tokenizer, settings.negatives, settings.max_pixels, plan.seed
        )
        self._layout = layout
        self._micro_batches = micro_batches
        self._pin_memory = pin_memory

    def batches(
        self, start: Position, epochs: int
    ) -> Iterator[tuple[Position, list[Batch], list[Reject]]]:
        """The batches of each step from `start` to the end of the last of `epochs` epochs.

        Yields:
            (position, its micro-batches, the samples that were rejected while reading them).

        Raises:
            ValueError: a marker does not agree, or samples in a row could not be decoded.
            OSError: a shard could not be read.
        """
        # More workers than streams would leave some with nothing to read.
        workers = min(self._settings.workers, len(self._streams))
        chunks = iter(
            DataLoader(
                _Chunks(self, start, epochs),
                batch_size=None,
                num_workers=workers,
            )
        )
        for position in self.positions(start, epochs):
            parts: list[Chunk] = []
            rejects: list[Reject] = []
            for _ in range(max(1, workers)):
                chunk = next(chunks)
                if isinstance(chunk, Exception):
                    raise chunk
                parts.append(chunk[0])
                rejects += chunk[1]
            yield position, self._batches_of(Chunk.concatenate(parts)), rejects

    def _batches_of(self, chunk: Chunk) -> list[Batch]:
        # Texts are laid out here and not by the workers, of which batches must not depend.
        batches = [Batch.lay_out(part, self._layout) for part in chunk.split(self._micro_batches)]
        return [batch.pin_memory() for batch in batches] if self._pin_memory else batches

    def positions(self, start: Position, epochs: int) -> Iterator[Position]:
        """Every position from `start` to the end of the last epoch."""
        for epoch in range(start.epoch, epochs):
            first = start.step if epoch == start.epoch else 0
            for step in range(first, self.plan.steps_per_epoch):
                yield Position(epoch, step)

    def chunks(
        self, start: Position, epochs: int, worker: int, workers: int
    ) -> Iterator[tuple[Chunk, list[Reject]]]:
        """One worker's part of every batch: the samples of its share of the streams."""
        streams = np.array_split(self._streams, workers)[worker].tolist()
        shards = ShardSet(self._settings.shards, self._index)
        readers: list[Iterator] = []
        for position in self.positions(start, epochs):
            if not readers or position.step == 0:
                decode = functools.partial(self._decoder, epoch=position.epoch)
                first = position.step * self.plan.samples_per_step
                readers = [
                    read_stream(shards, self.plan, position.epoch, stream, first, decode)
                    for stream in streams
                ]
            samples, rejects = [], []
            for reader in readers:
                for _ in range(self.plan.samples_per_step):
                    sample, refused = next(reader)
                    samples.append(sample)
                    rejects += refused
            yield Chunk.stack(samples), rejects


class _Chunks(IterableDataset):
    """What a DataLoader worker runs."""

    def __init__(self, loader: Loader, start: Position, epochs: int) -> None:
        self._loader, self._start, self._epochs = loader, start, epochs

    def __iter__(self) -> Iterator[tuple[Chunk, list[Reject]] | Exception]:
        info = get_worker_info()
        worker, workers = (0, 1) if info is None else (info.id, info.num_workers)
        try:
            yield from self._loader.chunks(self._start, self._epochs, worker, workers)
        except (ValueError, OSError) as error:
            # As a value: DataLoader would wrap it in the worker's traceback.
            yield error
