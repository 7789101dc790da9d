"""Speed and quality of negatives: ours by preset, and the recipes that users take today.

1. The captions' word frequencies are counted, as `shard build` does first.
2. On one core, all makers take turns on the same blocks of images, so that whatever else the
   machine does slows them alike.
3. What they made goes through the text-only test (`text_test`), over all concepts and each alone.
"""

from __future__ import annotations

import contextlib
import gc
import os
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from hnpretrain.bench.captions import read_coco_captions
from shard_tools.bench.recipes import NegClip, Recipe, Tsvlc
from shard_tools.bench.text_test import FOLDS, Pair, auc
from shard_tools.negatives import (
    CaptionedSample,
    FrequencyTable,
    NegativeMaker,
    NegativeSettings,
    frequency_counter,
    needs_frequencies,
)

# Images that each maker takes in its turn: a second or so of work.
_BLOCK = 250
# As many samples go through `NegativeMaker.make` at once as in the job.
_BATCH = 64
_COVERAGE = (1, 2, 3)


@dataclass
class Row:
    """One maker's line of the table.

    Attributes:
        name: the preset or recipe.
        seconds: of one core, for all captions.
        count_seconds: of one core, for counting all captions' word frequencies before.
        captions: how many.
        by_count: captions by how many negatives they got.
        pairs: what was made, by concept ('' for recipes, which know none).
    """

    name: str
    seconds: float = 0.0
    count_seconds: float = 0.0
    captions: int = 0
    by_count: Counter[int] = field(default_factory=Counter)
    pairs: dict[str, list[Pair]] = field(default_factory=lambda: defaultdict(list))

    @property
    def rate(self) -> float:
        """Captions a second of one core."""
        return self.captions / self.seconds

    def coverage(self, least: int) -> float:
        """Share of captions with at least so many negatives."""
        return sum(n for count, n in self.by_count.items() if count >= least) / self.captions

    def auc(self) -> dict[str, float | None]:
        """Text-only AUC over all, under '', and by concept; None where images are too few."""
        everything = [pair for pairs in self.pairs.values() for pair in pairs]
        tested = {"": everything, **{name: pairs for name, pairs in self.pairs.items() if name}}
        return {
            name: auc(pairs) if len({pair.image for pair in pairs}) >= FOLDS else None
            for name, pairs in tested.items()
        }


def read_samples(path: str) -> list[CaptionedSample]:
    """The images of a COCO captions json (also gzipped), by id, with their captions.

    Raises:
        ValueError: it is no such file.
    """
    images = sorted(read_coco_captions(path).items())
    return [CaptionedSample(f"{key:012d}", tuple(captions)) for key, captions in images]


def compare(
    samples: Sequence[CaptionedSample], settings: Sequence[NegativeSettings], seed: int
) -> list[Row]:
    """Runs every preset and both recipes on one core; recipes come first."""
    recipes: list[Recipe] = [NegClip(settings[0].spacy_model, seed), Tsvlc(seed)]
    rows = [Row(recipe.name) for recipe in recipes]
    makers = []
    for each in settings:
        row = Row(f"ours: {each.preset}")
        table = None
        if needs_frequencies(each):
            start = time.perf_counter()
            table = _count(samples, each)
            row.count_seconds = time.perf_counter() - start
        makers.append(NegativeMaker(each, seed, table))
        rows.append(row)
    with _one_core():
        for start in range(0, len(samples), _BLOCK):
            block = samples[start : start + _BLOCK]
            gc.freeze()  # no maker pays for collecting what this bench and the others keep
            # The first block comes once more before: memory, caches and models are warm then.
            for warm_up in (True, False) if start == 0 else (False,):
                for recipe, row in zip(recipes, rows, strict=False):
                    _run_recipe(recipe, block, Row("") if warm_up else row)
                for maker, row in zip(makers, rows[len(recipes) :], strict=True):
                    _run_maker(maker, block, Row("") if warm_up else row)
    return rows


def _count(samples: Sequence[CaptionedSample], settings: NegativeSettings) -> FrequencyTable:
    counter = frequency_counter(settings)
    for sample in samples:
        counter.add(sample.captions, sample.objects)
    return counter.table()


def _run_recipe(recipe: Recipe, block: Sequence[CaptionedSample], row: Row) -> None:
    captions = [caption for sample in block for caption in sample.captions]
    start = time.perf_counter()
    made = list(recipe.make(captions))
    row.seconds += time.perf_counter() - start
    images = [sample.key for sample in block for _ in sample.captions]
    for image, caption, negative in zip(images, captions, made, strict=True):
        row.captions += 1
        row.by_count[negative is not None] += 1
        if negative is not None:
            row.pairs[""].append(Pair(image, caption, negative))


def _run_maker(maker: NegativeMaker, block: Sequence[CaptionedSample], row: Row) -> None:
    start = time.perf_counter()
    made = [
        result
        for first in range(0, len(block), _BATCH)
        for result in maker.make(block[first : first + _BATCH])
    ]
    row.seconds += time.perf_counter() - start
    for sample, result in zip(block, made, strict=True):
        for caption in result.captions:
            row.captions += 1
            row.by_count[len(caption.negatives)] += 1
            for negative in caption.negatives:
                pair = Pair(sample.key, caption.text, negative.text)
                row.pairs[negative.concept].append(pair)


@contextlib.contextmanager
def _one_core() -> Iterator[None]:
    """Keeps this process, with the threads of its array libraries, on one core."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


def as_json(rows: Sequence[Row], machine: str) -> list[dict[str, Any]]:
    """The rows as `bench --json` writes them; the first one is the peer of all."""
    peer = rows[0]
    return [
        {
            "case": row.name,
            "ours": row.rate,
            "peer": peer.rate,
            "ratio": row.rate / peer.rate,
            "captions": row.captions,
            "first_pass": row.captions / row.count_seconds if row.count_seconds else None,
            "coverage": {least: row.coverage(least) for least in _COVERAGE},
            "auc": row.auc(),
            "negatives": {concept: len(pairs) for concept, pairs in row.pairs.items()},
            "machine": machine,
        }
        for row in rows
    ]
