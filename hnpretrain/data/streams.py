"""Reads streams of the plan: whole blocks by ranged reads, then single samples in block order.

1. While a stream gives out one block, its next one is read in the background (`Background`), so
   that who takes the samples waits for the store only if it is too slow on average.
2. Each sample's bytes are checked against the marker's crc32, and what differs is read once more.
3. A shard that cannot be used stops the run, or is quarantined: its samples are rejected.
4. For each sample that was rejected or cannot be decoded, another one stands in, so that batches
   keep their size on every rank: one of its block, else of another block nearby.

A position is reached by reading its block and taking samples from there on; nothing before it is
read from other blocks, and nothing at all is decoded to get there. What stands in for what depends
on the position and on the faults alone, never on ranks, workers or where a run began.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from typing import Any, NamedTuple, TypeVar

import numpy as np

from hnpretrain.data.background import Background
from hnpretrain.data.cache import ShardCache
from hnpretrain.data.ledger import Ledger, Tally
from hnpretrain.data.mixture import Mixture
from hnpretrain.data.plan import Plan, Run
from hnpretrain.shards import retries, storage
from hnpretrain.shards.images import BadImage
from hnpretrain.shards.marker import Reject, read_marker
from hnpretrain.shards.tar import RawSample, checksum, decode_sample

T = TypeVar("T")

# Reasons of rejects that are found before a sample is decoded.
DAMAGED = "checksum_mismatch"
UNREADABLE = "shard_unreadable"
# Stand-ins tried in a block before another one is: so many broken in a row are no bad luck.
_STAND_INS = 8
# Other blocks tried, up to 512 blocks away: far past the end of any one bad shard.
_BLOCKS_TRIED = 20
# Markers kept. A stream lies in few shards at a time, but there may be 100,000.
_MARKERS = 256


class StoredSample(NamedTuple):
    """The tar bytes of one sample, where they lie, for messages, and the pass they are read in."""

    where: str
    data: memoryview
    passage: int


class Unreadable(NamedTuple):
    """A sample of a shard that cannot be used: the shard's path, and why."""

    shard: str
    why: str


class BadShard(ValueError):
    """A shard that cannot be used: missing, not what its marker or the index say, or unreadable.

    Attributes:
        shard: its path.
        why: what is wrong with it.
    """

    def __init__(self, shard: str, why: str) -> None:
        super().__init__(shard, why)
        self.shard = shard
        self.why = why

    def __str__(self) -> str:
        return (
            f"shard {self.shard}: {self.why}. Restore it, or set data.on_bad_shard=skip to go on "
            "without its samples"
        )


class _Places(NamedTuple):
    """What a marker says of a shard's samples, in arrays: markers of 10,000 samples are large."""

    offsets: np.ndarray
    crc32: np.ndarray


class ShardSet:
    """The shards of a mixture, opened where they are used (a loader's worker).

    Args:
        mixture: markers must agree with its indexes.
        cache: on this node, for whole shards.
    """

    def __init__(self, mixture: Mixture, cache: ShardCache | None = None) -> None:
        self._mixture = mixture
        self._cache = cache
        self._places = functools.lru_cache(maxsize=_MARKERS)(self._read_places)

    def path(self, shard: int) -> str:
        return self._mixture.tar_path(shard)

    def notes(self) -> list[str]:
        """What the cache has to tell."""
        return self._cache.notes() if self._cache else []

    def read(self, run: Run) -> list[StoredSample | Reject]:
        """The samples of a run, by one ranged read.

        Bytes that differ from what the marker says are read once more, since the way here may have
        damaged them. Samples that still differ are rejects.

        Raises:
            BadShard: the shard cannot be used.
        """
        shard, start, stop, passage = run.shard, run.start, run.stop, run.passage
        try:
            offsets, crc32 = self._places(shard)
            bounds, sums = offsets[start : stop + 1].tolist(), crc32[start:stop].tolist()
            parts = self._parts(shard, bounds, afresh=False)
            found = [checksum(part) for part in parts]
            if found != sums:
                retries.count()
                parts = self._parts(shard, bounds, afresh=True)
                found = [checksum(part) for part in parts]
        except (OSError, ValueError) as error:
            raise BadShard(self.path(shard), " ".join(str(error).split())) from error
        samples: list[StoredSample | Reject] = []
        for number, part, crc, expected in zip(range(start, stop), parts, found, sums, strict=True):
            where = f"{self.path(shard)} sample {number}"
            if crc == expected:
                samples.append(StoredSample(where, part, passage))
            else:
                detail = f"{where}: crc32 {crc:08x}, {expected:08x} in the shard's marker"
                samples.append(Reject("?", DAMAGED, detail))
        return samples

    def _parts(self, shard: int, bounds: list[int], afresh: bool) -> list[memoryview]:
        """The bytes between neighbouring bounds; `afresh`: from the store, whatever is cached."""
        data = None
        _, entry = self._mixture.shard(shard)
        first, last = bounds[0], bounds[-1]
        if self._cache and afresh:
            self._cache.forget(entry.sha256)
        elif self._cache:
            path = self.path(shard)
            data = self._cache.read_range(path, entry.bytes, entry.sha256, first, last)
        if data is None:
            data = storage.read_range(self.path(shard), first, last)
        view = memoryview(data)  # whose slices copy nothing
        return [view[begin - first : end - first] for begin, end in itertools.pairwise(bounds)]

    def _read_places(self, shard: int) -> _Places:
        """Raises OSError or ValueError: what is there is not the shard that the index names."""
        folder, entry = self._mixture.shard(shard)
        marker = read_marker(folder, entry.name)
        if (marker.samples, marker.sha256) != (entry.samples, entry.sha256):
            raise ValueError(
                "its marker does not agree with the index; build the shards again, or take both "
                "from one build"
            )
        # Here and not where the missing bytes would be read, so that all streams find the same.
        size = storage.size(self.path(shard))
        if size != entry.bytes:
            raise ValueError(f"{size} bytes, {entry.bytes} in the index")
        return _Places(np.array(marker.offsets, np.int64), np.array(marker.crc32, np.uint32))


class _Spares:
    """Samples of one block that may stand in for others, from half a block further on.

    What turns out to be broken becomes a reject in its place, so that it is not decoded again;
    whether it was tried before changes nothing of what stands in for what.

    Args:
        samples: of a block, in its order; those that can be read are meant.
    """

    def __init__(self, samples: list[StoredSample | Reject | Unreadable]) -> None:
        self._samples = samples
        self._places = [n for n, one in enumerate(samples) if isinstance(one, StoredSample)]

    def __len__(self) -> int:
        return len(self._places)

    @property
    def are_few(self) -> bool:
        """Whether half of the block or more is lost: the rest would be shown over and over."""
        return 2 * len(self) <= len(self._samples)

    def take(
        self, place: int, decode: Callable[[RawSample, int], T], tries: int | None = None
    ) -> T | None:
        """The first one that can be decoded, of `tries` or of all, for the sample at a place."""
        count = len(self)
        for number in range(count if tries is None else min(tries, count)):
            found = self._decode((place + count // 2 + number) % count, decode)
            if found is not None:
                return found
        return None

    def try_some(self, decode: Callable[[RawSample, int], Any]) -> tuple[int, int]:
        """How many of a few can be decoded, and of how many."""
        tried = min(_STAND_INS, len(self))
        return sum(self._decode(number, decode) is not None for number in range(tried)), tried

    def _decode(self, number: int, decode: Callable[[RawSample, int], T]) -> T | None:
        spare = self._samples[self._places[number]]
        if isinstance(spare, StoredSample):
            try:
                return _decode(spare, decode)
            except _Refused as refused:
                self._samples[self._places[number]] = refused.reject
        return None


class StoredBlock:
    """A block as it was read, and what stands in for its samples that cannot be used.

    Args:
        samples: in the order in which they are given out.
        others: spares of blocks nearby, the best first; read when they are asked for.
        retries: that it took.
        notes: for people.
    """

    def __init__(
        self,
        samples: list[StoredSample | Reject | Unreadable],
        others: Iterator[_Spares],
        retries: int,
        notes: list[str],
    ) -> None:
        self.samples = samples
        self.retries = retries
        self.notes = notes
        self._spares = _Spares(samples)
        self._others = others
        self._other: _Spares | None = None

    def stand_in(self, place: int, decode: Callable[[RawSample, int], T]) -> T | None:
        """What is given instead of the sample at a place, or None if there is nothing.

        It is one of the next in the block itself, unless they are broken too; then one of another
        block, the same for all of this one, wherever in it a run begins; else whatever is left.
        """
        if not self._spares.are_few:
            found = self._spares.take(place, decode, _STAND_INS)
            if found is not None:
                return found
        if self._other is None:
            self._other = _first_good(self._others, decode)
        found = self._other.take(place, decode) if self._other else None
        return self._spares.take(place, decode) if found is None else found


def _first_good(
    blocks: Iterable[_Spares], decode: Callable[[RawSample, int], Any]
) -> _Spares | None:
    """The first block of which more than half can be decoded, else one of which anything can."""
    some = None
    for spares in blocks:
        good, tried = spares.try_some(decode)
        if 2 * good > tried:
            return spares
        if good and some is None:
            some = spares
    return some


# Shards (by number) that one stream does not try again in this epoch, and why. Each stream finds
# out for itself, so that what it gives does not depend on which other streams its worker reads.
Quarantine = dict[int, str]


class BlockReader:
    """Reads blocks of the plan; threads may share it.

    Args:
        shards: where from.
        plan: of the run.
        skip_bad_shards: quarantine them; else they are errors.
    """

    def __init__(self, shards: ShardSet, plan: Plan, skip_bad_shards: bool) -> None:
        self.plan = plan
        self._shards = shards
        self._skip = skip_bad_shards

    def read(self, epoch: int, stream: int, position: int, quarantine: Quarantine) -> StoredBlock:
        """The block that holds a position of a stream, with what may stand in for its samples.

        Raises:
            BadShard: a shard cannot be used, and bad ones are not skipped.
        """
        with retries.counted() as counter:
            samples = self._samples(epoch, stream, position, quarantine)
            # The next block may be read before somebody asks for more of these, or after that: what
            # they find out of shards then must not change what it gives.
            known = dict(quarantine)
            others = self._others(epoch, stream, position, known)
            if _Spares(samples).are_few:
                ahead = list(itertools.islice(others, 1))
                others = itertools.chain(ahead, others)
                quarantine.update(known)
        return StoredBlock(samples, others, counter.count, self._shards.notes())

    def _samples(
        self, epoch: int, stream: int, position: int, quarantine: Quarantine
    ) -> list[StoredSample | Reject | Unreadable]:
        block = self.plan.block(epoch, stream, position)
        stored = [sample for run in block.runs for sample in self._run(run, quarantine)]
        return [stored[place] for place in block.order]

    def _run(
        self, run: Run, quarantine: Quarantine
    ) -> Iterable[StoredSample | Reject | Unreadable]:
        if run.shard not in quarantine:
            try:
                return self._shards.read(run)
            except BadShard as error:
                if not self._skip:
                    raise
                quarantine[run.shard] = error.why
        lost = Unreadable(self._shards.path(run.shard), quarantine[run.shard])
        return itertools.repeat(lost, run.stop - run.start)

    def _others(
        self, epoch: int, stream: int, position: int, quarantine: Quarantine
    ) -> Iterator[_Spares]:
        """Spares of the blocks nearby: first of those of which more than half can be read.

        Which blocks are tried must not depend on what is known of their shards: a run that goes on
        here knows nothing.
        """
        few = []  # read again if they are needed, rather than held
        for other, place in self._nearby(stream, position):
            spares = _Spares(self._samples(epoch, other, place, quarantine))
            if not spares.are_few:
                yield spares
            elif len(spares):
                few.append((other, place))
        for other, place in few:
            yield _Spares(self._samples(epoch, other, place, quarantine))

    def _nearby(self, stream: int, position: int) -> Iterable[tuple[int, int]]:
        """Other blocks, as (stream, position), on the line of all streams: before this one and
        behind it, ever further away, so that few tries lead out of any row of bad shards.
        """
        length, size = self.plan.stream_length, self.plan.block_size
        line = length * self.plan.streams
        _, first, _ = self.plan.block_at(stream, position)
        found = {(stream, first): None}  # in order
        for number in range(_BLOCKS_TRIED // 2):
            for distance in (-(size << number), size << number):
                other, place = divmod((stream * length + first + distance) % line, length)
                found[other, self.plan.block_at(other, place)[1]] = None
        return itertools.islice(found, 1, None)


class Span(NamedTuple):
    """Positions [start, stop) of a stream in one epoch."""

    epoch: int
    start: int
    stop: int


def read_stream(
    reader: BlockReader,
    background: Background,
    stream: int,
    spans: Iterable[Span],
    decode: Callable[[RawSample, int], T],
) -> Iterator[tuple[T, Tally]]:
    """The samples of one stream in the given spans, decoded; its first block is being read at once.

    A sample that cannot be used is replaced by one half a block further on in the block's order, so
    that batches keep their size on every rank, and the two seldom meet in one step; if there is
    none, by one of a block nearby.

    Args:
        decode: makes a training sample of a raw one and the pass that it is read in; raises
            BadImage or another ValueError if it cannot.

    Yields:
        (decoded sample, what is to be told of it). Every broken sample is told of once an epoch: in
        its own place, not where it was tried as a stand-in.

    Raises:
        BadShard: a shard cannot be used, and bad ones are not skipped.
        ValueError: nothing around a broken sample could be read and decoded either.
    """
    # One fetch at a time: the next begins when the one before has been taken.
    fetches = (
        (part, background.start(functools.partial(reader.read, *place, quarantine)))
        for part, place, quarantine in _cut(reader.plan, stream, spans)
    )
    return _give(reader.plan, stream, next(fetches, None), fetches, decode)


def _cut(
    plan: Plan, stream: int, spans: Iterable[Span]
) -> Iterator[tuple[Span, tuple[int, int, int], Quarantine]]:
    """Spans cut at the blocks' ends, what `Plan.block` calls each block, and its quarantine."""
    for epoch, start, stop in spans:
        quarantine: Quarantine = {}
        while start < stop:
            _, _, last = plan.block_at(stream, start)
            yield Span(epoch, start, min(last, stop)), (epoch, stream, start), quarantine
            start = last


def _give(
    plan: Plan,
    stream: int,
    ahead: tuple[Span, Future[StoredBlock]] | None,
    fetches: Iterator[tuple[Span, Future[StoredBlock]]],
    decode: Callable[[RawSample, int], T],
) -> Iterator[tuple[T, Tally]]:
    while ahead is not None:
        span, fetch = ahead
        block = fetch.result()
        ahead = None
        tally = Tally(Ledger(retries=block.retries), notes=block.notes)
        _, first, _ = plan.block_at(stream, span.start)
        for place in range(span.start - first, span.stop - first):
            yield _decode_with_stand_in(block, place, decode, tally), tally
            # Not before the first sample: other streams' first blocks, or this one's decoding,
            # would have to wait.
            ahead = ahead or next(fetches, None)
            tally = Tally()


def _decode_with_stand_in(
    block: StoredBlock,
    place: int,
    decode: Callable[[RawSample, int], T],
    tally: Tally,
) -> T:
    """The sample at a place, or what stands in for it; `tally` is told of it."""
    ledger = tally.ledger
    ledger.read += 1
    own = block.samples[place]
    if isinstance(own, StoredSample):
        try:
            return _decode(own, decode)
        except _Refused as refused:
            own = block.samples[place] = refused.reject
    if isinstance(own, Unreadable):
        ledger.rejected[UNREADABLE] = 1
        ledger.quarantined[own.shard] = own.why
    else:
        ledger.rejected[own.reason] = 1
        tally.rejects.append(own)
    with retries.counted() as counter:
        found = block.stand_in(place, decode)
    ledger.retries += counter.count
    if found is None:
        what = f"{own.shard}: {own.why}" if isinstance(own, Unreadable) else own.detail
        raise ValueError(
            f"nothing can stand in for a broken sample: neither its block of {len(block.samples)} "
            f"nor any of up to {_BLOCKS_TRIED} around it has one that can be used. It is {what}. "
            "See what is broken with `hnpretrain shard verify`, and restore those shards or make "
            "the data set without them"
        )
    return found


class _Refused(Exception):
    def __init__(self, reject: Reject) -> None:
        super().__init__(reject)
        self.reject = reject


def _decode(stored: StoredSample, decode: Callable[[RawSample, int], T]) -> T:
    where, data, passage = stored
    key = "?"
    try:
        raw = decode_sample(data)
        key = raw.key
        return decode(raw, passage)
    except BadImage as error:
        raise _Refused(Reject(key, error.reason, f"{where}: {error.detail}")) from error
    except ValueError as error:
        raise _Refused(Reject(key, "bad_member", f"{where}: {error}")) from error
