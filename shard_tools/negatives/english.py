"""The little English that an edit needs: plurals, a/an, capitals, and words with their places.

The rules cover what lexicons hold; a word that they get wrong says its plural in the lexicon
(`plural: knives`). A library (`inflect`) was tried: importing it takes 3.5 s, a whole shard's time.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_WORD = re.compile(r"[^\W_]+|[^\w\s]")
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


@dataclass(frozen=True)
class TextWord:
    """A word or a single symbol of a text: lower-case form, [start, end) in characters."""

    lower: str
    start: int
    end: int


def words_of(text: str) -> list[TextWord]:
    """The words and symbols of a text. Lexicon phrases and captions are cut by this one rule."""
    return [TextWord(m.group().lower(), m.start(), m.end()) for m in _WORD.finditer(text)]


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
    if model[:1].isupper():
        return word[:1].upper() + word[1:]
    return word


def is_all_caps(text: str) -> bool:
    """Whether a text of at least two words is written in capitals throughout."""
    return text.isupper() and len(text.split()) > 1


def lowered(text: str) -> str:
    """`text` in lower case with every character kept in its place (some grow when lowered)."""
    return "".join(c.lower() if len(c.lower()) == 1 else c for c in text)
