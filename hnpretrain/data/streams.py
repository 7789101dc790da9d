"""Reads streams of the plan: whole blocks by ranged reads, then single samples in block order.

A position is reached by reading its block and taking samples from there on; nothing before it is
read from other blocks, and nothing at all is decoded to get there.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeVar

import numpy as np

from hnpretrain.data.plan import Plan
from hnpretrain.shards import storage
from hnpretrain.shards.images import BadImage
from hnpretrain.shards.index import Index
from hnpretrain.shards.marker import Marker, Reject, read_marker
from hnpretrain.shards.tar import RawSample, decode_sample

T = TypeVar("T")

# Stand-ins tried for one broken sample before giving up: so many in a row is no bad luck.
_STAND_INS = 8


class StoredSample(NamedTuple):
    """The tar bytes of one sample, and where they lie, for messages."""

    where: str
    data: bytes


class ShardSet:
    """The shards of one data set, opened where they are used (a loader's worker).

    Args:
        folder: local path or URL.
        index: its index; markers must agree with it.
    """

    def __init__(self, folder: str, index: Index) -> None:
        self.folder = folder
        self.index = index
        # A stream lies in few shards at a time; markers are small but there may be 100,000.
        self._marker = functools.lru_cache(maxsize=256)(self._read_marker)

    def read(self, shard: int, start: int, stop: int) -> list[StoredSample]:
        """Samples [start, stop) of a shard, by one ranged read."""
        name = self.index.shards[shard].name
        offsets = self._marker(shard).offsets[start : stop + 1]
        data = storage.read_range(storage.join(self.folder, name), offsets[0], offsets[-1])
        return [
            StoredSample(f"{name} sample {number}", data[begin - offsets[0] : end - offsets[0]])
            for number, (begin, end) in enumerate(itertools.pairwise(offsets), start)
        ]

    def _read_marker(self, shard: int) -> Marker:
        entry = self.index.shards[shard]
        marker = read_marker(self.folder, entry.name)
        if (marker.samples, marker.sha256) != (entry.samples, entry.sha256):
            raise ValueError(
                f"{storage.join(self.folder, entry.name)}: its marker does not agree with the "
                "index; build the shards again, or restore both from one build"
            )
        return marker


def read_stream(
    shards: ShardSet,
    plan: Plan,
    epoch: int,
    stream: int,
    start: int,
    decode: Callable[[RawSample], T],
) -> Iterator[tuple[T, list[Reject]]]:
    """The samples of one stream from position `start` on, decoded.

    A sample that `decode` refuses is replaced by one half a block further on in the block's order,
    so that batches keep their size on every rank, and the two seldom meet in one step.

    Args:
        decode: makes a training sample of a raw one; raises BadImage or another ValueError if it
            cannot.

    Yields:
        (decoded sample, the sample that was rejected in its place, if any). Every broken sample is
        given as a reject once an epoch: in its own place, not where it was tried as a stand-in.

    Raises:
        ValueError: nothing around a broken sample could be decoded either.
        OSError: a shard could not be read.
    """
    position = start
    while position < plan.stream_length:
        _, first, last = plan.block_at(stream, position)
        block = plan.block(epoch, stream, position)
        stored = [s for run in block.runs for s in shards.read(run.shard, run.start, run.stop)]
        for place in range(position - first, last - first):
            sample, rejects = _decode_with_stand_in(stored, block.order, place, decode)
            yield sample, rejects[:1]
        position = last


def _decode_with_stand_in(
    stored: list[StoredSample],
    order: np.ndarray,
    place: int,
    decode: Callable[[RawSample], T],
) -> tuple[T, list[Reject]]:
    """The sample at a place or the first stand-in that can be decoded, and all that could not."""
    rejects: list[Reject] = []
    count = len(stored)
    places = [place, *((place + count // 2 + i) % count for i in range(_STAND_INS))]
    for candidate in dict.fromkeys(places):  # a short block repeats itself
        where, data = stored[order[candidate]]
        key = "?"
        try:
            raw = decode_sample(data)
            key = raw.key
            return decode(raw), rejects
        except BadImage as error:
            rejects.append(Reject(key, error.reason, f"{where}: {error.detail}"))
        except ValueError as error:
            rejects.append(Reject(key, "bad_member", f"{where}: {error}"))
    named = "; ".join(f"{reject.key}: {reject.detail}" for reject in rejects)
    raise ValueError(f"{len(rejects)} samples in a row could not be decoded: {named}")
