"""What the captions and negatives of a data set say: `hnpretrain shard stats --words`.

1. Shards are drawn, or all are taken; of each only the KEY.json members are read, since the
   marker's offsets say where samples begin, and a tar header where its member ends.
2. Each shard is counted into a `TextStats` by some worker, and these are added up in the order of
   the shards, so that the number of workers changes nothing.
3. Memory is bounded: histograms are small, of the exchanges (from -> to) the frequent ones are
   kept, and for repeats see `Repeats`.
"""

from __future__ import annotations

import random
import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import IO, Any

from hnpretrain.shards import storage
from hnpretrain.shards.index import Index
from hnpretrain.shards.marker import read_marker
from hnpretrain.shards.schema import Caption, Negative, parse_metadata
from shard_tools.negatives.english import plain
from shard_tools.parallel import Progress, each_shard
from shard_tools.repeats import Repeats

# Distinct exchanges that are kept.
MOST_EXCHANGES = 500_000
# Captions with this many negatives or more are one row.
MOST_NEGATIVES = 4
NEGATIVES = ("0", "1", "2", "3", "4 or more")
# A word must be exchanged this often before its two directions are compared.
SEEN = 100
# Longer words are phrases, of which only the beginning is kept.
_LONGEST_WORD = 60
_NAMED = 20

Exchange = tuple[str, str, str]  # concept, from, to


@dataclass
class TextStats:
    """Counts over samples; two are added up by `update`.

    Attributes:
        shards: shards read.
        samples: samples read.
        unreadable: samples that are not of format 1, not counted in the rest.
        unreadable_named: the first of them, with what is wrong.
        pairs: (concept, strategy) to negatives.
        coverage: concept to number of its negatives (4: or more) to captions; at least 1.
        covered: number of negatives of whatever concept (4: or more) to captions.
        caption_words, negative_words: length in words to texts.
        exchanges: (concept, from, to), in lower case, to negatives. Edits that only move words
            leave none and enter none, and are not here.
        dropped: negatives whose exchange was rare, and was dropped from `exchanges` for memory.
        repeats: how often texts occur, compared without case, space and punctuation.
    """

    shards: int = 0
    samples: int = 0
    unreadable: int = 0
    unreadable_named: list[str] = field(default_factory=list)
    pairs: Counter[tuple[str, str]] = field(default_factory=Counter)
    coverage: dict[str, Counter[int]] = field(default_factory=dict)
    covered: Counter[int] = field(default_factory=Counter)
    caption_words: Counter[int] = field(default_factory=Counter)
    negative_words: Counter[int] = field(default_factory=Counter)
    exchanges: Counter[Exchange] = field(default_factory=Counter)
    dropped: int = 0
    repeats: Repeats = field(default_factory=Repeats)

    def add(self, caption: Caption) -> None:
        words = plain(caption.text)
        self.repeats.add(words, negative=False)
        self.caption_words[_length(words)] += 1
        self.covered[min(len(caption.negatives), MOST_NEGATIVES)] += 1
        for concept, count in Counter(n.concept for n in caption.negatives).items():
            self.coverage.setdefault(concept, Counter())[min(count, MOST_NEGATIVES)] += 1
        for negative in caption.negatives:
            self._add_negative(negative)

    def _add_negative(self, negative: Negative) -> None:
        words = plain(negative.text)
        self.repeats.add(words, negative=True)
        self.negative_words[_length(words)] += 1
        self.pairs[negative.concept, negative.strategy] += 1
        left, entered = plain(negative.source), plain(negative.target)
        if sorted(left.split()) != sorted(entered.split()):
            self.exchanges[negative.concept, left[:_LONGEST_WORD], entered[:_LONGEST_WORD]] += 1
            self._shrink()

    def update(self, other: TextStats) -> None:
        self.shards += other.shards
        self.samples += other.samples
        self.unreadable += other.unreadable
        self.unreadable_named = [*self.unreadable_named, *other.unreadable_named][:_NAMED]
        self.pairs.update(other.pairs)
        for concept, counts in other.coverage.items():
            self.coverage.setdefault(concept, Counter()).update(counts)
        self.covered.update(other.covered)
        self.caption_words.update(other.caption_words)
        self.negative_words.update(other.negative_words)
        self.exchanges.update(other.exchanges)
        self.dropped += other.dropped
        self.repeats.update(other.repeats)
        self._shrink()

    def _shrink(self) -> None:
        if len(self.exchanges) > MOST_EXCHANGES:
            ranked = sorted(self.exchanges.items(), key=lambda item: (-item[1], item[0]))
            kept, rest = ranked[: MOST_EXCHANGES // 2], ranked[MOST_EXCHANGES // 2 :]
            self.exchanges = Counter(dict(kept))
            self.dropped += sum(count for _, count in rest)

    @property
    def captions(self) -> int:
        return self.covered.total()

    @property
    def negatives(self) -> int:
        return self.pairs.total()

    def words(self, concept: str) -> dict[str, tuple[int, int]]:
        """Word to how often it was left and how often it was entered, the most frequent first."""
        counts: dict[str, list[int]] = {}
        for (of, left, entered), count in self.exchanges.items():
            if of == concept:
                counts.setdefault(left, [0, 0])[0] += count
                counts.setdefault(entered, [0, 0])[1] += count
        ranked = sorted(counts.items(), key=lambda item: (-sum(item[1]), item[0]))
        return {word: (left, entered) for word, (left, entered) in ranked}

    def guess(self, concept: str) -> float | None:
        """How often the changed words alone tell a negative from its caption, at best.

        Told a word that was left or entered, the best guess is what happened to it more often. 0.5
        means that nothing is given away. Words exchanged fewer than SEEN times are left out, since
        chance alone makes them uneven; None if there is no other.
        """
        counts = [pair for pair in self.words(concept).values() if sum(pair) >= SEEN]
        if not counts:
            return None
        return sum(max(pair) for pair in counts) / sum(sum(pair) for pair in counts)

    def to_json(self) -> dict[str, Any]:
        concepts = sorted({concept for concept, _ in self.pairs})
        return {
            "shards": self.shards,
            "samples": self.samples,
            "captions": self.captions,
            "negatives": self.negatives,
            "unreadable": self.unreadable,
            "unreadable_named": self.unreadable_named,
            "concept_and_strategy": [
                {"concept": concept, "strategy": strategy, "negatives": count}
                for (concept, strategy), count in sorted(self.pairs.items())
            ],
            "captions_by_number_of_negatives": {
                name: dict(zip(NEGATIVES, row, strict=True)) for name, row in self.coverage_rows()
            },
            "words": {
                "captions": lengths(self.caption_words),
                "negatives": lengths(self.negative_words),
            },
            "guess_from_the_word": {concept: self.guess(concept) for concept in concepts},
            "exchanges": [
                {"concept": concept, "from": left, "to": entered, "negatives": count}
                for (concept, left, entered), count in sorted(
                    self.exchanges.items(), key=lambda item: (item[0][0], -item[1], item[0])
                )
            ],
            "exchanges_dropped": self.dropped,
            "repeats": self.repeats.shares(),
        }

    def coverage_rows(self) -> Iterator[tuple[str, list[int]]]:
        """(concept or 'any', captions with so many negatives of it as NEGATIVES says)."""
        yield "any", [self.covered[number] for number in range(MOST_NEGATIVES + 1)]
        for concept, counts in sorted(self.coverage.items()):
            some = [counts[number] for number in range(1, MOST_NEGATIVES + 1)]
            yield concept, [self.captions - sum(some), *some]


def read_text_stats(
    folder: str,
    index: Index,
    samples: int | None,
    seed: int,
    workers: int,
    progress: Progress | None = None,
) -> TextStats:
    """Reads the texts of a data set's shards.

    Args:
        folder: a folder or URL of shards.
        index: its index, or the sum of its markers.
        samples: whole shards are drawn until they hold so many; None: all.
        seed: of the draw.
        workers: processes.
        progress: is called with the number of shards done and that of all.

    Raises:
        OSError: a shard can't be read.
        ValueError: a broken marker.
    """
    names = _drawn(index, samples, seed)
    stats = TextStats()
    for other in each_shard(partial(read_shard, folder), names, workers, progress):
        stats.update(other)
    return stats


def _drawn(index: Index, samples: int | None, seed: int) -> list[str]:
    shards = list(index.shards)
    if samples is not None:
        random.Random(seed).shuffle(shards)
        held = 0
        for number, shard in enumerate(shards):
            if held >= samples:
                del shards[number:]
                break
            held += shard.samples
    return sorted(shard.name for shard in shards)


def read_shard(folder: str, name: str) -> TextStats:
    """The counts of one shard."""
    stats = TextStats(shards=1)
    offsets = read_marker(folder, name).offsets
    with storage.open_read(storage.join(folder, name)) as file:
        tar = _Forward(file)
        for number, (start, stop) in enumerate(pairwise(offsets)):
            try:
                captions, _ = parse_metadata(_read_json(tar, start, stop))
            except (ValueError, tarfile.HeaderError) as error:
                stats.unreadable += 1
                if len(stats.unreadable_named) < _NAMED:
                    stats.unreadable_named.append(f"{name}: sample {number}: {error}")
                continue
            stats.samples += 1
            for caption in captions:
                stats.add(caption)
    return stats


def _read_json(tar: _Forward, start: int, stop: int) -> bytes:
    """The KEY.json member of the sample in [start, stop)."""
    while start < stop:
        tar.skip_to(start)
        info = tarfile.TarInfo.frombuf(tar.read(tarfile.BLOCKSIZE), "utf-8", "surrogateescape")
        start += tarfile.BLOCKSIZE
        if info.size < 0:
            raise ValueError("a member of negative size")
        if info.name.endswith(".json"):
            return tar.read(min(info.size, stop - start))
        start += -(-info.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
    raise ValueError("no .json member")


class _Forward:
    """A file from front to back; where it can seek, what is skipped is not read."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._position = 0

    def read(self, size: int) -> bytes:
        data = self._file.read(size)
        self._position += len(data)
        return data

    def skip_to(self, position: int) -> None:
        if self._file.seekable():
            self._file.seek(position)
            self._position = position
        while self._position < position and self.read(min(position - self._position, 2**20)):
            pass


def lengths(counts: Mapping[int, int]) -> dict[str, float]:
    """Mean and percentiles of a histogram (length to texts); zeros if it is empty."""
    total = sum(counts.values())
    mean = sum(length * count for length, count in counts.items()) / max(total, 1)
    return {"mean": mean} | {
        f"p{percent}": _percentile(counts, total * percent / 100) for percent in (50, 90, 99)
    }


def _percentile(counts: Mapping[int, int], rank: float) -> int:
    """The smallest length that at least `rank` texts do not exceed."""
    held = 0
    for length in sorted(counts):
        held += counts[length]
        if held >= rank:
            return length
    return 0


def _length(words: str) -> int:
    return words.count(" ") + 1 if words else 0
