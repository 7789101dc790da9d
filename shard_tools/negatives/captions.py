"""A sample's captions as strategies see them: words, what they mention, and tags once there are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from shard_tools.negatives import english
from shard_tools.negatives.lexicon import Lexicon, Mention

# Between a relation and what it governs.
_DETERMINERS = frozenset(
    "a the his her its their my your our some this that these those two three several".split()  # noqa: SIM905
)


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


class CaptionText:
    """One caption as text: nothing here needs a language model.

    Attributes:
        text: the caption.
        words: its words and symbols.
        context: `words.lower` with "an" as "a" and a full stop as "$", for counting contexts.
        all_caps: whether it is written in capitals throughout.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.words = english.Words(text)
        self._mentions: dict[str, list[Mention]] = {}

    @cached_property
    def all_caps(self) -> bool:
        return english.is_all_caps(self.text)

    @cached_property
    def context(self) -> tuple[str, ...]:
        words = self.words.lower
        return tuple(map(_CONTEXT_WORDS.get, words, words))

    def mentions(self, lexicon: Lexicon) -> list[Mention]:
        """`Lexicon.mentions` of this caption, found once."""
        if lexicon.concept not in self._mentions:
            self._mentions[lexicon.concept] = lexicon.mentions(self.words.lower)
        return self._mentions[lexicon.concept]

    def span_of(self, mention: Mention) -> tuple[int, int]:
        """The mention's [start, end) in characters."""
        spans = self.words.spans
        return spans[mention.start][0], spans[mention.end - 1][1]

    def governed(self, end: int) -> str:
        """The first word from `end` on that is no determiner: what a relation there governs."""
        for word in self.context[end:]:
            if word not in _DETERMINERS:
                return word
        return "$"

    def governed_stems(self, end: int) -> frozenset[str]:
        """What the words of the phrase that a relation ending at `end` governs are forms of."""
        found: set[str] = set()
        for word in self.context[end : end + _PHRASE_WORDS]:
            if word in _PHRASE_ENDS:
                break
            if word not in _DETERMINERS:
                found |= english.stems(word)
        return frozenset(found)


# A phrase is looked at so far, or up to what certainly is no more of it.
_PHRASE_WORDS = 6
_PHRASE_ENDS = frozenset(
    "$ , ; : and of in on at with by to from for that which who while is are was were has".split()  # noqa: SIM905
)
_CONTEXT_WORDS = {"an": "a", ".": "$"}


@dataclass(frozen=True)
class Mentioned:
    """What a sample mentions of one lexicon.

    Attributes:
        lemmas: of every form in any caption, in whatever role.
        several: the lemmas of which a form may speak of several things.
        annotated: lemmas of annotated objects.
        governed: of a lexicon of relations, lemma to what the words that it governs are forms of.
        held: what its scene may show unmentioned.
    """

    lemmas: frozenset[str]
    several: frozenset[str]
    annotated: frozenset[str]
    governed: Mapping[str, frozenset[str]]
    held: frozenset[str]


@dataclass
class SampleText:
    """All captions of an image as text, and quick answers to "is this mentioned anywhere?"."""

    captions: tuple[CaptionText, ...]
    objects: tuple[str, ...] = ()
    _mentioned: dict[str, Mentioned] = field(default_factory=dict)

    @classmethod
    def of(cls, captions: Iterable[str], objects: tuple[str, ...] = ()) -> SampleText:
        return cls(tuple(map(CaptionText, captions)), objects)

    def mentioned(self, lexicon: Lexicon) -> Mentioned:
        """What the sample mentions of a lexicon, found once."""
        if lexicon.concept not in self._mentioned:
            self._mentioned[lexicon.concept] = self._find(lexicon)
        return self._mentioned[lexicon.concept]

    @cached_property
    def plain(self) -> frozenset[str]:
        """All captions but for case, space and punctuation."""
        return frozenset(english.plain(caption.text) for caption in self.captions)

    def _find(self, lexicon: Lexicon) -> Mentioned:
        lemmas, several = set(), set()
        governed: dict[str, frozenset[str]] = {}
        for caption in self.captions:
            for form in lexicon.forms_in(caption.words.lower):
                lemmas.add(form.lemma)
                if form.several:
                    several.add(form.lemma)
            if lexicon.role == "relation":
                for mention in caption.mentions(lexicon):
                    lemma = mention.form.lemma
                    stems = caption.governed_stems(mention.end)
                    governed[lemma] = governed.get(lemma, frozenset()) | stems
        annotated = set()
        for name in self.objects:
            known = lexicon.forms.get(english.Words(name).lower)
            if known is not None:
                annotated.add(known.lemma)
        return Mentioned(
            lemmas=frozenset(lemmas),
            several=frozenset(several),
            annotated=frozenset(annotated),
            governed=governed,
            held=lexicon.held_with(lemmas | annotated),
        )


class TaggedCaption:
    """A caption with the fine part-of-speech tags (Penn Treebank) of its tokens.

    Attributes:
        caption: its text.
        tokens: each token's text, lower case.
        tags: each token's tag.
    """

    def __init__(self, caption: CaptionText, doc: Any) -> None:
        """Takes what is needed of a spaCy document, in one go: its tokens are slow one by one."""
        self.caption = caption
        rows = doc.to_array(["TAG", "IDX", "LENGTH"]).tolist()
        strings, lower = doc.vocab.strings, caption.text.lower()
        same_places = len(lower) == len(caption.text)  # some letters grow when lowered
        self.tags = [strings[tag] for tag, _, _ in rows]
        self.starts = [start for _, start, _ in rows]
        self.ends = [start + length for _, start, length in rows]
        self.tokens = (
            [lower[start : start + length] for _, start, length in rows]
            if same_places
            else [token.lower_ for token in doc]
        )

    def tokens_of(self, mention: Mention) -> range:
        """Places of the mention's tokens; empty where spaCy cuts the text otherwise."""
        start, end = self.caption.span_of(mention)
        try:
            first = self.starts.index(start)
            last = self.ends.index(end, first)
        except ValueError:
            return range(0)
        return range(first, last + 1)

    def text_of(self, tokens: range) -> str:
        """The caption's characters from the first to the last of these tokens."""
        return self.caption.text[self.starts[tokens[0]] : self.ends[tokens[-1]]]
