"""Where a negative differs from its caption: what a stored negative says of itself, checked.

A negative is `caption[:start] + to + caption[end:]` for its span [start, end), but for an article
right before the span, which follows the new words ("a cup" -> "an umbrella").
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

from hnpretrain.shards.schema import Negative

Span = tuple[int, int]

_PIECE = re.compile(r"\w+|[^\w\s]")
_ARTICLE = re.compile(r"(?<![^\W\d_])(?:a|an)(\s*)\Z", re.IGNORECASE)
# Longer edits are not cut into pieces: that takes quadratic time, and nobody would read it.
_MOST_PIECES = 200


@dataclass(frozen=True)
class Edit:
    """One edit, as character ranges [start, end).

    Attributes:
        source: the range of the caption that was replaced.
        target: the range of the negative that stands for it.
        article: the article before `target`; None where there is none.
        article_changed: whether it is another than the caption's.
    """

    source: Span
    target: Span
    article: Span | None
    article_changed: bool


def locate(caption: str, negative: Negative) -> Edit:
    """Finds the edit that made a negative.

    Raises:
        ValueError: the negative's span, `from` or `to` do not fit the two texts; says which.
    """
    start, end = negative.span
    if not 0 <= start <= end <= len(caption):
        raise ValueError(f"span {[start, end]} lies outside {short(caption)}")
    if caption[start:end] != negative.source:
        raise ValueError(f"span {[start, end]} of {short(caption)} is not {short(negative.source)}")
    before, after = caption[:start], caption[end:]
    text = negative.text
    stop = len(text) - len(after)
    begin = stop - len(negative.target)
    if begin < 0 or text[begin:] != negative.target + after:
        raise ValueError(_misfit(caption, negative))
    found, expected = _ARTICLE.search(text[:begin]), _ARTICLE.search(before)
    changed = text[:begin] != before
    if changed and not (
        found
        and expected
        and found.group(1) == expected.group(1)
        and text[: found.start()] == before[: expected.start()]
    ):
        raise ValueError(_misfit(caption, negative))
    article = (found.start(), found.start(1)) if found else None
    return Edit((start, end), (begin, stop), article, changed)


def _misfit(caption: str, negative: Negative) -> str:
    return (
        f"{short(negative.text)} is not {short(caption)} "
        f"with {short(negative.target)} at {list(negative.span)}"
    )


def changed_pieces(caption: str, negative: Negative) -> tuple[list[Span], list[Span]]:
    """What a reader should look at: (ranges of the caption, ranges of the negative).

    Where words only changed places, each moved piece is a range of its own; else there is one range
    on both sides, that of the negative with an article that had to change. A negative that is not
    the edit that it says it is has its span, if there is such a one, and is marked as a whole.
    """
    try:
        edit = locate(caption, negative)
    except ValueError:
        start, end = negative.span
        inside = 0 <= start <= end <= len(caption)
        return ([(start, end)] if inside else []), [(0, len(negative.text))]
    target = edit.target
    if edit.article_changed and edit.article:
        return [edit.source], [(edit.article[0], target[1])]
    pieces = _moved(caption, edit.source, negative.text, target)
    return pieces or ([edit.source], [target])


def _moved(old: str, source: Span, new: str, target: Span) -> tuple[list[Span], list[Span]] | None:
    """The pieces that changed places; None if it is not the same words on both sides."""
    olds = [match.span() for match in _PIECE.finditer(old, *source)]
    news = [match.span() for match in _PIECE.finditer(new, *target)]
    words = [old[slice(*span)].lower() for span in olds]
    others = [new[slice(*span)].lower() for span in news]
    if not 1 < len(words) <= _MOST_PIECES or sorted(words) != sorted(others):
        return None
    matcher = difflib.SequenceMatcher(None, words, others, autojunk=False)
    changes = [change for change in matcher.get_opcodes() if change[0] != "equal"]
    return (
        [(olds[i][0], olds[j - 1][1]) for _, i, j, _, _ in changes if i < j],
        [(news[i][0], news[j - 1][1]) for _, _, _, i, j in changes if i < j],
    )


def short(text: str) -> str:
    """A text as a message quotes it: escaped, and at most 80 characters of it."""
    return repr(text) if len(text) <= 80 else f"{text[:80]!r}..."
