"""How a word is used in its caption, by part-of-speech tags: as the noun, the verb, the relation?

`use_of` answers None unless the tags are clear. Precision goes before recall here: a negative
that is not made costs nothing, one made from a misread word teaches the model something false.
A caption is short and plain, so its phrases can be read off the tags: a parser finds little more
and takes half as long again as the tagger.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from shard_tools.negatives import english
from shard_tools.negatives.captions import TaggedCaption
from shard_tools.negatives.lexicon import Exchange, Lexicon, Mention, Word

NOUNS = frozenset({"NN", "NNS", "NNP", "NNPS"})
ADJECTIVES = frozenset({"JJ", "JJR", "JJS"})
VERBS = frozenset({"VB", "VBD", "VBG", "VBN", "VBP", "VBZ"})
# What may stand in a noun phrase before its noun.
PREMODIFIERS = ADJECTIVES | {"DT", "PDT", "PRP$", "CD", "VBN", "POS", "HYPH"}
_TAG_OF_SHAPE = {
    "base": ("VB", "VBP"),
    "s": ("VBZ",),
    "ing": ("VBG",),
    "past": ("VBD", "VBN"),
    "participle": ("VBN",),
}
_SINGULAR_DETERMINERS = frozenset({"a", "an", "one", "another", "each", "every", "single"})
_MASS_DETERMINERS = frozenset({"some", "any", "much", "more", "enough", "all", "most", "less"})
_COMPARING = frozenset({"another", "other", "others", "same", "both", "either", "neither"})
_BE = frozenset({"is", "are", "was", "were", "be", "being", "been"})
_LOOKS = _BE | {"looks", "look", "looking", "seems", "appears", "painted", "colored"}


@dataclass(frozen=True)
class Use:
    """What surrounds a word that is used in its lexicon's role.

    Attributes:
        heads: as written and as what they may be forms of: of an adjective or number the noun that
            it describes; of a relation the noun that it governs; of a noun the word that its
            preposition or verb stands with, its adjectives, and the verbs that say what it does
            ("a bird that is flying"); of a verb the noun before it.
        after: of a noun the preposition that governs it ('' if none); else the word before.
        before: the word that follows.
        countable: of a noun, `plural`, `single` ('a cup'), `mass` ('some cake') or `open` ('the
            cake', which may be one or some).
        determined: of a noun, whether it has a determiner, a number or a possessor.
    """

    heads: frozenset[str]
    after: str
    before: str
    countable: str = ""
    determined: bool = False


def use_of(caption: TaggedCaption, mention: Mention, word: Word, role: str) -> Use | None:
    """The use of a mentioned word, or None where it is not clearly used in the role."""
    text = caption.caption.text
    start, end = caption.caption.span_of(mention)
    if (start > 0 and text[start - 1] in "-/") or text[end : end + 1] in ("-", "/"):
        return None
    tokens = caption.tokens_of(mention)
    if not tokens:
        return None
    return _READERS[role](caption, tokens, mention, word)


def _noun(c: TaggedCaption, tokens: range, mention: Mention, word: Word) -> Use | None:
    first, last = tokens[0], tokens[-1]
    tag, following = c.tags[last], _tag(c, last + 1)
    if tag not in NOUNS or following in NOUNS:
        return None
    if tag.startswith("NNP") and first > 0 and c.caption.text[c.starts[last]].isupper():
        return None  # a name, unless it opens the sentence
    before = _tag(c, first - 1)
    if before in NOUNS:
        return None
    if before in ("VBG", "VBN") and _tag(c, first - 2) in PREMODIFIERS - {"VBN"}:
        return None  # "a sleeping dog", "the painted wall": its noun is described by what it does
    phrase = _phrase_start(c, first)
    left = range(phrase, first)
    determiners = {c.tokens[i] for i in left if c.tags[i] in ("DT", "PDT", "PRP$", "CD", "POS")}
    determiners |= {c.tokens[i] for i in left if c.tokens[i] in ("more", "much", "single")}
    if not determiners.isdisjoint(_COMPARING):
        return None  # "another boat" speaks of a first one
    invariant = word.number == "count" and mention.form.text == word.lemma == word.plural_form()
    if invariant and (tag == "NNS" or not determiners & _SINGULAR_DETERMINERS):
        return None  # "sheep" may be several, and its form only takes the place of singular ones
    if mention.form.shape == "many" or tag in ("NNS", "NNPS"):
        countable = "plural" if word.number != "mass" else "mass"
    elif determiners & _SINGULAR_DETERMINERS:
        countable = "single"
    elif determiners & _MASS_DETERMINERS:
        countable = "mass"
    else:
        countable = "open"
    governor = _first_conjunct(c, phrase) - 1
    preposition = c.tokens[governor] if _tag(c, governor) in ("IN", "TO") else ""
    heads = [c.tokens[i] for i in left if c.tags[i] in ADJECTIVES]
    heads += _doing(c, last)
    if preposition:
        heads += _nearest_before(c, governor, VERBS | NOUNS | {"RB", "RP"})
    elif governor >= 0:
        heads += [c.tokens[i] for i in (governor, governor - 1) if _tag(c, i) in VERBS]
    return Use(_names(heads), preposition, _token(c, last + 1), countable, bool(determiners))


def _adjective(c: TaggedCaption, tokens: range, _mention: Mention, _word: Word) -> Use | None:
    first, last = tokens[0], tokens[-1]
    tag, following = c.tags[last], _tag(c, last + 1)
    after, before = _token(c, first - 1), _token(c, last + 1)
    nominal = NOUNS | ADJECTIVES | {"VBG", "VBN"}
    if after == "in" and tag in NOUNS | ADJECTIVES and following not in nominal:
        return Use(frozenset(), after, before)  # "dressed in red"
    if tag not in ADJECTIVES and tag not in NOUNS:
        return None
    head = _head_of_phrase(c, last + 1)
    if head is not None and (tag in ADJECTIVES or following in NOUNS):
        return Use(_names([c.tokens[head]]), after, before)
    # "the boat is red", but "the fruit is an orange"
    if head is None and after in _LOOKS and following not in NOUNS:
        subject = _nearest_before(c, first - 1, NOUNS)
        if subject:
            return Use(_names(subject), after, before)
    return None


def _number(c: TaggedCaption, tokens: range, _mention: Mention, _word: Word) -> Use | None:
    last = tokens[-1]
    head = _head_of_phrase(c, last + 1)
    if c.tags[last] != "CD" or head is None or c.tags[head] not in ("NNS", "NNPS"):
        return None
    return Use(_names([c.tokens[head]]), _token(c, tokens[0] - 1), _token(c, last + 1))


def _verb(c: TaggedCaption, tokens: range, mention: Mention, _word: Word) -> Use | None:
    first, last = tokens[0], tokens[-1]
    if c.tags[first] not in _TAG_OF_SHAPE[mention.form.shape]:
        return None
    if _tag(c, first - 1) in PREMODIFIERS and _tag(c, last + 1) in NOUNS:
        return None  # "a sleeping dog", "the parked car"
    if _tag(c, last + 1) == "RP":
        return None  # "sitting up", "blows out": the particle makes it another verb
    heads = _nearest_before(c, first, NOUNS | {"PRP"})
    return Use(_names(heads), _token(c, first - 1), _token(c, last + 1))


def _relation(c: TaggedCaption, tokens: range, _mention: Mention, _word: Word) -> Use | None:
    first, last = tokens[0], tokens[-1]
    following = _tag(c, last + 1)
    head = _head_of_phrase(c, _phrase_end_of_determiners(c, last + 1))
    if following == "PRP":
        head = last + 1
    if len(tokens) == 1:
        tag = c.tags[first]
        if tag == "RP" or tag not in ("IN", "RB", "TO"):
            return None
        # "outside tables": it describes the word that follows.
        if tag == "RB" and following in NOUNS | ADJECTIVES | {"IN"}:
            return None
        if head is None and tag == "IN" and following not in ("", ".", ","):
            return None
    elif any(c.tags[i] in VERBS for i in tokens):
        return None
    heads = [c.tokens[head]] if head is not None else []
    return Use(_names(heads), _token(c, first - 1), _token(c, last + 1))


_READERS = {
    "noun": _noun,
    "adjective": _adjective,
    "relation": _relation,
    "verb": _verb,
    "number": _number,
}


def _tag(c: TaggedCaption, i: int) -> str:
    return c.tags[i] if 0 <= i < len(c.tags) else ""


def _token(c: TaggedCaption, i: int) -> str:
    return c.tokens[i] if 0 <= i < len(c.tokens) else ""


def _phrase_start(c: TaggedCaption, noun: int) -> int:
    """Where the noun phrase that ends in this noun begins."""
    start = noun
    while start > 0 and (c.tags[start - 1] in PREMODIFIERS or c.tags[start - 1] in NOUNS):
        start -= 1
    return start


def _phrase_end_of_determiners(c: TaggedCaption, start: int) -> int:
    while _tag(c, start) in ("DT", "PDT", "PRP$", "CD"):
        start += 1
    return start


def _head_of_phrase(c: TaggedCaption, start: int) -> int | None:
    """The last noun of the phrase that goes on at `start`; None if it doesn't."""
    i = start
    while _tag(c, i) in PREMODIFIERS or (
        _tag(c, i) in ("CC", ",", "VBG") and _tag(c, i + 1) in ADJECTIVES | NOUNS
    ):
        if _tag(c, i) in ("DT", "PRP$"):
            return None
        i += 1
    if _tag(c, i) not in NOUNS:
        return None
    while _tag(c, i + 1) in NOUNS:
        i += 1
    return i


def _first_conjunct(c: TaggedCaption, start: int) -> int:
    """Start of the first of joined phrases: that of 'meat' for 'meat, rice and broccoli'."""
    while _tag(c, start - 1) in ("CC", ",") and start > 1:
        joint = start - 1
        while joint > 0 and c.tags[joint - 1] in ("CC", ","):
            joint -= 1
        if _tag(c, joint - 1) not in NOUNS:
            return start
        start = _phrase_start(c, joint - 1)
    return start


def _doing(c: TaggedCaption, noun: int) -> list[str]:
    """The verb that says what the noun does: 'flying' in 'a bird that is flying'."""
    i = noun + 1
    while _tag(c, i) in ("WDT", "WP", "MD", "RB") or _token(c, i) in _BE:
        i += 1
    return [c.tokens[i]] if _tag(c, i) in VERBS else []


def _nearest_before(c: TaggedCaption, end: int, tags: Iterable[str]) -> list[str]:
    """The nearest token before `end` with one of the tags, in a list; no token if there is none."""
    return next(([c.tokens[i]] for i in range(end - 1, -1, -1) if c.tags[i] in tags), [])


def _names(tokens: Iterable[str]) -> frozenset[str]:
    return frozenset(name for token in tokens for name in english.stems(token))


def fits(lexicon: Lexicon, use: Use, source: Word, target: Word) -> bool:
    """Whether a word can stand where another of its lexicon is used.

    Some exchange leads from one to the other with the words around it, and the noun's number and
    countability go with its determiner.
    """
    return any(
        target.lemma in exchange.targets and holds(exchange, use, lexicon.role)
        for exchange in lexicon.exchanges_of(source.lemma)
    ) and (lexicon.role != "noun" or countable_as(source, target, use))


def holds(exchange: Exchange, use: Use, role: str) -> bool:
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


def countable_as(source: Word, target: Word, use: Use) -> bool:
    """Whether the target can stand where the source does: 'some cake' takes no sandwich.

    What holds for a word that goes holds for one that comes, or text alone could tell them.
    """
    if target.number == "count" and target.plural_form() == target.lemma:
        return use.countable == "single"  # "the sheep" may be one or several
    if use.countable == "plural":
        return target.number != "mass"
    if use.countable == "single":
        return target.number in ("count", "both")
    if use.countable == "mass":
        return target.number in ("mass", "both")
    # "the cake" may be one cake or some cake: the target must be what the source is.
    return target.number == source.number
