"""A sample's captions as strategies see them: spaCy documents, words, and what is mentioned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from shard_tools.negatives import english
from shard_tools.negatives.lexicon import Form, Lexicon


@dataclass(frozen=True)
class CaptionedSample:
    """What negatives are made from.

    Attributes:
        key: the sample's key; random draws are seeded by it.
        captions: all captions of the image; what one mentions is no negative of another.
        objects: names of objects annotated in the image; no negative may name one.
    """

    key: str
    captions: tuple[str, ...]
    objects: tuple[str, ...] = ()


@dataclass
class ParsedCaption:
    """One caption: its text, its spaCy document (same characters) and its words."""

    text: str
    doc: Any
    words: list[english.TextWord] = field(init=False)
    all_caps: bool = field(init=False)

    def __post_init__(self) -> None:
        self.words = english.words_of(self.text)
        self.all_caps = english.is_all_caps(self.text)

    def tokens(self, start: int, end: int) -> list[Any]:
        """The spaCy tokens of [start, end), or none where spaCy cuts the text otherwise."""
        span = self.doc.char_span(start, end, alignment_mode="strict")
        return list(span) if span is not None else []


@dataclass
class ParsedSample:
    """All captions of an image, and quick answers to "is this mentioned anywhere?"."""

    captions: Sequence[ParsedCaption]
    objects: tuple[str, ...]
    _phrases: dict[int, frozenset[tuple[str, ...]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.objects = tuple(" ".join(w.lower for w in english.words_of(o)) for o in self.objects)

    def mentioned(self, form: Form) -> bool:
        """Whether any caption contains the form, in whatever role."""
        length = len(form.words)
        if length not in self._phrases:
            self._phrases[length] = frozenset(
                tuple(word.lower for word in caption.words[i : i + length])
                for caption in self.captions
                for i in range(len(caption.words) - length + 1)
            )
        return form.words in self._phrases[length]

    def annotated(self, form: Form) -> bool:
        """Whether an annotated object has this name."""
        return " ".join(form.words) in self.objects


@dataclass(frozen=True)
class Mention:
    """A form of a lexicon found in a caption, at characters [start, end)."""

    form: Form
    start: int
    end: int


def mentions(caption: ParsedCaption, lexicon: Lexicon) -> list[Mention]:
    """The caption's words that the lexicon knows, left to right, longest first, idioms left out."""
    found: list[Mention] = []
    words = [word.lower for word in caption.words]
    i = 0
    while i < len(words):
        step = 1
        for length in range(min(lexicon.longest, len(words) - i), 0, -1):
            phrase = tuple(words[i : i + length])
            form = lexicon.forms.get(phrase)
            if phrase in lexicon.idioms:
                step = length
                break
            if form is not None:
                end = caption.words[i + length - 1].end
                found.append(Mention(form, caption.words[i].start, end))
                step = length
                break
        i += step
    return found
