"""`swap`: two pieces of one kind change places inside the caption."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import Any

from shard_tools.negatives import english
from shard_tools.negatives.captions import SampleText, TaggedCaption
from shard_tools.negatives.lexicon import Lexicon, Mention
from shard_tools.negatives.roles import ADJECTIVES, NOUNS, VERBS, Use, countable_as, fits, use_of
from shard_tools.negatives.strategies.base import Proposal, Task, denies
from shard_tools.negatives.strategies.clauses import (
    PRONOUNS,
    adverbs,
    agrees,
    is_subject,
    light,
    predicate,
    relates,
    whole,
)
from shard_tools.negatives.strategies.memo import OfSample
from shard_tools.negatives.strategies.phrases import (
    UNDESCRIBING,
    Thing,
    exchanged,
    is_name,
    modifiers,
    movable,
    pairs,
    symmetric,
    things_of,
)

CONCEPTS = {"adjective": "attribute", "arguments": "relation"}  # the others change the order

_RELATING = VERBS | {"IN", "TO"}
# They ask of a noun that it can hold, hide or be the place of another.
_CONTAINING = frozenset({"in", "at", "inside", "into", "within", "from"})
_CONJUNCTIONS = frozenset({"and", "while", "as", ",", "but"})


@dataclass(frozen=True)
class _Quality:
    """An adjective of a lexicon, used as one."""

    lexicon: Lexicon
    mention: Mention
    use: Use
    tokens: range


class Swap:
    """Two pieces of one kind change places: "a man holding a dog", "a dog holding a man".

    NegCLIP (Yuksekgonul et al., "When and why vision-language models behave like bags-of-words,
    and what to do about it?", ICLR 2023): noun chunks, nouns, adjectives, adverbs, verb phrases.
    CE-CLIP (Zhang, Awal, Agrawal, "Contrasting intra-modal and ranking cross-modal hard negatives
    to enhance visio-linguistic compositional understanding", CVPR 2024): the arguments of a
    relation.

    Both swap whatever has the same tag, and so make captions that still hold ("a cat and a dog"),
    that no one writes ("a table sits at a man") or that are no English. Here two pieces are
    swapped only where
    1. each can stand where the other does: the lexicons exchange them both ways with what is
       around them, or both are living things, and their number is the same;
    2. no list and no relation that holds both ways is between them ("next to", "with");
    3. neither is mentioned twice, and of nouns and adjectives, no other caption of the image says
       the swapped thing.
    That leaves a swap to few captions: in COCO's, of 750 pairs of nouns that grammar lets change
    places, 17 stand as well in the other's place by the corpus's frequencies. `plausible: false`
    drops rule 1 for nouns but for their number, where one is the subject of the other, neither
    stands in, at or within something ("a bed in a dog" no one reads to its end) and no adjective
    would come to a noun that it does not go with: ever so many more, which a text-only model knows.

    Reasons, each for a pair: `list`, `symmetric`, `synonym`, `number`, `context` (does not go
    with the words around), `repeated`, `pronoun`, `mentioned_elsewhere`; `negated` for a caption.
    """

    def __init__(
        self,
        kinds: Sequence[str],
        objects: Lexicon,
        qualities: Sequence[Lexicon],
        plausible: bool,
    ) -> None:
        """Args:
        kinds: what is swapped, of settings.KINDS["swap"].
        objects: a lexicon of nouns.
        qualities: lexicons of adjectives.
        plausible: whether rule 1 holds for nouns; see `SwapSettings`.
        """
        self._plausible = plausible
        self.kinds = tuple(f"swap.{kind}" for kind in kinds)
        self.identity: dict[str, Any] = {
            "plausible": plausible,
            **{lexicon.concept: lexicon.digest() for lexicon in (objects, *qualities)},
        }
        self._objects = objects
        self._qualities = qualities
        self._orders = OfSample(self._find_orders)
        self._qualities_said = OfSample(_qualities_said)
        makers = {
            "noun_chunk": self._noun_chunks,
            "noun": self._nouns,
            "adjective": self._adjectives,
            "adverb": adverbs,
            "verb_phrase": self._verb_phrases,
            "arguments": self._arguments,
        }
        self._makers: Mapping[str, Any] = {kind: makers[kind] for kind in kinds}

    def begin(self, task: Task) -> bool | None:
        """True where two pieces of a kind may be found."""
        caption = task.caption
        words = caption.words.lower
        pairable = (
            len(caption.mentions(self._objects)) > 1
            or sum(len(caption.mentions(lexicon)) for lexicon in self._qualities) > 1
            or sum(word.endswith("ly") for word in words) > 1
        )
        if not pairable:
            return None
        return None if denies(task) else True

    def finish(self, begun: Sequence[tuple[Task, TaggedCaption, bool]]) -> list[list[Proposal]]:
        """See Strategy."""
        return [self._proposals(task, tagged) for task, tagged, _ in begun]

    def _proposals(self, task: Task, tagged: TaggedCaption) -> list[Proposal]:
        things = things_of(tagged, self._objects)
        return [
            Proposal(
                exchanged(tagged, first, second, CONCEPTS.get(kind, "order"), "swap"),
                f"swap.{kind}",
            )
            for kind, maker in self._makers.items()
            for first, second in maker(task, tagged, things)
        ]

    def _nouns(
        self, task: Task, tagged: TaggedCaption, things: Sequence[Thing]
    ) -> Iterator[tuple[range, range]]:
        colored = self._listed(tagged, "color")
        for first, second in pairs(things):
            if first.mention.form.shape != second.mention.form.shape:
                task.rejects["number"] += 1
            elif any(t.human(self._objects) for t in (first, second)) and colored.intersection(
                (*first.phrase, *second.phrase)
            ):
                task.rejects["context"] += 1  # "a white horse": no color of a person
            elif any(modifiers(tagged, t) for t in (first, second)) and not self._fit(
                first, second
            ):
                task.rejects["context"] += 1  # "a dense forest": no adjective without its noun
            elif first.use.determined != second.use.determined:
                task.rejects["context"] += 1  # "a man on street": no "a street on man"
            elif reason := self._refusal(task, tagged, first, second):
                task.rejects[reason] += 1
            else:
                yield first.tokens, second.tokens

    def _noun_chunks(
        self, task: Task, tagged: TaggedCaption, things: Sequence[Thing]
    ) -> Iterator[tuple[range, range]]:
        for first, second in pairs(things):
            if not (_movable(tagged, first) and _movable(tagged, second)):
                continue
            if first.mention.form.shape != second.mention.form.shape and agrees(tagged):
                task.rejects["number"] += 1
            elif reason := self._refusal(task, tagged, first, second):
                task.rejects[reason] += 1
            else:
                yield first.phrase, second.phrase

    def _arguments(
        self, task: Task, tagged: TaggedCaption, things: Sequence[Thing]
    ) -> Iterator[tuple[range, range]]:
        related = [
            (first, second)
            for first, second in pairs(things)
            if relates(tagged, range(first.phrase.stop, second.phrase.start))
            and is_subject(tagged, first)
        ]
        for first, second in related:
            yield from self._noun_chunks(task, tagged, (first, second))

    def _refusal(self, task: Task, tagged: TaggedCaption, first: Thing, second: Thing) -> str:
        """Why two nouns do not change places, or ''."""
        one, other = first.mention.form.lemma, second.mention.form.lemma
        lexicon = self._objects
        if lexicon.related(one, other):
            return "synonym"
        if not self._alike(first, second) or any(light(tagged, t) for t in (first, second)):
            return "context"
        if not self._fit(first, second) and not is_subject(tagged, first):
            return "context"  # "riding the street down a skateboard"
        between = range(first.tokens.stop, second.phrase.start)
        tags = {tagged.tags[i] for i in between}
        if tags & {"CC", ",", ":"} or not tags & _RELATING:
            return "list"
        if any(symmetric(tagged, i) for i in between):
            return "symmetric"
        if len(between) == 1 and tagged.tokens[between[0]] == first.use.after:
            return "symmetric"  # "a slice on a plate on a table"
        found = [m.form.lemma for m in task.caption.mentions(lexicon)]
        if found.count(one) > 1 or found.count(other) > 1:
            return "repeated"
        if not PRONOUNS.isdisjoint(tagged.tags):
            return "pronoun"
        return "mentioned_elsewhere" if (other, one) in self._orders(task.sample) else ""

    def _alike(self, first: Thing, second: Thing) -> bool:
        """Whether each of two things can stand where the other does."""
        if any("of" in (thing.use.before, thing.use.after) for thing in (first, second)):
            return False  # "a glass of water" measures, "a picture of a dog" holds one
        prepositions = {first.use.after, second.use.after} - {""}
        if len(prepositions) > 1:
            return False  # "in a kitchen at a restaurant"
        if self._plausible or _CONTAINING & prepositions:
            return self._fit(first, second)
        both = ((first, second), (second, first))
        return all(countable_as(one.word, other.word, one.use) for one, other in both)

    def _fit(self, first: Thing, second: Thing) -> bool:
        """Rule 1: whether no one would be surprised to read either in the other's place."""
        lexicon = self._objects
        if first.animate(lexicon) and second.animate(lexicon):
            return True
        both = ((first, second), (second, first))
        return all(fits(lexicon, one.use, one.word, other.word) for one, other in both)

    def _adjectives(
        self, task: Task, tagged: TaggedCaption, things: Sequence[Thing]
    ) -> Iterator[tuple[range, range]]:
        yield from self._listed_adjectives(task, tagged)
        yield from self._plain_adjectives(task, tagged, things)

    def _listed_adjectives(
        self, task: Task, tagged: TaggedCaption
    ) -> Iterator[tuple[range, range]]:
        """Two adjectives of one lexicon: "a red car by a blue bus"."""
        for lexicon in self._qualities:
            found = []
            for mention in task.caption.mentions(lexicon):
                use = use_of(tagged, mention, lexicon.words[mention.form.lemma], "adjective")
                tokens = tagged.tokens_of(mention)
                if use is not None and use.heads and not any(is_name(tagged, i) for i in tokens):
                    found.append(_Quality(lexicon, mention, use, tokens))
            for number, first in enumerate(found):
                for second in found[number + 1 :]:
                    reason = _quality_refusal(task, tagged, first, second)
                    if not reason and any(
                        self._said(task, word, one.use.heads)
                        for one, other in ((first, second), (second, first))
                        for word in other.mention.form.words
                    ):
                        reason = "mentioned_elsewhere"
                    if reason:
                        task.rejects[reason] += 1
                    else:
                        yield first.tokens, second.tokens

    def _plain_adjectives(
        self, task: Task, tagged: TaggedCaption, things: Sequence[Thing]
    ) -> Iterator[tuple[range, range]]:
        """The only adjectives of two things that can stand for each other."""
        listed = self._listed(tagged)
        for first, second in pairs(things):
            own, others = modifiers(tagged, first), modifiers(tagged, second)
            if not len(own) == len(others) == 1 or first.word.lemma == second.word.lemma:
                continue
            one, other = own[0], others[0]
            if listed & {one, other} or not (_describes(tagged, one) and _describes(tagged, other)):
                continue
            if not self._alike(first, second):
                task.rejects["context"] += 1
            elif tagged.tokens[one] == tagged.tokens[other]:
                task.rejects["synonym"] += 1
            elif self._said(task, tagged.tokens[other], [tagged.tokens[first.tokens[-1]]]) or (
                self._said(task, tagged.tokens[one], [tagged.tokens[second.tokens[-1]]])
            ):
                task.rejects["mentioned_elsewhere"] += 1
            else:
                yield range(one, one + 1), range(other, other + 1)

    def _said(self, task: Task, adjective: str, nouns: Iterable[str]) -> bool:
        """Whether a caption of the image has the adjective shortly before one of the nouns."""
        said = self._qualities_said(task.sample)
        return any((adjective, stem) in said for noun in nouns for stem in english.stems(noun))

    def _find_orders(self, sample: SampleText) -> set[tuple[str, str]]:
        """Every two things in the order in which a caption mentions them."""
        mentioned = (caption.mentions(self._objects) for caption in sample.captions)
        return {
            (one.form.lemma, other.form.lemma)
            for mentions in mentioned
            for one, other in combinations(mentions, 2)
        }

    def _listed(self, tagged: TaggedCaption, concept: str = "") -> set[int]:
        """The tokens that a lexicon of qualities knows, one lexicon's or all."""
        return {
            i
            for lexicon in self._qualities
            if concept in ("", lexicon.concept)
            for mention in tagged.caption.mentions(lexicon)
            for i in tagged.tokens_of(mention)
        }

    def _verb_phrases(
        self, task: Task, tagged: TaggedCaption, things: Sequence[Thing]
    ) -> Iterator[tuple[range, range]]:
        """What two living things do: "a man riding a bike and a woman walking a dog"."""
        del task
        subjects = [
            (thing, verb)
            for thing in things
            if thing.animate(self._objects) and (verb := predicate(tagged, thing)) is not None
        ]
        for (first, verb), (second, other) in pairwise(subjects):
            joint = second.phrase.start - 1
            if joint <= verb or tagged.tokens[joint] not in _CONJUNCTIONS:
                continue
            if tagged.tags[joint - 1] == ",":
                joint -= 1
            end = len(tagged.tokens)
            while end > other + 1 and tagged.tags[end - 1] == ".":
                end -= 1
            one, two = range(verb, joint), range(other, end)
            if (
                tagged.tags[verb] == tagged.tags[other]
                and first.mention.form.shape == second.mention.form.shape
                and not {tagged.tokens[i] for i in one} >= {tagged.tokens[i] for i in two}
                and tagged.tokens[verb] != tagged.tokens[other]
                and not self._objects.related(first.word.lemma, second.word.lemma)
                and whole(tagged, one)
                and whole(tagged, two)
            ):
                yield one, two


def _movable(tagged: TaggedCaption, thing: Thing) -> bool:
    """Whether a noun with all before it can stand elsewhere: bare "man" opens captions only."""
    return movable(tagged, thing.phrase) and (
        thing.use.determined or thing.mention.form.shape == "many"
    )


def _quality_refusal(task: Task, tagged: TaggedCaption, first: _Quality, second: _Quality) -> str:
    """Why two adjectives of one lexicon do not change places, or ''."""
    lexicon = first.lexicon
    one, other = first.mention.form.lemma, second.mention.form.lemma
    if lexicon.related(one, other):
        return "synonym"
    words = lexicon.words
    if not (
        fits(lexicon, first.use, words[one], words[other])
        and fits(lexicon, second.use, words[other], words[one])
    ):
        return "context"
    known = {i for mention in task.caption.mentions(lexicon) for i in tagged.tokens_of(mention)}
    between = range(first.tokens.stop, second.tokens.start)
    if all(i in known or tagged.tags[i] in ADJECTIVES | {"CC", ",", "RB"} for i in between):
        return "list"  # "red, yellow and blue"
    for tokens in (first.tokens, second.tokens):
        if tagged.tags[tokens.start - 1 : tokens.start] and (
            tagged.tags[tokens.start - 1] in ADJECTIVES and tagged.tags[tokens.start] in NOUNS
        ):
            return "context"  # "hard wood floor"
    if first.use.heads & second.use.heads:
        return "repeated"
    counts = [mention.form.lemma for mention in task.caption.mentions(lexicon)]
    if counts.count(one) > 1 or counts.count(other) > 1:
        return "repeated"
    return ""


def _qualities_said(sample: SampleText) -> set[tuple[str, str]]:
    """Every word with what each of the three words after it may be a form of."""
    return {
        (word, stem)
        for caption in sample.captions
        for i, word in enumerate(caption.words.lower)
        for after in caption.words.lower[i + 1 : i + 4]
        for stem in english.stems(after)
    }


def _describes(tagged: TaggedCaption, i: int) -> bool:
    return (
        tagged.tags[i] in ADJECTIVES
        and tagged.tokens[i].isalpha()
        and tagged.tokens[i] not in UNDESCRIBING
        and (i == 0 or tagged.tags[i - 1] not in {"RB", "HYPH", "CC", ","})
    )
