"""The little English that an edit needs: plurals, verb forms, a/an, capitals, places of words.

The rules cover what lexicons hold; a word that they get wrong says its form in the lexicon
(`plural: knives`, `past: rode`). A library (`inflect`) was tried: importing it takes 3.5 s, a whole
shard's time.
"""

from __future__ import annotations

import re
from functools import cached_property, lru_cache

# Endings, and what may stand in their place in the lemma.
_ENDINGS = (
    ("ies", ("y",)),
    ("es", ("", "e")),
    ("s", ("",)),
    ("ing", ("", "e")),
    ("ied", ("y",)),
    ("ed", ("", "e")),
    ("er", ("", "e")),
    ("est", ("", "e")),
)
_WORD = re.compile(r"[^\W_]+|[^\w\s]")
_LETTERS = re.compile(r"[^\W_]+")
_LAST_WORD = re.compile(r"[^\W_]+$")
_IRREGULAR = {
    "person": "people",
    "child": "children",
    "mouse": "mice",
    "goose": "geese",
    "foot": "feet",
    "tooth": "teeth",
    "ox": "oxen",
    "knife": "knives",
    "wife": "wives",
    "calf": "calves",
    "loaf": "loaves",
    "leaf": "leaves",
    "shelf": "shelves",
    "bookshelf": "bookshelves",
    "scarf": "scarves",
    "wolf": "wolves",
    "potato": "potatoes",
    "tomato": "tomatoes",
    "fish": "fish",
    "sheep": "sheep",
    "deer": "deer",
}


class Words:
    """The words and symbols of a text. Lexicon phrases and captions are cut by this one rule.

    Attributes:
        lower: the words in lower case.
        spans: each word's [start, end) in characters; found when asked for.
    """

    def __init__(self, text: str) -> None:
        self._text = text
        self.lower = tuple(map(str.lower, _WORD.findall(text)))

    @cached_property
    def spans(self) -> tuple[tuple[int, int], ...]:
        return tuple(word.span() for word in _WORD.finditer(self._text))


def plain(text: str) -> str:
    """What two captions share that differ only in case, space and punctuation."""
    return " ".join(_LETTERS.findall(text)).lower()


def plural(noun: str) -> str:
    """The plural of a singular noun phrase ('hot dog' -> 'hot dogs')."""
    last = _LAST_WORD.search(noun)
    if last is not None and last.group() in _IRREGULAR:
        return noun[: last.start()] + _IRREGULAR[last.group()]
    if noun.endswith("man") and not noun.endswith("human"):
        return noun[:-3] + "men"
    if re.search(r"([sxz]|[cs]h)$", noun):
        return noun + "es"
    if re.search(r"[^aeiou]y$", noun):
        return noun[:-1] + "ies"
    return noun + "s"


def verb_form(verb: str, shape: str) -> str:
    """A regular verb's form: `base`, `s` (rides), `ing` (riding) or `past` (-ed).

    A final consonant is doubled where the lexicon's one-syllable verbs double it (sit, run).
    """
    if shape == "base":
        return verb
    if shape == "s":
        return plural(verb)
    if shape == "ing":
        if verb.endswith("ie"):
            return verb[:-2] + "ying"
        stem = verb[:-1] if re.search(r"[^eoy]e$", verb) else _doubled(verb)
        return stem + "ing"
    assert shape == "past"
    if verb.endswith("e"):
        return verb + "d"
    return verb[:-1] + "ied" if re.search(r"[^aeiou]y$", verb) else _doubled(verb) + "ed"


def _doubled(verb: str) -> str:
    return verb + verb[-1] if re.fullmatch(r"[^aeiou]*[aeiou][^aeiouwxy]", verb) else verb


@lru_cache(2**16)
def stems(word: str) -> frozenset[str]:
    """What a lower-case word may be a form of, itself included ('riding' -> 'ride', also 'rid').

    Meant for a look into a list of lemmas: what is no word is in no list.
    """
    found = {word}
    for ending, ends in _ENDINGS:
        if len(word) > len(ending) + 2 and word.endswith(ending):
            stem = word[: -len(ending)]
            found.update(stem + end for end in ends)
            if ending in ("ing", "ed", "er", "est") and stem[-1] == stem[-2]:  # sitting, bigger
                found.add(stem[:-1])
    return frozenset(found)


def article(word: str) -> str:
    """'a' or 'an', by the sound that `word` begins with ('hour' -> 'an', 'unicorn' -> 'a')."""
    if re.match(r"[A-Z]{2,}\b|[A-Za-z]-", word):  # spelled out: "an SUV", "a U-turn"
        return "an" if word[0].upper() in "AEFHILMNORSX" else "a"
    lower = word.lower()
    if re.match(r"(hour|honest|honou?r|heir)", lower):
        return "an"
    if re.match(r"(eu|ewe|one|once|uk|u[bfst](e|i|u)|un(i[^mn]|anim)|urin|ura)", lower):
        return "a"
    return "an" if lower[:1] in tuple("aeiou") else "a"


def match_case(model: str, word: str, all_caps: bool) -> str:
    """`word` written as `model` is: ALL CAPS inside such a caption, or with a first capital."""
    if all_caps:
        return word.upper()
    if model[:1].isupper() and not model[1:2].isupper():  # "TV" has capitals anywhere
        return capitalized(word)
    return word


def capitalized(word: str) -> str:
    """`word` with a first capital, the rest as it is."""
    return word[:1].upper() + word[1:]


def with_article(before: str, word: str, all_caps: bool) -> str:
    """`before` with its last word put right for `word`, if that is a or an."""
    stem = before.rstrip()
    start = len(stem)
    while start and stem[start - 1].isalpha():
        start -= 1
    if stem[start:].lower() not in ("a", "an"):
        return before
    new = match_case(stem[start:], article(word.lower()), all_caps or stem[start:] == "AN")
    return before[:start] + new + before[len(stem) :]


def is_all_caps(text: str) -> bool:
    """Whether a text of at least two words is written in capitals throughout."""
    return text.isupper() and len(text.split()) > 1


def lowered(text: str) -> str:
    """`text` in lower case with every character kept in its place (some grow when lowered)."""
    return "".join(c.lower() if len(c.lower()) == 1 else c for c in text)
