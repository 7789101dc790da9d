"""Noun phrases and other pieces of a tagged caption, and their exchange.

A caption is short and plain, so pieces are read off the tags (see `roles`); nothing here parses.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from hnpretrain.shards.schema import Negative
from shard_tools.negatives import english
from shard_tools.negatives.captions import TaggedCaption
from shard_tools.negatives.lexicon import Lexicon, Mention, Word
from shard_tools.negatives.roles import ADJECTIVES, NOUNS, PREMODIFIERS, Use, use_of
from shard_tools.negatives.strategies.base import edited

_HUMAN = frozenset({"person", "people"})
_ANIMATE = _HUMAN | {"animal"}
# Nouns to the tagger, that take no article.
_INDEFINITE = frozenset({"someone", "somebody", "anyone", "anybody", "everyone", "everybody"})
# They say more of where a phrase stands in its sentence than of what it names, or look back.
FIXED_DETERMINERS = frozenset(
    "another each every either neither both other that this these those which all".split()  # noqa: SIM905
)

# "A next to B" is "B next to A"; who looks at whom, or meets whom, is mostly true both ways.
_SYMMETRIC = frozenset(
    """
    next near nearby beside besides by between among amongst amid amidst along alongside together
    adjacent with
    against around like as than and of versus opposite across facing faces face meeting
    meets meet kissing kisses hugging hugs touching touches fighting fights racing races joining
    joins accompanying accompanied surrounded surrounding talking speaking chatting looking looks
    watching watches staring stares greeting greets sharing matching resembling resembles passing
    passes dancing each both
    """.split()  # noqa: SIM905  (a list of 60 quoted words reads worse)
)
# Nouns that are part of a relation: "in front of", "on top of", "to the left of".
OF_RELATIONS = frozenset({"front", "top", "left", "right", "back"})

# Adjectives that describe no thing.
UNDESCRIBING = frozenset(
    """
    other same many few several more most less such own first second third last next different
    various similar only single multiple numerous certain whole entire half front back top bottom
    left right open full empty next-door part
    """.split()  # noqa: SIM905
)


@dataclass(frozen=True)
class Thing:
    """A noun of the objects' lexicon, used as one.

    Attributes:
        mention: where the lexicon found it.
        word: what it is.
        use: what surrounds it.
        tokens: of the noun alone ('fire hydrant').
        phrase: of the noun with all that stands before it ('a red fire hydrant').
    """

    mention: Mention
    word: Word
    use: Use
    tokens: range
    phrase: range

    def human(self, lexicon: Lexicon) -> bool:
        """Whether it is a person or several."""
        lemma = self.word.lemma
        return bool(self.word.gender) or not _HUMAN.isdisjoint({lemma, *lexicon.broader(lemma)})

    def animate(self, lexicon: Lexicon) -> bool:
        """Whether it is a person or an animal."""
        lemma = self.word.lemma
        if self.word.ambiguous:  # a bat
            return False
        return bool(self.word.gender) or not _ANIMATE.isdisjoint({lemma, *lexicon.broader(lemma)})


def things_of(tagged: TaggedCaption, lexicon: Lexicon) -> list[Thing]:
    """The caption's things, left to right."""
    things = []
    for mention in tagged.caption.mentions(lexicon):
        word = lexicon.words[mention.form.lemma]
        use = use_of(tagged, mention, word, "noun")
        if use is None or (word.ambiguous and not use.determined):
            continue
        tokens = tagged.tokens_of(mention)
        if "of" in mention.form.words:
            continue  # "a group of people": one or many
        if tagged.tokens[tokens.start] in _INDEFINITE:
            continue
        start = tokens.start
        while start > 0 and tagged.tags[start - 1] in PREMODIFIERS:
            if tagged.tags[start] in ("DT", "PRP$") and tagged.tags[start - 1] != "PDT":
                break  # "being handed a hat"
            start -= 1
        if start > 0 and tagged.tags[start - 1] in NOUNS:
            continue  # "bikini clad women"
        if _goes_on_before(tagged, start) or tagged.tokens[tokens.stop : tokens.stop + 1] == [
            "back"
        ]:
            continue
        if any(is_name(tagged, i) for i in range(start, tokens.stop)):
            continue
        things.append(Thing(mention, word, use, tokens, range(start, tokens.stop)))
    return things


def _goes_on_before(tagged: TaggedCaption, start: int) -> bool:
    """Whether more of a noun phrase stands before `start`: "a very", "a black and"."""
    before = tagged.tags[max(start - 2, 0) : start]
    if start < 1 or tagged.tags[start] not in ADJECTIVES | {"VBN"}:
        return False
    return before[-1] == "RB" or (before[-1] in ("CC", ",") and before[0] in ADJECTIVES)


def is_name(tagged: TaggedCaption, i: int) -> bool:
    """Whether capitals say that a token is a name or an acronym."""
    written = tagged.caption.text[tagged.starts[i] : tagged.ends[i]]
    capitals = written if i > 0 else written[1:]  # the first word's own says nothing
    return not tagged.caption.all_caps and any(letter.isupper() for letter in capitals)


def movable(tagged: TaggedCaption, phrase: range) -> bool:
    """Whether a noun phrase means the same at another place of the sentence."""
    return not any(
        tagged.tags[i] in ("PRP$", "POS", "HYPH") or tagged.tokens[i] in FIXED_DETERMINERS
        for i in phrase
    )


def modifiers(tagged: TaggedCaption, thing: Thing) -> list[int]:
    """The tokens before the thing's noun that are no determiner."""
    return [
        i for i in thing.phrase if i < thing.tokens.start and tagged.tags[i] in ADJECTIVES | {"VBN"}
    ]


def followed_by_noun(tagged: TaggedCaption, place: int) -> bool:
    """Whether the token after `place` makes it part of a longer noun."""
    return place + 1 < len(tagged.tags) and tagged.tags[place + 1] in NOUNS | {"POS", "HYPH"}


def pairs(items: Iterable[Thing]) -> Iterator[tuple[Thing, Thing]]:
    """Every two, in the order of the caption."""
    listed = list(items)
    for number, first in enumerate(listed):
        for second in listed[number + 1 :]:
            yield first, second


def exchanged(
    tagged: TaggedCaption, first: range, second: range, concept: str, strategy: str
) -> Negative:
    """The caption with two pieces in each other's place; the first stands before the second.

    The span goes from the first to the last character that changed. Articles follow their new
    words by sound, and the capital of a sentence's first word stays at its place.
    """
    caption = tagged.caption
    text, shout = caption.text, caption.all_caps
    start, middle = tagged.starts[first.start], tagged.ends[first.stop - 1]
    resume, end = tagged.starts[second.start], tagged.ends[second.stop - 1]
    one, other = text[start:middle], text[resume:end]
    if not shout and one[:1].isupper() and other[:1].islower():
        one, other = one[:1].lower() + one[1:], other[:1].upper() + other[1:]
    between = english.with_article(text[middle:resume], one, shout)
    return edited(caption, start, end, f"{other}{between}{one}", concept, strategy)


def symmetric(tagged: TaggedCaption, i: int) -> bool:
    """Whether the token says of A and B what it says of B and A."""
    token = tagged.tokens[i]
    if token == "by" and tagged.tags[i - 1] == "VBN":
        return False  # "held by"
    if token == "of" and tagged.tokens[i - 1] in OF_RELATIONS:
        return False
    return token in _SYMMETRIC
