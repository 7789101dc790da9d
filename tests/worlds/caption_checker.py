"""Reads a caption's claims from its text alone and checks them against a scene's geometry.

It shares no code with the captions' maker: what it knows of English is in its regular expressions,
and a word that it can't place is a failure too.
"""

import re
from collections import Counter

from hnpretrain.worlds.scene import COLORS, KINDS, Scene

SMALL, LARGE = ("small", "little", "tiny"), ("large", "big", "huge")
SIZE = "|".join(SMALL + LARGE)
COLOR, KIND = "|".join(COLORS), "|".join(KINDS)
VERB = r"(?: is| stands| sits| can be seen)?"
PLACE = r"(?:on|at|in) the (left|right|top|bottom|middle)(?: of the (?:picture|image|scene))?"
BESIDE = r"(?:(?:to|on) the (left|right)(?: side)? of|(above|over|below|underneath))"
# fmt: off
FILLERS = {
    "a", "an", "and", "are", "be", "can", "drawing", "has", "image", "in", "is", "it", "of",
    "picture", "see", "seen", "shows", "that", "the", "there", "this", "we", "you",
}
# fmt: on


def check(text: str, scene: Scene) -> Counter[str]:
    """Reads all claims of a caption, fails on a false or an unread one; counts them by sort."""
    claims: Counter[str] = Counter()
    thing_of = {thing.kind: thing for thing in scene.things}

    def size_is(kind: str, word: str) -> None:
        claims["size"] += 1
        assert (thing_of[kind].scale < 0.36) == (word in SMALL), text
        assert (thing_of[kind].scale > 0.38) == (word in LARGE), text

    def color_is(kind: str, word: str) -> None:
        claims["color"] += 1
        assert thing_of[kind].color == word, text

    def noun_phrase(match: re.Match[str]) -> str:
        article, size, color, kind = match.groups()
        claims["object"] += 1
        assert kind in thing_of, text
        if size:
            size_is(kind, size)
        if color:
            color_is(kind, color)
        first = size or color or kind
        assert (article == "an ") == (first[0] in "aeiou") or article in ("the ", None), text
        return f"<{kind}>"

    def predicate(match: re.Match[str]) -> str:
        kind, *words = match.groups()
        for word in filter(None, words):
            (color_is if word in COLORS else size_is)(kind, word)
        return f"<{kind}>"

    def relation(match: re.Match[str]) -> str:
        one, side, height, other = match.groups()
        claims["relation"] += 1
        near, far = thing_of[one], thing_of[other]
        if side == "left":
            assert near.box[2] < far.box[0], text
        elif side == "right":
            assert near.box[0] > far.box[2], text
        elif height in ("above", "over"):
            assert near.box[3] < far.box[1], text
        else:
            assert near.box[1] > far.box[3], text
        axis = 1 if side else 0
        assert abs(near.center[axis] - far.center[axis]) < 0.18, text
        return f"<{one}> <{other}>"

    def place_is(kind: str, place: str) -> str:
        claims["place"] += 1
        x, y = thing_of[kind].center
        along, across = (y, x) if place in ("top", "bottom") else (x, y)
        assert abs(across - 0.5) <= 0.1, text
        if place == "middle":
            assert abs(along - 0.5) <= 0.1, text
        else:
            assert (along < 0.4) == (place in ("left", "top")), text
            assert (along > 0.6) == (place in ("right", "bottom")), text
        return f"<{kind}>"

    rest = text.lower().rstrip(".")
    named = re.search(r"\b(two|three) things", rest)
    if named:
        claims["count"] += 1
        assert len(scene.things) == {"two": 2, "three": 3}[named[1]], text
        rest = rest.replace(named[0], "")
    rest = re.sub(rf"\b(an? |the )?(?:({SIZE}) )?(?:({COLOR}) )?({KIND})\b", noun_phrase, rest)
    where = "(?: in the (?:picture|image))?(?: that)?"
    rest = re.sub(rf"<(\w+)>{where} is ({SIZE}|{COLOR})(?: and ({COLOR}))?\b", predicate, rest)
    rest = re.sub(rf"<(\w+)> and it is ({COLOR})", predicate, rest)
    # Relations come before places: "on the left of the <tree>" is no "on the left".
    for _ in range(2):
        rest = re.sub(rf"<(\w+)>{VERB} {BESIDE} <(\w+)>", relation, rest)
    rest = re.sub(rf"<(\w+)>{VERB} {PLACE}", lambda m: place_is(m[1], m[2]), rest)
    rest = re.sub(rf"{PLACE} there is <(\w+)>", lambda m: place_is(m[2], m[1]), rest)
    rest = re.sub(r"<\w+>|[,:]", " ", rest)
    assert set(rest.split()) <= FILLERS, f"unread words in {text!r}: {set(rest.split()) - FILLERS}"
    return claims
