"""Where a single word of a tagged caption may be replaced, and in what form it stands there."""

from __future__ import annotations

from collections.abc import Iterator

from shard_tools.negatives.captions import TaggedCaption
from shard_tools.negatives.roles import ADJECTIVES, NOUNS
from shard_tools.negatives.strategies.phrases import UNDESCRIBING, is_name

_JOINTS = frozenset("-/'")
_SHAPES = {"VBG": "ing", "VBZ": "s", "VBP": "base", "VB": "base"}


def places_of(c: TaggedCaption, kind: str) -> Iterator[tuple[int, str]]:
    """Tokens used as a `noun`, an `adjective` or a `verb`, and their shapes as lexicons name them.

    Of a noun `one` or `many`, of an adjective '', of a verb `ing`, `s` or `base`. Words joined by
    a hyphen or slash are left alone.
    """
    use = _USES[kind]
    text = c.caption.text
    for i, token in enumerate(c.tokens):
        shape = use(c, i)
        if shape is None or not token.isalpha() or is_name(c, i):
            continue
        before = text[max(c.starts[i] - 1, 0) : c.starts[i]]
        if before not in _JOINTS and text[c.ends[i] : c.ends[i] + 1] not in _JOINTS:
            yield i, shape


def _noun(c: TaggedCaption, i: int) -> str | None:
    """`one` or `many` where a token is the noun of its phrase, else None."""
    tag = c.tags[i]
    before = c.tags[i - 1] if i > 0 else ""
    after = c.tags[i + 1] if i + 1 < len(c.tags) else ""
    if (
        tag not in ("NN", "NNS")
        or before in NOUNS | {"HYPH"}
        or after in NOUNS | {"POS", "HYPH", "CD"}
        or c.tokens[i + 1 : i + 2] == ["of"]  # "a group of", "a picture of"
        or (tag == "NN" and before in ("IN", "RP"))  # "on top", "at night"
    ):
        return None
    return "many" if tag == "NNS" else "one"


def _adjective(c: TaggedCaption, i: int) -> str | None:
    """'' where a token is an adjective before a noun, or one that a verb gives to it."""
    before = c.tags[i - 1] if i > 0 else ""
    after = c.tags[i + 1] if i + 1 < len(c.tags) else ""
    if c.tokens[i] in UNDESCRIBING or c.tokens[i + 2 : i + 3] == ["of"]:
        return None
    if c.tags[i] != "JJ" or before in ("HYPH", "RB", "CC") or after in ("HYPH", "CC"):
        return None
    predicate = c.tokens[i - 1] in ("is", "are") and after not in NOUNS if i else False
    return "" if after in NOUNS | ADJECTIVES or predicate else None


def _verb(c: TaggedCaption, i: int) -> str | None:
    """The shape of a main verb, else None."""
    after = c.tags[i + 1] if i + 1 < len(c.tags) else ""
    before = c.tags[i - 1] if i > 0 else ""
    if c.tags[i] not in _SHAPES or after in ("RP", "VBN", "VB", "VBG", "TO", "HYPH"):
        return None
    if before in ("DT", "JJ", "IN", "HYPH", "PRP$"):
        return None  # "a sleeping dog"
    return _SHAPES[c.tags[i]]


_USES = {"noun": _noun, "adjective": _adjective, "verb": _verb}
