"""Strategies: the ways to make a caption false. Each is one class that cites its source.

A strategy proposes; `maker.NegativeMaker` drops what equals a positive, and draws.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Protocol

from hnpretrain.shards.schema import Negative
from shard_tools.negatives import english
from shard_tools.negatives.lexicon import Exchange, Lexicon, Word
from shard_tools.negatives.parsing import Mention, ParsedCaption, ParsedSample, mentions
from shard_tools.negatives.roles import Use, use_of


@dataclass(frozen=True)
class Proposal:
    """A negative that may be drawn.

    Attributes:
        negative: the negative.
        meaning: what stands for its target; of proposals for one place of the caption, those
            whose meanings are `alike` say nearly the same, and only one is drawn.
        alike: the meanings that say nearly the same as this one.
    """

    negative: Negative
    meaning: str
    alike: frozenset[str] = frozenset()


class Strategy(Protocol):
    """One way to make negatives.

    Attributes:
        name: the `strategy` of its negatives.
    """

    name: str

    def propose(self, sample: ParsedSample, number: int, rejects: Counter[str]) -> list[Proposal]:
        """All the negatives that it sees for caption `number`, in the caption's order.

        Draws nothing at random. Counts into `rejects`, by reason, what it could have made and
        did not.
        """


# In the scope of these a false word can make a true caption: "a bathroom with no toilet".
_NEGATIONS = frozenset(
    """
    no not without never neither nor none nothing nobody missing lacking except unlike absent
    empty prohibiting prohibited prohibits forbidding forbidden banning banned
    hardly barely scarcely nowhere
    cannot cant isnt arent wasnt werent dont doesnt didnt wont hasnt havent
    or either maybe perhaps possibly might seems seem
    """.split()  # noqa: SIM905  (a list of 50 quoted words reads worse)
)
_NOT_ENDINGS = ("n't", "n\u2019t")
_LIKENESS = frozenset({"like", "as", "than"})
_MALE = frozenset({"he", "him", "his", "himself"})
_FEMALE = frozenset({"she", "her", "hers", "herself"})


class ConceptReplacement:
    """Replaces one word of a concept by another of the same concept; the rest stays.

    Roesch, Oswald, Geierhos, Libovicky, "Enhancing Conceptual Understanding in Multimodal
    Contrastive Learning through Hard Negative Samples", 2024 (arXiv 2403.02875): "A white cat
    sits under a black open umbrella" -> "A brown cat sits ...". The paper's word lists are not
    published; the lexicons are this project's, and so are the guards below.

    A word is replaced only where
    1. spaCy's tags say that it is used in the concept's role, outside idioms and negations;
    2. the exchange's conditions on the words around it hold;
    3. the target is no synonym, hypernym or hyponym of it, and neither the target nor anything
       related to it is mentioned in any caption of the image or annotated in it;
    4. no scene that the captions speak of is likely to hold the target unmentioned;
    5. number, countability and pronouns go with the target.
    """

    name = "replace"

    def __init__(self, lexicon: Lexicon) -> None:
        self.lexicon = lexicon

    def propose(self, sample: ParsedSample, number: int, rejects: Counter[str]) -> list[Proposal]:
        """See Strategy.

        Reasons for a word: `negated`, `repeated`, `role`, `context` (no exchange goes with the
        words around it). For a target: `synonym`, `number`, `pronoun`, `annotated`,
        `mentioned_elsewhere`, `scene`.
        """
        caption = sample.captions[number]
        present = {word.lower for word in caption.words}
        found = mentions(caption, self.lexicon)
        exchanged = [m for m in found if self.lexicon.exchanges_of(m.form.lemma)]
        if not exchanged:
            return []
        if present & _NEGATIONS or any(n in caption.text.lower() for n in _NOT_ENDINGS):
            rejects["negated"] += len(exchanged)
            return []
        blocked = self._in_scene(sample)
        proposals = []
        for mention in exchanged:
            source = self.lexicon.words[mention.form.lemma]
            if sum(m.form.lemma == source.lemma for m in found) > 1:
                # "A man shakes hands with another man": one of two is changed at best.
                rejects["repeated"] += 1
                continue
            use = use_of(caption, mention, source, self.lexicon.role)
            if use is None or (
                self.lexicon.role == "noun"
                and (use.after in _LIKENESS or (source.ambiguous and not use.determined))
            ):
                rejects["role"] += 1
                continue
            if self.lexicon.role == "relation" and _names_twice(caption, use.heads):
                # "A train behind a train": one is in front of a train as well.
                rejects["repeated"] += 1
                continue
            targets = self._targets(source, use)
            if not targets:
                rejects["context"] += 1
            for target in targets:
                reason = self._reject(sample, source, target, use, present, blocked)
                if reason:
                    rejects[reason] += 1
                else:
                    alike = frozenset(self.lexicon.near(target.lemma))
                    negative = self._edit(caption, mention, target, use)
                    proposals.append(Proposal(negative, target.lemma, alike))
        return proposals

    def _targets(self, source: Word, use: Use) -> list[Word]:
        """The words that some exchange puts here, each once, in the lexicon's order."""
        found: dict[str, Word] = {}
        for exchange in self.lexicon.exchanges_of(source.lemma):
            if _holds(exchange, use, self.lexicon.role):
                for lemma in exchange.targets:
                    if lemma != source.lemma:
                        found.setdefault(lemma, self.lexicon.words[lemma])
        return list(found.values())

    def _reject(
        self,
        sample: ParsedSample,
        source: Word,
        target: Word,
        use: Use,
        present: set[str],
        blocked: set[str],
    ) -> str:
        """Why the target may not stand here, or ''."""
        if self.lexicon.related(source.lemma, target.lemma):
            return "synonym"
        if self.lexicon.role == "noun" and not _countable_as(source, target, use):
            return "number"
        if source.gender and not present.isdisjoint(_MALE | _FEMALE):
            return "pronoun"
        if self._annotated(sample, target):
            return "annotated"
        if self._mentioned(sample, source, target):
            return "mentioned_elsewhere"
        if target.lemma in blocked:
            return "scene"
        return ""

    def _mentioned(self, sample: ParsedSample, source: Word, target: Word) -> bool:
        """Whether a caption names the target or what could be it.

        A broader word in the singular that covers the source too ("a person" for "the man") is
        taken for the source itself; in the plural it may speak of the target as well.
        """
        lexicon = self.lexicon
        shared = lexicon.broader(source.lemma) & lexicon.broader(target.lemma)
        family = {target.lemma} | lexicon.narrower(target.lemma) | lexicon.near(target.lemma)
        for lemma in family | lexicon.broader(target.lemma):
            singular_is_source = lemma in shared and lemma not in family
            for form in lexicon.forms_of(lemma):
                if sample.mentioned(form) and (form.many or not singular_is_source):
                    return True
        return False

    def _annotated(self, sample: ParsedSample, target: Word) -> bool:
        if not sample.objects:
            return False
        lexicon = self.lexicon
        same = {target.lemma} | lexicon.narrower(target.lemma) | lexicon.near(target.lemma)
        # An annotation is of a broad class: what it is called must not cover the target. People
        # are the exception: that a person is annotated says nothing about which.
        broader = () if target.gender else lexicon.broader(target.lemma)
        return any(
            sample.annotated(form)
            for lemma in (*same, *broader)
            for form in lexicon.forms_of(lemma)
        )

    def _in_scene(self, sample: ParsedSample) -> set[str]:
        """The words that the image may show without a caption's word for it."""
        held: set[str] = set()
        for scene in self.lexicon.scenes:
            if any(
                sample.mentioned(form) or sample.annotated(form)
                for sign in scene.signs
                for form in self.lexicon.forms_of(sign)
            ):
                held |= scene.holds
        return held

    def _edit(self, caption: ParsedCaption, mention: Mention, target: Word, use: Use) -> Negative:
        text = caption.text
        source = text[mention.start : mention.end]
        plural = use.countable == "plural" and target.number != "plural"
        word = target.plural_form() if plural else target.lemma
        word = english.match_case(source, word, caption.all_caps)
        before = _with_article(text[: mention.start], word, caption.all_caps)
        return Negative(
            text=before + word + text[mention.end :],
            concept=self.lexicon.concept,
            strategy=self.name,
            source=source,
            target=word,
            span=(mention.start, mention.end),
        )


def _holds(exchange: Exchange, use: Use, role: str) -> bool:
    """Whether the words around a use meet the exchange's conditions."""
    if role == "relation" and (
        (exchange.object == "required" and not use.heads)
        or (exchange.object == "absent" and use.heads)
    ):
        return False
    return (
        (not exchange.heads or bool(exchange.heads & use.heads))
        and not exchange.not_heads & use.heads
        and (not exchange.after or use.after in exchange.after)
        and use.after not in exchange.not_after
        and (not exchange.before or use.before in exchange.before)
        and use.before not in exchange.not_before
    )


def _names_twice(caption: ParsedCaption, names: frozenset[str]) -> bool:
    """Whether two words of the caption have a lemma among these."""
    return sum(token.lemma_.lower() in names for token in caption.doc) > 1


def _countable_as(source: Word, target: Word, use: Use) -> bool:
    """Whether the target can stand where the source does: 'some cake' takes no sandwich."""
    if use.countable == "plural":
        return target.number != "mass"
    if use.countable == "single":
        return target.number in ("count", "both")
    if use.countable == "mass":
        return target.number in ("mass", "both")
    # "the cake" may be one cake or some cake: the target must be what the source can be.
    return target.number == "both" or target.number == source.number


def _with_article(before: str, word: str, all_caps: bool) -> str:
    """`before` with its last word put right for `word`, if that is a or an."""
    stem = before.rstrip()
    start = max((i + 1 for i, c in enumerate(stem) if not c.isalpha()), default=0)
    if stem[start:].lower() not in ("a", "an"):
        return before
    article = english.article(word.lower())
    new = english.match_case(stem[start:], article, all_caps or stem[start:] == "AN")
    return before[:start] + new + before[len(stem) :]
