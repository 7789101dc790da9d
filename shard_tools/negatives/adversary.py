"""An adversary that judges by text alone, and thins negatives until it is at chance.

In the manner of SugarCrepe (Hsieh et al., NeurIPS 2023, section 3.3), for negatives that
frequencies cannot make unguessable (swaps, shuffles, negations):

1. A logistic regression on word 1-3-grams learns to tell negatives from captions, on one half of
   the images for use on the other.
2. The gap of a negative is how much more it looks like one than its caption does. In each bin of
   |gap|, negatives that it sees through are thinned to the number of those that mislead it, or the
   other way round: then the sign of the gap says nothing.
3. What is left teaches the next round's classifier, which finds what the last one missed.

What is dropped depends on the image's texts, its key and the seed alone, never on other samples.
"""

from __future__ import annotations

import hashlib
import random
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from shard_tools.negatives import english

_FEATURES = 2**18
_BINS = 12


@dataclass(frozen=True)
class Judged:
    """A negative beside its caption.

    Attributes:
        image: the first caption of their image, which says on which half it is.
        caption: the caption.
        negative: its negative.
    """

    image: str
    caption: str
    negative: str


class Adversary:
    """What was learned; see the module's text.

    Attributes:
        digest: sha256 hex of the contents.
    """

    def __init__(self, weights: np.ndarray, edges: np.ndarray, keep: np.ndarray) -> None:
        """Args:
        weights: [rounds, 2, features] of the classifier for either half of the images.
        edges: [rounds, bins - 1] between the bins of |gap|, rising.
        keep: [rounds, 2, bins] share kept of negatives that mislead (0) and that are seen
            through (1).
        """
        self._weights, self._edges, self._keep = weights, edges, keep
        self.digest = hashlib.sha256(self.to_bytes()).hexdigest()

    def to_bytes(self) -> bytes:
        """The file's content (safetensors)."""
        tensors = {"weights": self._weights, "edges": self._edges, "keep": self._keep}
        return save(
            {name: np.ascontiguousarray(value, np.float32) for name, value in tensors.items()}
        )

    @classmethod
    def from_bytes(cls, data: bytes, where: str) -> Adversary:
        """Reads a file's content; ValueError, which names `where`, if it is none."""
        try:
            tensors = load(data)
            weights, edges, keep = (tensors[name] for name in ("weights", "edges", "keep"))
        except (SafetensorError, KeyError, ValueError) as error:
            raise ValueError(f"{where}: no adversary ({error})") from error
        rounds = weights.shape[:1]
        fits = (
            weights.shape == (*rounds, 2, _FEATURES)
            and edges.shape == (*rounds, _BINS - 1)
            and keep.shape == (*rounds, 2, _BINS)
            and all(np.isfinite(each).all() for each in (weights, edges, keep))
        )
        if not fits:
            raise ValueError(f"{where}: an adversary of another format; learn it again")
        return cls(weights, edges, keep)

    def spares(self, pair: Judged, generator: random.Random) -> bool:
        """Whether the negative is kept."""
        gained, lost = _difference(pair)
        half = _half(pair.image)
        for weights, edges, keep in zip(self._weights, self._edges, self._keep, strict=True):
            gap = float(weights[half, gained].sum() - weights[half, lost].sum())
            if gap == 0:
                continue  # it knows none of the words that changed
            share = keep[int(gap > 0), np.searchsorted(edges, abs(gap))]
            if generator.random() >= share:
                return False
        return True


def learn(pairs: Sequence[Judged], rounds: int, seed: int) -> Adversary:
    """Learns an adversary from negatives that were made without one.

    Raises:
        ValueError: too few pairs, or all of one half of the images.
    """
    left = list(pairs)
    generator = random.Random(seed)
    weights, edges, keep = [], [], []
    for number in range(rounds):
        sides = [[pair for pair in left if _half(pair.image) == half] for half in (0, 1)]
        if min(map(len, sides)) < 10 * _BINS:
            raise ValueError(
                f"round {number + 1} of the adversary has {len(left)} negatives left, too few to "
                "learn from; give it more captions, or fewer rounds"
            )
        # Half h is judged by what was learned on the other.
        fitted = np.stack([_fit(sides[1]), _fit(sides[0])])
        gaps = np.array([_gap(fitted[_half(pair.image)], pair) for pair in left])
        edge = np.quantile(np.abs(gaps), np.arange(1, _BINS) / _BINS)
        bins = np.searchsorted(edge, np.abs(gaps))
        counts = np.stack(
            [np.bincount(bins[side], minlength=_BINS) for side in (gaps < 0, gaps > 0)]
        )
        share = np.minimum(1, counts[::-1] / np.maximum(counts, 1))
        weights.append(fitted)
        edges.append(edge)
        keep.append(share)
        drawn = [generator.random() for _ in left]
        kept = (gaps == 0) | (np.array(drawn) < share[(gaps > 0).astype(int), bins])
        left = [pair for pair, stays in zip(left, kept, strict=True) if stays]
    return Adversary(*(np.asarray(each, np.float32) for each in (weights, edges, keep)))


def _fit(pairs: Sequence[Judged]) -> np.ndarray:
    from scipy.sparse import csr_matrix
    from sklearn.linear_model import LogisticRegression

    rows = [sorted(set(_ngrams(text))) for pair in pairs for text in (pair.caption, pair.negative)]
    ends = np.cumsum([0, *map(len, rows)])
    features = csr_matrix(
        (np.ones(ends[-1], np.float32), np.concatenate(rows), ends), (len(rows), _FEATURES)
    )
    labels = np.tile([0, 1], len(pairs))
    model = LogisticRegression(solver="liblinear", random_state=0).fit(features, labels)
    return model.coef_[0].astype(np.float32)


def _gap(weights: np.ndarray, pair: Judged) -> float:
    gained, lost = _difference(pair)
    return float(weights[gained].sum() - weights[lost].sum())


def _difference(pair: Judged) -> tuple[list[int], list[int]]:
    """The features that the negative has and its caption lacks, and the other way round."""
    before, after = set(_ngrams(pair.caption)), set(_ngrams(pair.negative))
    return sorted(after - before), sorted(before - after)


def _ngrams(text: str) -> Iterator[int]:
    words = english.Words(text).lower
    for length in (1, 2, 3):
        for start in range(len(words) - length + 1):
            yield zlib.crc32(" ".join(words[start : start + length]).encode()) % _FEATURES


def _half(image: str) -> int:
    return zlib.crc32(image.encode()) & 1
