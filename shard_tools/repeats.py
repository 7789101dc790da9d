"""How many texts of a data set occur more than once, counted in bounded memory.

Texts are counted by a 64-bit hash. When there are too many distinct ones, only those are kept on
whose hash ends in a zero bit, then in two, and so on: a text is in the sample with all its
occurrences or with none, so that shares of the sample estimate those of the whole.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping

# Distinct texts up to which the counts are exact; about 90 bytes each.
MOST_TEXTS = 1_000_000


class Repeats:
    """Counts how often texts occur, as captions and as negatives; two are added up by `update`."""

    def __init__(self, most: int = MOST_TEXTS) -> None:
        self._most = most
        self._zeros = 0  # a text is counted if its hash ends in so many zero bits
        self._captions: Counter[int] = Counter()
        self._negatives: Counter[int] = Counter()

    def add(self, text: str, negative: bool) -> None:
        digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        number = int.from_bytes(digest, "big")
        if not number & self._mask():
            (self._negatives if negative else self._captions)[number] += 1
            self._shrink()

    def update(self, other: Repeats) -> None:
        if other._zeros > self._zeros:
            self._zeros = other._zeros
            self._keep()
        mask = self._mask()
        for mine, others in (
            (self._captions, other._captions),
            (self._negatives, other._negatives),
        ):
            mine.update({number: n for number, n in others.items() if not number & mask})
        self._shrink()

    def _shrink(self) -> None:
        while len(self._captions) + len(self._negatives) > self._most:
            self._zeros += 1
            self._keep()

    def _keep(self) -> None:
        mask = self._mask()
        for counts in (self._captions, self._negatives):
            for number in [number for number in counts if number & mask]:
                del counts[number]

    def _mask(self) -> int:
        return (1 << self._zeros) - 1

    def shares(self) -> dict[str, float]:
        """Shares of all captions, or of all negatives; repeats of a text count each time."""
        captions, negatives = self._captions, self._negatives
        return {
            "captions_that_recur": _share(_recurring(captions), captions.total()),
            "negatives_that_recur": _share(_recurring(negatives), negatives.total()),
            "negatives_that_are_captions_elsewhere": _share(
                sum(count for text, count in negatives.items() if text in captions),
                negatives.total(),
            ),
            "share_of_texts_looked_at": 0.5**self._zeros,
        }


def _recurring(counts: Mapping[int, int]) -> int:
    return sum(count for count in counts.values() if count > 1)


def _share(part: int, whole: int) -> float:
    return part / max(whole, 1)
