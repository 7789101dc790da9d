"""From captions to captions with negatives: plan, tag, propose, filter, draw.

1. Each strategy looks at a caption's words, and says whether it means to change any.
2. Captions that some strategy wants go through spaCy's tagger (`nlp.pipe`), the others don't.
3. The strategies propose negatives.
4. What equals a positive of the image, or another negative, is dropped.
5. At most `per_caption` are drawn: kinds take turns in an order drawn by their weights, and within
   a kind the places of the caption, seeded by (seed, key, caption number).
6. An adversary, if there is one, drops what it can guess too often.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from itertools import zip_longest
from typing import Any

from hnpretrain.shards import storage
from hnpretrain.shards.schema import Caption, Negative
from shard_tools.negatives import english
from shard_tools.negatives.adversary import Adversary, Judged
from shard_tools.negatives.captions import CaptionedSample, SampleText, TaggedCaption
from shard_tools.negatives.frequencies import FrequencyCounter, FrequencyTable
from shard_tools.negatives.lexicon import load_lexicon
from shard_tools.negatives.settings import NegativeSettings
from shard_tools.negatives.strategies import Proposal, Task, strategies_of
from shard_tools.negatives.tagger import Tagger

# Raised whenever the same input and settings give other negatives than before.
ALGORITHM_VERSION = 4

# Longer ones are no captions but pages; text towers read a hundred words at most.
_MAX_CHARACTERS = 2000


@dataclass(frozen=True)
class MadeNegatives:
    """A sample's captions with their negatives, and what was rejected, by reason."""

    captions: tuple[Caption, ...]
    rejects: Counter[str]


def needs_frequencies(settings: NegativeSettings) -> bool:
    """Whether the negatives follow a table of word frequencies."""
    return bool(settings.concepts())


def frequency_counter(settings: NegativeSettings) -> FrequencyCounter:
    """A counter of the words that these settings replace."""
    concepts = settings.concepts()
    return FrequencyCounter([load_lexicon(c, settings.lexicons.get(c)) for c in concepts])


class NegativeMaker:
    """Makes the negatives of samples; deterministic for (settings, seed, frequencies, sample).

    Attributes:
        identity: all that decides the result, as JSON values: settings, seed, the lexicons' and
            frequencies' contents, versions. Where a lexicon lies and `batch_size` are left out:
            they change nothing.
        fingerprint: sha256 hex of the identity.
    """

    identity: dict[str, Any]
    fingerprint: str

    def __init__(
        self, settings: NegativeSettings, seed: int, frequencies: FrequencyTable | None
    ) -> None:
        """Loads the lexicons and the models.

        Args:
            settings: what is made.
            seed: of all random draws.
            frequencies: of the words that are replaced; None draws evenly, which a text-only
                classifier finds out.

        Raises:
            ValueError: a concept without a lexicon, a lexicon that is not of the format, a table
                counted with others, or a model that is not installed.
        """
        self._settings = settings
        self._seed = seed
        self._weights = settings.weights()
        lexicons = [
            load_lexicon(concept, settings.lexicons.get(concept)) for concept in settings.concepts()
        ]
        self._strategies = strategies_of(settings, lexicons, frequencies)
        self._adversary = _adversary(settings.adversary)
        self._tagger = Tagger(settings.spacy_model, settings.batch_size)
        self.identity = {
            "algorithm": ALGORITHM_VERSION,
            "seed": seed,
            "mix": self._weights,
            "per_caption": settings.most(),
            "draws": settings.draws,
            "strategies": {strategy.kinds[0]: strategy.identity for strategy in self._strategies},
            "frequencies": frequencies.digest if frequencies is not None else "even",
            "adversary": self._adversary.digest if self._adversary is not None else "",
            "spacy": metadata.version("spacy"),
            "spacy_model": f"{settings.spacy_model} {self._tagger.version}",
        }
        canonical = json.dumps(self.identity, sort_keys=True).encode()
        self.fingerprint = hashlib.sha256(canonical).hexdigest()

    def make(self, samples: Sequence[CaptionedSample]) -> list[MadeNegatives]:
        """One result a sample, in their order; every caption comes back, some with no negative.

        What a sample gets does not depend on the others of the call. Reasons in `rejects` count
        words or candidates, `no_candidate` and `too_long` count captions.
        """
        works = [_Work(self._seed, sample) for sample in samples]
        begun: list[list[tuple[int, int, Task, Any]]] = []  # a list for each strategy
        for strategy in self._strategies:
            kind = strategy.kinds[0]
            plans = []
            for w, work in enumerate(works):
                for number in work.usable:
                    task = work.task(number, kind)
                    plan = strategy.begin(task)
                    if plan is not None:
                        plans.append((w, number, task, plan))
            begun.append(plans)
        tagged = self._tag(works, {(w, number) for plans in begun for w, number, *_ in plans})
        for strategy, plans in zip(self._strategies, begun, strict=True):
            results = strategy.finish(
                [(task, tagged[w, number], plan) for w, number, task, plan in plans]
            )
            for (w, number, *_), proposals in zip(plans, results, strict=True):
                works[w].proposed[number].extend(proposals)
        return [self._finish(work) for work in works]

    def _tag(
        self, works: Sequence[_Work], wanted: set[tuple[int, int]]
    ) -> dict[tuple[int, int], TaggedCaption]:
        """Tags the wanted captions, (sample, caption number)."""
        places = sorted(wanted)
        captions = [works[w].sample.captions[number] for w, number in places]
        texts = [english.lowered(c.text) if c.all_caps else c.text for c in captions]
        tagged = zip(captions, self._tagger.tag(texts), strict=True)
        return {
            place: TaggedCaption(caption, doc)
            for place, (caption, doc) in zip(places, tagged, strict=True)
        }

    def _finish(self, work: _Work) -> MadeNegatives:
        captions = []
        for number, caption in enumerate(work.sample.captions):
            if not work.proposed[number]:
                if number in work.usable:
                    work.rejects["no_candidate"] += 1
                captions.append(Caption(caption.text))
                continue
            kept: dict[str, Proposal] = {}
            for proposal in work.proposed[number]:
                plain = english.plain(proposal.negative.text)
                if plain in work.sample.plain:
                    work.rejects["equal_to_positive"] += 1
                else:
                    kept.setdefault(plain, proposal)
            if not kept:
                work.rejects["no_candidate"] += 1
            generator = work.task(number, "draw").generator
            drawn = _draw(list(kept.values()), self._weights, self._settings.most(), generator)
            if self._adversary is not None:
                drawn = self._spared(work, number, drawn)
            captions.append(Caption(caption.text, tuple(drawn)))
        return MadeNegatives(tuple(captions), work.rejects)

    def _spared(self, work: _Work, number: int, drawn: list[Negative]) -> list[Negative]:
        assert self._adversary is not None
        task = work.task(number, "adversary")
        spared = []
        for negative in drawn:
            pair = Judged(work.sample.captions[0].text, task.caption.text, negative.text)
            if self._adversary.spares(pair, task.generator):
                spared.append(negative)
            else:
                work.rejects["guessable"] += 1
        return spared


class _Work:
    """What is under way for one sample.

    Attributes:
        sample: its captions.
        usable: numbers of the captions that are not too long.
        proposed: proposals by caption number.
        rejects: counts by reason.
    """

    def __init__(self, seed: int, sample: CaptionedSample) -> None:
        self._seed = seed
        self._key = sample.key
        self.rejects: Counter[str] = Counter()
        self.usable = [n for n, c in enumerate(sample.captions) if len(c) <= _MAX_CHARACTERS]
        if too_long := len(sample.captions) - len(self.usable):
            self.rejects["too_long"] += too_long
        self.sample = SampleText.of(sample.captions, sample.objects)
        self.proposed: list[list[Proposal]] = [[] for _ in sample.captions]

    def task(self, number: int, purpose: str) -> Task:
        identity = (self._seed, self._key, number, purpose)
        return Task(self.sample, self.sample.captions[number], self.rejects, identity)


def _draw(
    proposals: list[Proposal],
    weights: Mapping[str, float],
    most: int,
    generator: random.Random,
) -> list[Negative]:
    """At most `most`: kinds take turns, and within a kind the places of the caption."""
    by_place: dict[tuple[str, tuple[int, int]], list[Proposal]] = {}
    for proposal in proposals:
        by_place.setdefault((proposal.kind, proposal.negative.span), []).append(proposal)
    places = list(by_place)
    generator.shuffle(places)
    # Within a kind, every place comes once before one comes twice.
    queues: dict[str, list[Negative]] = {kind: [] for kind, _ in sorted(places)}
    for place in places:
        generator.shuffle(by_place[place])
        by_place[place] = _distinct(by_place[place])
    for turn in range(max(map(len, by_place.values()), default=0)):
        for place in places:
            if turn < len(by_place[place]):
                queues[place[0]].append(by_place[place][turn].negative)
    # Each kind's turn comes in an order drawn without replacement by weight (Efraimidis and
    # Spirakis, 2006).
    turns = {kind: generator.random() ** (1 / weights[kind]) for kind in queues}
    kinds = sorted(queues, key=lambda kind: -turns[kind])
    rounds = zip_longest(*(queues[kind] for kind in kinds))
    drawn = [negative for turn in rounds for negative in turn if negative is not None]
    return drawn[:most]


def _distinct(proposals: list[Proposal]) -> list[Proposal]:
    """The proposals without those that say nearly the same as an earlier one."""
    kept: list[Proposal] = []
    for proposal in proposals:
        if not any(proposal.meaning in other.alike for other in kept):
            kept.append(proposal)
    return kept


def _adversary(path: str) -> Adversary | None:
    if not path:
        return None
    try:
        return Adversary.from_bytes(storage.read_bytes(path), path)
    except FileNotFoundError as error:
        raise ValueError(
            f"negatives.adversary={path!r} is not a file; hnpretrain shard adversary makes one"
        ) from error
