"""How often a corpus writes which word in which surroundings, and draws that follow it.

A text-only classifier tells negatives from captions wherever the words put in are not those that
the corpus has there. So what stands in a word's place is drawn from the corpus's own frequencies:

1. A first pass counts, for every form that a lexicon can exchange, the contexts it stands in: the
   words on both sides, then less and less of them. Only forms of one shape that exchanges connect
   compete.
2. A draw takes the longest context with probability n / (n + d), for n occurrences of d forms
   (Witten and Bell, "The zero-frequency problem", 1991), else a shorter one. That choice looks
   at the context alone, never at the word in it.
3. The word itself can come up, and then no negative is made by that draw. Under frequencies n_a
   and n_b of two words in a context, a becomes b as often as b becomes a: n_a n_b / n (detailed
   balance, as in Gibbs sampling).
4. What filters refuse more often in one direction than in the other would break the balance. The
   first pass therefore counts too how often the filters let a become b, and the more open direction
   is thinned to the level of the other.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import random
import zlib
from bisect import bisect_right
from collections import Counter
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from shard_tools.negatives import rules
from shard_tools.negatives.captions import CaptionText, SampleText
from shard_tools.negatives.lexicon import Form, Lexicon, Mention

FORMAT = 1
# What the libraries and the look-ups raise for a file that is no table.
_BAD_CONTENTS = (
    OSError,  # not gzip
    EOFError,  # cut
    zlib.error,  # changed
    ValueError,  # no JSON, or of another format
    RecursionError,
    KeyError,  # other JSON
    TypeError,
    AttributeError,
)
# A context seen once knows one word: it would forbid every negative that a shorter one allows.
_MIN_COUNT = 2
# Weight of what holds for a target in general against what was counted for a pair of words.
_PRIOR = 4.0


def contexts_of(lexicon: Lexicon, caption: CaptionText, mention: Mention) -> list[str]:
    """The contexts of a mention, the longest first, as keys of the table.

    Those of a relation or a verb hold the noun that it governs, and end there: which place or
    action goes with which thing says more than any word before it, and "in" is everywhere.
    """
    words, start, end = caption.context, mention.start, mention.end
    before = words[start - 1] if start > 0 else "^"
    further = words[start - 2] if start > 1 else "^"
    after = words[end] if end < len(words) else "$"
    group = f"{lexicon.groups[mention.form.lemma]}/{mention.form.shape}"
    if lexicon.role in ("relation", "verb"):
        after = f"{after} {caption.governed(end)}"
        return [
            f"{group}|{further} {before} _ {after}",
            f"{group}|{before} _ {after}",
            f"{group}|_ {after}",
        ]
    return [
        f"{group}|{further} {before} _ {after}",
        f"{group}|{before} _ {after}",
        f"{group}|_ {after}",
        f"{group}|",
    ]


@dataclass
class FrequencyCounter:
    """Counts captions; picklable, and summed with others by `update`.

    Args:
        lexicons: those whose words are exchanged.
    """

    lexicons: Sequence[Lexicon]
    captions: int = 0
    # (concept, context, form) and (concept, source, target) with whether filters let it pass
    _contexts: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    _passes: Counter[tuple[str, str, str, bool]] = field(default_factory=Counter)

    def add(self, captions: Sequence[str], objects: tuple[str, ...] = ()) -> None:
        """Counts the captions of one image."""
        sample = SampleText.of(captions, objects)
        self.captions += len(captions)
        for caption in sample.captions:
            for lexicon in self.lexicons:
                for mention in caption.mentions(lexicon):
                    if mention.form.lemma in lexicon.groups:
                        self._count(lexicon, sample, caption, mention)

    def _count(
        self, lexicon: Lexicon, sample: SampleText, caption: CaptionText, mention: Mention
    ) -> None:
        concept, form = lexicon.concept, " ".join(mention.form.words)
        for context in contexts_of(lexicon, caption, mention):
            self._contexts[concept, context, form] += 1
        for target in lexicon.partners[mention.form.lemma]:
            passes = not rules.refusal(lexicon, sample, caption, mention, target)
            self._passes[concept, mention.form.lemma, target, passes] += 1

    def update(self, other: FrequencyCounter) -> None:
        """Adds what another one counted."""
        self.captions += other.captions
        self._contexts.update(other._contexts)
        self._passes.update(other._passes)

    def table(self) -> FrequencyTable:
        """The counts as a table; contexts seen once are left out."""
        concepts: dict[str, Any] = {
            lexicon.concept: {"lexicon": lexicon.digest(), "contexts": {}, "passes": {}}
            for lexicon in self.lexicons
        }
        for (concept, context, form), count in self._contexts.items():
            concepts[concept]["contexts"].setdefault(context, {})[form] = count
        for concept in concepts.values():
            concept["contexts"] = {
                context: forms
                for context, forms in concept["contexts"].items()
                if sum(forms.values()) >= _MIN_COUNT
            }
        for (concept, source, target, passes), count in self._passes.items():
            pair = concepts[concept]["passes"].setdefault(f"{source}>{target}", [0, 0])
            pair[passes] += count
        return FrequencyTable({"format": FORMAT, "captions": self.captions, "concepts": concepts})


class FrequencyTable:
    """Counted frequencies, as a file holds them.

    Attributes:
        captions: how many were counted.
        digest: sha256 hex over the contents.
    """

    def __init__(self, value: Mapping[str, Any]) -> None:
        self._value = value
        self._json = json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
        self.captions = int(value["captions"])
        self.digest = hashlib.sha256(self._json).hexdigest()

    def to_bytes(self) -> bytes:
        """The file's content: gzipped JSON; equal tables give equal bytes."""
        return gzip.compress(self._json, 6, mtime=0)

    @classmethod
    def from_bytes(cls, data: bytes, where: str) -> FrequencyTable:
        """Reads a file's content.

        Raises:
            ValueError: it is no table of this format; the message begins with `where`.
        """
        try:
            value = json.loads(gzip.decompress(data))
            if not isinstance(value, dict) or value.get("format") != FORMAT:
                raise ValueError(f"not of format {FORMAT}")
            for concept in value["concepts"].values():
                _check_counts(concept)
            return cls(value)
        except _BAD_CONTENTS as error:
            raise ValueError(
                f"{where}: no table of word frequencies of format {FORMAT} ({error}); make one "
                "with hnpretrain shard count"
            ) from error

    def frequencies(self, lexicon: Lexicon, where: str = "the frequencies") -> Frequencies:
        """The frequencies of one lexicon's words.

        Raises:
            ValueError: the table was counted without this lexicon, or with another state of it.
        """
        concept = self._value["concepts"].get(lexicon.concept)
        if concept is None or concept["lexicon"] != lexicon.digest():
            raise ValueError(
                f"{where} were counted {'without' if concept is None else 'with another'} lexicon "
                f"of {lexicon.concept!r}; count again (hnpretrain shard count)"
            )
        return CountedFrequencies(lexicon, concept["contexts"], concept["passes"])


def _check_counts(concept: Mapping[str, Any]) -> None:
    counts = [n for forms in concept["contexts"].values() for n in forms.values()]
    counts += [n for stopped, passed in concept["passes"].values() for n in (stopped, passed)]
    if not all(type(n) is int and n >= 0 for n in counts):
        raise ValueError("a count is no whole number of at least 0")
    if not isinstance(concept["lexicon"], str):
        raise ValueError("'lexicon' is no text")


class Mixture:
    """The distribution of the forms in one place: a mixture over contexts, longest first.

    The weights add up to 1 or less; with what is missing, a draw leaves the word as it is.
    """

    def __init__(self, parts: Sequence[tuple[float, _Context]]) -> None:
        self._parts = parts

    def draw(self, count: int, generator: random.Random) -> list[Form]:
        """The forms of some draws, which may be the one that stands there. A draw may give none,
        which leaves that one alone, too.
        """
        drawn: list[Form] = []
        places = [generator.random() for _ in range(count)]
        for weight, context in self._parts:
            # Of all its occurrences laid end to end, the one at this place.
            forms, ends, scale = context.forms, context.inner_ends, context.total / weight
            drawn += [forms[bisect_right(ends, p * scale)] for p in places if p < weight]
            places = [place - weight for place in places if place >= weight]
        return drawn

    def probability(self, form: Form) -> float:
        share = 0.0
        for weight, context in self._parts:
            share += weight * context.share(form)
        return share


class Frequencies:
    """Even frequencies: every form of a group as often as any other, whatever is around it.

    What a list of words does without a corpus, and what a table improves upon.
    """

    def __init__(self, lexicon: Lexicon) -> None:
        forms: dict[str, dict[Form, int]] = {}
        for form in lexicon.forms.values():
            if form.lemma in lexicon.groups:
                key = f"{lexicon.groups[form.lemma]}/{form.shape}"
                forms.setdefault(key, {})[form] = 1
        self._lexicon = lexicon
        self._even = {key: Mixture([(1.0, _Context(group))]) for key, group in forms.items()}

    def mixture(self, caption: CaptionText, mention: Mention) -> Mixture:
        """The distribution of the forms that may stand where one is mentioned."""
        del caption
        return self._even[f"{self._lexicon.groups[mention.form.lemma]}/{mention.form.shape}"]

    def openness(self, source: str, target: str) -> float:
        """How much more often filters let `target` become `source` than the other way round."""
        del source, target
        return 1.0


class CountedFrequencies(Frequencies):
    """The frequencies of a table; see the module's text for what is drawn."""

    def __init__(
        self,
        lexicon: Lexicon,
        contexts: Mapping[str, Mapping[str, int]],
        passes: Mapping[str, Sequence[int]],
    ) -> None:
        self._lexicon = lexicon
        self._contexts = contexts
        self._ready: dict[str, _Context | None] = {}
        self._passes = passes
        self._open: dict[tuple[str, str], float] = {}
        self._into: dict[str, list[int]] = {}
        for pair, (stopped, passed) in passes.items():
            into = self._into.setdefault(pair.partition(">")[2], [0, 0])
            into[0] += stopped
            into[1] += passed

    def mixture(self, caption: CaptionText, mention: Mention) -> Mixture:
        rest, parts = 1.0, []
        last = f"{self._lexicon.groups[mention.form.lemma]}/{mention.form.shape}|"
        for key in contexts_of(self._lexicon, caption, mention):
            context = self._context(key)
            if context is not None:
                share = context.total / (context.total + len(context.forms))
                if key == last:  # no word around it: takes all that is left
                    share = 1.0
                parts.append((rest * share, context))
                rest *= 1 - share
        return Mixture(parts)

    def openness(self, source: str, target: str) -> float:
        pair = source, target
        if pair not in self._open:
            self._open[pair] = self._pass_rate(target, source) / self._pass_rate(source, target)
        return self._open[pair]

    def _pass_rate(self, source: str, target: str) -> float:
        stopped, passed = self._passes.get(f"{source}>{target}", (0, 0))
        into = self._into.get(target, (0, 0))
        prior = (into[1] + 1) / (into[0] + into[1] + 1)
        return (passed + _PRIOR * prior) / (passed + stopped + _PRIOR)

    def _context(self, key: str) -> _Context | None:
        if key not in self._ready:
            counts = self._contexts.get(key)
            known = {
                form: count
                for text, count in (counts or {}).items()
                if (form := self._lexicon.forms.get(tuple(text.split(" ")))) is not None
            }
            self._ready[key] = _Context(known) if known else None
        return self._ready[key]


class _Context:
    """The forms counted in one context.

    Attributes:
        forms: by their words.
        inner_ends: where each but the last one's occurrences end, laid end to end.
        total: all occurrences.
    """

    def __init__(self, counts: Mapping[Form, int]) -> None:
        ordered = sorted(counts.items(), key=lambda item: item[0].words)
        self.forms = [form for form, _ in ordered]
        *self.inner_ends, self.total = accumulate(count for _, count in ordered)
        self._counts = {form.words: count for form, count in ordered}

    def share(self, form: Form) -> float:
        return self._counts.get(form.words, 0) / self.total


def balanced(
    frequencies: Frequencies,
    mixture: Mixture,
    source: Form,
    partners: Container[str],
    draws: int,
    generator: random.Random,
) -> Iterator[Form]:
    """Different forms of the partners, from some draws, balanced in both directions.

    Of `draws` draws, a form of probability p comes up at least once with 1 - (1 - p)^draws, which
    favours rare words: per occurrence by h(p) = (1 - (1 - p)^draws) / p. A form that comes up is
    kept with min(1, h(p_source) / h(p_form) * openness), so that the flow from a to b equals that
    from b to a however often is drawn. That is exact in one context; that contexts are mixed, and
    that of many proposals few are stored, leaves a rest, which `bench negatives` measures.
    """
    drawn: dict[tuple[str, ...], Form] = {}
    for form in mixture.draw(draws, generator):
        if form.lemma in partners:
            drawn.setdefault(form.words, form)
    if not drawn:
        return
    own = _favour(mixture.probability(source), draws)
    for form in drawn.values():
        keep = own / _favour(mixture.probability(form), draws)
        if generator.random() < keep * frequencies.openness(source.lemma, form.lemma):
            yield form


def _favour(probability: float, draws: int) -> float:
    """h of `balanced`; its limit at 0 is `draws`."""
    if probability < 1e-9:
        return float(draws)
    return (1 - (1 - probability) ** draws) / probability
