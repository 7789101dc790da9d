"""What markers tell of captions: counted where shards are written, indexed and checked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from hnpretrain.shards.schema import Caption


class CaptionCounts:
    """Counts of the captions of a shard's samples."""

    def __init__(self) -> None:
        self._captions = 0
        self._captions_with_negatives = 0
        self._max_negatives = 0
        self._concepts: Counter[str] = Counter()
        self._strategies: Counter[str] = Counter()

    def add(self, captions: Iterable[Caption]) -> None:
        """Counts the captions of one sample."""
        for caption in captions:
            self._captions += 1
            self._captions_with_negatives += bool(caption.negatives)
            self._max_negatives = max(self._max_negatives, len(caption.negatives))
            self._concepts.update(negative.concept for negative in caption.negatives)
            self._strategies.update(negative.strategy for negative in caption.negatives)

    def fields(self) -> dict[str, Any]:
        """The counts by the names of a marker's fields."""
        return {
            "captions": self._captions,
            "captions_with_negatives": self._captions_with_negatives,
            "negatives": self._concepts.total(),
            "max_negatives": self._max_negatives,
            "concepts": sorted_counts(self._concepts),
            "strategies": sorted_counts(self._strategies),
        }


def sorted_counts(counts: Counter[str]) -> dict[str, int]:
    """By name."""
    return dict(sorted(counts.items()))
