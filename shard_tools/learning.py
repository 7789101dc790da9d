"""Learns an adversary (`negatives.adversary`) from the captions of a source.

1. The source's shards are read in the order in which words are counted, captions alone.
2. Their negatives are made as `build` would, without an adversary.
3. The adversary learns from these.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from itertools import islice

from shard_tools.counting import counting_order
from shard_tools.negatives import CaptionedSample, NegativeMaker, needs_frequencies
from shard_tools.negatives.adversary import Adversary, Judged, learn
from shard_tools.prepare import known_table
from shard_tools.settings import BuildSettings
from shard_tools.sources import plan_source

_BATCH = 64


def learn_adversary(settings: BuildSettings, captions: int, rounds: int) -> Adversary:
    """An adversary for the negatives of these settings.

    Args:
        settings: of the build that is to use it.
        captions: about how many are read.
        rounds: of learning and thinning.

    Raises:
        ValueError: the source is wrong, words were not counted yet, or there are too few negatives.
    """
    table = known_table(settings)
    if table is None and needs_frequencies(settings.negatives):
        raise ValueError(
            "these negatives need word frequencies: run hnpretrain shard count first, with the "
            "same settings"
        )
    negatives = dataclasses.replace(settings.negatives, adversary="")
    maker = NegativeMaker(negatives, settings.seed, table)
    pairs: list[Judged] = []
    read = 0
    samples = _samples(settings)
    while read < captions and (batch := list(islice(samples, _BATCH))):
        for made in maker.make(batch):
            read += len(made.captions)
            pairs += [
                Judged(made.captions[0].text, caption.text, negative.text)
                for caption in made.captions
                for negative in caption.negatives
            ]
    return learn(pairs, rounds, settings.seed)


def _samples(settings: BuildSettings) -> Iterator[CaptionedSample]:
    for shard in counting_order(plan_source(settings.source, settings.samples_per_shard)):
        for number, texts in enumerate(shard.read_texts()):
            yield CaptionedSample(f"{shard.name}/{number}", texts.captions, texts.objects)
