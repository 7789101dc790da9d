"""How a word is used in its caption, by spaCy's tags: is it the noun, the adjective, the relation?

`use_of` answers None unless the tags are clear. Precision goes before recall here: a negative
that is not made costs nothing, one made from a misread word teaches the model something false.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from shard_tools.negatives.lexicon import Word
from shard_tools.negatives.parsing import Mention, ParsedCaption

_SINGULAR_DETERMINERS = frozenset({"a", "an", "one", "another", "each", "every", "single"})
_MASS_DETERMINERS = frozenset({"some", "any", "much", "more", "enough", "all", "most", "less"})
_NOUN_MODIFIERS = frozenset({"compound", "amod", "nmod", "npadvmod", "poss", "quantmod"})
_PREDICATES = frozenset({"acomp", "attr", "oprd", "ccomp", "ROOT"})


@dataclass(frozen=True)
class Use:
    """What surrounds a word that is used in its lexicon's role.

    Attributes:
        heads: as written and as lemmas: of an adjective the noun that it describes; of a
            relation the noun that it governs; of a noun the word that it depends on, through its
            preposition, its adjectives, and the verbs that say what it does ("a bird that is
            flying").
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


def use_of(caption: ParsedCaption, mention: Mention, word: Word, role: str) -> Use | None:
    """The use of a mentioned word, or None where it is not clearly used in the role."""
    text = caption.text
    if text[mention.start - 1 : mention.start] in ("-", "/") and mention.start > 0:
        return None
    if text[mention.end : mention.end + 1] in ("-", "/"):
        return None
    tokens = caption.tokens(mention.start, mention.end)
    if not tokens:
        return None
    reader = {"noun": _noun, "adjective": _adjective, "relation": _relation}[role]
    return reader(tokens, word, mention)


def _noun(tokens: list[Any], word: Word, mention: Mention) -> Use | None:
    noun = tokens[-1]
    if noun.pos_ == "PROPN":
        # Sentence starts and capitals are often taken for names.
        if noun.text[:1].isupper() and tokens[0].i > 0:
            return None
    elif noun.pos_ != "NOUN":
        return None
    previous, following = _beside(tokens)
    possessive = following is not None and following.dep_ == "case"
    if noun.dep_ in _NOUN_MODIFIERS and not (noun.dep_ == "poss" and possessive):
        return None
    if following is not None and following.pos_ in ("NOUN", "PROPN"):
        return None
    if previous is not None and (
        previous.pos_ in ("NOUN", "PROPN")
        or (previous.tag_ in ("VBG", "VBN") and previous.head == noun)
        or (previous.pos_ == "NUM" and previous.dep_ != "nummod")
    ):
        return None
    own = {token.i for token in tokens}
    if any(child.dep_ == "compound" and child.i not in own for child in noun.children):
        return None

    left = [child for child in noun.children if child.i < tokens[0].i]
    determiners = {
        child.lower_ for child in left if child.dep_ in ("det", "nummod", "predet", "poss")
    }
    determiners |= {child.lower_ for child in left if child.lower_ in ("more", "much", "single")}
    invariant = word.plural_form() == word.lemma and word.number == "count"
    if invariant and noun.tag_ != "NNS" and not determiners & _SINGULAR_DETERMINERS:
        return None  # "sheep" may be one or several
    many = mention.form.many and word.number != "mass"
    if many or noun.tag_ in ("NNS", "NNPS"):
        countable = "plural" if word.number != "mass" else "mass"
    elif determiners & _SINGULAR_DETERMINERS:
        countable = "single"
    elif determiners & _MASS_DETERMINERS:
        countable = "mass"
    else:
        countable = "open"
    governor = _first_conjunct(noun).head
    preposition = governor.lower_ if governor.pos_ in ("ADP", "SCONJ") else ""
    return Use(
        heads=_names(
            governor.head if preposition else governor,
            *(child for child in noun.children if child.dep_ in ("acl", "relcl", "amod")),
        ),
        after=preposition,
        before=following.lower_ if following is not None else "",
        countable=countable,
        determined=bool(determiners),
    )


def _adjective(tokens: list[Any], word: Word, mention: Mention) -> Use | None:
    del mention
    adjective = tokens[-1]
    previous, following = _beside(tokens)
    first = _first_conjunct(adjective)
    head: Any | None = None
    if (
        # "a man in green": not the man is green, but what he wears.
        not word.ambiguous
        and adjective.tag_ in ("NN", "JJ")
        and adjective.dep_ == "pobj"
        and previous is not None
        and previous.lower_ == "in"
    ):
        return Use(frozenset(), after="in", before=following.lower_ if following else "")
    if adjective.tag_ == "JJ" or adjective.tag_ in ("JJR", "JJS"):
        if first.dep_ == "amod":
            head = first.head if first.head.i > adjective.i else None
        elif first.dep_ in _PREDICATES and not (
            following is not None and following.pos_ in ("NOUN", "PROPN", "ADJ")
        ):
            head = next((c for c in first.head.children if c.dep_ == "nsubj"), None)
        if head is None:
            return None
    elif adjective.pos_ in ("NOUN", "PROPN") and adjective.dep_ == "compound":
        # "an orange boat"; what is made of the fruit is among the lexicon's idioms.
        head = adjective.head if adjective.head.i == tokens[-1].i + 1 else None
    elif (
        # "the boat is orange", but "the fruit is an orange"
        adjective.tag_ == "NN"
        and adjective.dep_ in ("attr", "acomp")
        and next(adjective.children, None) is None
        and adjective.head.pos_ in ("AUX", "VERB")
    ):
        head = next((c for c in adjective.head.children if c.dep_ == "nsubj"), None)
    if head is None or head.pos_ not in ("NOUN", "PROPN"):
        return None
    return Use(
        heads=_names(head),
        after=previous.lower_ if previous is not None else "",
        before=following.lower_ if following is not None else "",
    )


def _relation(tokens: list[Any], word: Word, mention: Mention) -> Use | None:
    del word, mention
    previous, following = _beside(tokens)
    governed = next((child for child in tokens[-1].children if child.dep_ == "pobj"), None)
    if len(tokens) == 1:
        token = tokens[0]
        if token.dep_ == "prt" or token.tag_ == "RP":
            return None
        if governed is None:
            if token.dep_ != "advmod" or token.pos_ not in ("ADV", "ADP"):
                return None
            # "outside tables", "inside there": it describes a word that follows.
            if token.head.i > token.i or (
                following is not None and following.pos_ in ("NOUN", "PROPN", "ADJ", "DET", "ADP")
            ):
                return None
        elif token.pos_ not in ("ADP", "SCONJ", "ADV"):
            return None
    elif any(token.pos_ == "VERB" for token in tokens):
        return None
    return Use(
        heads=_names(governed) if governed is not None else frozenset(),
        after=previous.lower_ if previous is not None else "",
        before=following.lower_ if following is not None else "",
    )


def _beside(tokens: list[Any]) -> tuple[Any | None, Any | None]:
    """The tokens before the first and after the last."""
    doc = tokens[0].doc
    first, last = tokens[0].i, tokens[-1].i
    return (
        doc[first - 1] if first > 0 else None,
        doc[last + 1] if last + 1 < len(doc) else None,
    )


def _names(*tokens: Any) -> frozenset[str]:
    return frozenset(name.lower() for token in tokens for name in (token.text, token.lemma_))


def _first_conjunct(token: Any) -> Any:
    """'broccoli' in 'noodles, meat and broccoli' -> 'noodles': the one the sentence hangs on."""
    while token.dep_ == "conj" and token.head.i != token.i:
        token = token.head
    return token
