"""What is worked out once for all captions of an image: some images have ten thousand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from shard_tools.negatives.captions import SampleText

T = TypeVar("T")


class OfSample(Generic[T]):
    """A function of a sample that remembers the last one: captions come sample by sample."""

    def __init__(self, compute: Callable[[SampleText], T]) -> None:
        self._compute = compute
        self._last: tuple[SampleText, T] | None = None

    def __call__(self, sample: SampleText) -> T:
        if self._last is None or self._last[0] is not sample:
            self._last = sample, self._compute(sample)
        return self._last[1]
