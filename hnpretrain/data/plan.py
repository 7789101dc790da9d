"""The streaming plan: which sample is read where, as a pure function of (seed, epoch, index, V).

1. Shards are permuted and laid end to end as one line of N samples.
2. Stream v is the v-th of V equal segments of the line, floor(N / V) samples each.
3. A stream is cut into blocks; each block is read at once and shuffled by its own generator.
4. Rank r of W reads the streams v with v mod W == r; a global step takes B / V samples from each.

A mixture has such a line for each of its data sets, and a stream takes from each its segment's part
of the block, evenly. A data set of weight w goes on in its line where the epoch before has stopped,
floor(w * N) further each epoch: the line is followed by another permutation of the shards, another
*pass*.
With w = 1 passes are epochs; with w = 0.5 two epochs show each sample once.

So the global batch of a step is the same for every W that divides V, the whole position in the data
is (epoch, step), and resuming at a step needs arithmetic, not reading.
"""

from __future__ import annotations

import bisect
import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

# Streams chosen by `choose_streams` where there is a choice: enough that 64 ranks can share them.
_TARGET_STREAMS = 64


@dataclass(frozen=True)
class Run:
    """Neighbouring samples of one shard: numbers [start, stop) within it.

    Attributes:
        shard: counted through all data sets.
        passage: which pass over its data set this is, from 0: what draws for a sample come from.
    """

    shard: int
    start: int
    stop: int
    passage: int


@dataclass(frozen=True)
class Part:
    """A data set of the mixture.

    Attributes:
        shard_samples: number of samples of each shard, in the index's order.
        weight: how often an epoch shows it.
    """

    shard_samples: tuple[int, ...]
    weight: float = 1.0

    @functools.cached_property
    def samples(self) -> int:
        """N, the samples of the data set."""
        return sum(self.shard_samples)

    @functools.cached_property
    def samples_per_epoch(self) -> int:
        """floor(w * N), of the weight as it is written: in floats, 0.29 * 100 is below 29."""
        return math.floor(Fraction(str(self.weight)) * self.samples)

    def begin(self, epoch: int) -> int:
        """Where an epoch begins in the endless line of passes: behind the one before."""
        return epoch * self.samples_per_epoch


@dataclass(frozen=True)
class Block:
    """A part of a stream that is read as a whole and shuffled.

    Attributes:
        runs: where its samples lie, in the order of the line.
        order: the order in which they are given out, as numbers into the concatenated runs.
    """

    runs: tuple[Run, ...]
    order: np.ndarray


@dataclass(frozen=True, eq=False)
class Plan:
    """All streams of all epochs.

    Attributes:
        parts: the data sets.
        streams: V.
        batch_size: B, the global batch.
        block_size: samples of a block.
        seed: of all permutations.
    """

    parts: tuple[Part, ...]
    streams: int
    batch_size: int
    block_size: int
    seed: int

    def __post_init__(self) -> None:
        if self.streams < 1 or self.block_size < 1 or self.batch_size < 1:
            raise ValueError(
                f"streams={self.streams}, block_size={self.block_size} and "
                f"batch_size={self.batch_size} must all be at least 1"
            )
        if self.batch_size % self.streams:
            raise ValueError(
                f"streams={self.streams} must divide the global batch_size={self.batch_size}, "
                "so that every step takes equally many samples from each stream"
            )
        if self.steps_per_epoch < 1:
            raise ValueError(
                f"the {self.samples} samples of an epoch do not fill one global batch of "
                f"{self.batch_size}; lower batch_size or build more shards"
            )

    @functools.cached_property
    def samples(self) -> int:
        """Samples of an epoch: all data sets, each as often as its weight says."""
        return sum(part.samples_per_epoch for part in self.parts)

    @property
    def shards(self) -> int:
        return sum(len(part.shard_samples) for part in self.parts)

    @functools.cached_property
    def stream_length(self) -> int:
        """Samples of each stream: of each data set floor(w * N / V)."""
        return sum(self._shares)

    @functools.cached_property
    def _shares(self) -> list[int]:
        """Of each data set, the samples of one stream."""
        return [part.samples_per_epoch // self.streams for part in self.parts]

    @property
    def samples_per_step(self) -> int:
        """Samples that a step takes from each stream: B / V."""
        return self.batch_size // self.streams

    @property
    def steps_per_epoch(self) -> int:
        return self.stream_length // self.samples_per_step

    @property
    def left_out(self) -> int:
        """Samples that an epoch does not show: at most V - 1 a data set and one partial batch."""
        return self.samples - self.steps_per_epoch * self.batch_size

    @property
    def left_out_of(self) -> list[int]:
        """`left_out` of each data set; of the block that an epoch ends in, on average."""
        shown = self._split(self.steps_per_epoch * self.samples_per_step)
        pairs = zip(self.parts, shown, strict=True)
        return [part.samples_per_epoch - self.streams * count for part, count in pairs]

    def streams_of(self, rank: int, world_size: int) -> tuple[int, ...]:
        """The streams that rank r of W reads; ValueError unless W divides V."""
        if self.streams % world_size:
            raise ValueError(
                f"{world_size} ranks must divide streams={self.streams}; "
                f"set data.streams to a multiple of {world_size} that divides "
                f"batch_size={self.batch_size}"
            )
        return tuple(range(rank, self.streams, world_size))

    def block_at(self, stream: int, position: int) -> tuple[int, int, int]:
        """The block that holds a position of a stream: (number, first position, end).

        Streams are staggered, so that they do not all fetch their next block in the same step:
        the first block of stream v is short by v / V of a block. The last may be short too.
        """
        if not 0 <= position < self.stream_length:
            raise ValueError(f"stream {stream} has {self.stream_length} samples, not {position}")
        shift = self.block_size * stream // self.streams
        number = (position + shift) // self.block_size
        first = number * self.block_size - shift
        return number, max(0, first), min(first + self.block_size, self.stream_length)

    def block(self, epoch: int, stream: int, position: int) -> Block:
        """The block that holds a position of a stream, in one epoch."""
        number, first, last = self.block_at(stream, position)
        runs: list[Run] = []
        for number_of_part, (start, stop) in enumerate(
            zip(self._split(first), self._split(last), strict=True)
        ):
            part, share = self.parts[number_of_part], self._shares[number_of_part]
            offset = part.begin(epoch) + stream * share
            runs += self._runs(number_of_part, offset + start, offset + stop)
        order = self._generator(epoch, 1 + stream, number).permutation(last - first)
        return Block(tuple(runs), order)

    def _split(self, position: int) -> list[int]:
        """How many of the first samples of a stream are of each data set: all in proportion.

        One after the other takes its part of what those before have left, so that with each
        position the count of one of them grows by one.
        """
        left = self.stream_length
        counts = []
        for share in self._shares:
            count = position * share // left if left else 0
            counts.append(count)
            position, left = position - count, left - share
        return counts

    def _runs(self, number_of_part: int, start: int, stop: int) -> Iterator[Run]:
        """Where [start, stop) of the endless line of a data set lies."""
        part = self.parts[number_of_part]
        first_shard = sum(len(each.shard_samples) for each in self.parts[:number_of_part])
        while start < stop:
            passage, at = divmod(start, part.samples)
            shards, ends = _line(self, number_of_part, passage)
            place = bisect.bisect_right(ends, at)
            shard, end = int(shards[place]), int(ends[place])
            begin = end - part.shard_samples[shard]
            taken = min(stop - start, end - at)
            yield Run(first_shard + shard, at - begin, at - begin + taken, passage)
            start += taken

    def _generator(self, epoch: int, *where: int) -> np.random.Generator:
        # Philox is counter-based and its stream is fixed by numpy's compatibility policy.
        return np.random.Generator(np.random.Philox([self.seed, epoch, *where]))


@functools.lru_cache(maxsize=32)
def _line(plan: Plan, number_of_part: int, passage: int) -> tuple[np.ndarray, np.ndarray]:
    """The shards of a pass over a data set in their order, and where each ends on the line."""
    samples = plan.parts[number_of_part].shard_samples
    shards = plan._generator(passage, 0, number_of_part).permutation(len(samples))
    return shards, np.cumsum([samples[shard] for shard in shards])


def choose_streams(batch_size: int, world_size: int) -> int:
    """V when the user gives none.

    The largest divisor of B up to 64, whatever the ranks, if W divides it; else the largest
    multiple of W up to 64, or W. More streams mix the shards better and let more world sizes
    continue the run.

    Raises:
        ValueError: W does not divide B.
    """
    if batch_size % world_size:
        raise ValueError(
            f"the global batch_size={batch_size} must be a multiple of the {world_size} ranks"
        )
    divisors = _divisors(batch_size)
    best = max(divisor for divisor in divisors if divisor <= _TARGET_STREAMS)
    if best % world_size == 0:
        return best
    limit = max(_TARGET_STREAMS, world_size)
    return max(d for d in divisors if d % world_size == 0 and d <= limit)


def _divisors(number: int) -> Sequence[int]:
    low = [divisor for divisor in range(1, math.isqrt(number) + 1) if number % divisor == 0]
    return [*low, *(number // divisor for divisor in low)]
