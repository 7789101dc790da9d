"""The two ways in which negatives are made today, written as their users would, and batched.

They are what `bench negatives` compares with, not strategies of this project: published code has
neither filters nor seeds for each caption.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from shard_tools.negatives.lexicon import builtin_concepts, load_lexicon

_BATCH = 256


class Recipe(Protocol):
    """A way to make one negative a caption.

    Attributes:
        name: for the table.
    """

    name: str

    def make(self, captions: Sequence[str]) -> Iterator[str | None]:
        """One negative for each caption, or None."""


class NegClip:
    """NegCLIP's recipe (Yuksekgonul et al., ICLR 2023): swap two spans of one kind.

    The whole small English pipeline reads each caption; kinds are noun chunks, nouns, plural nouns,
    adjectives, adverbs and verbs. Of those that occur twice one is drawn, and two of its spans
    change places.
    """

    name = "NegCLIP recipe: spaCy, swap"
    _TAGS = ("NN", "NNS", "JJ", "RB", "VBG")

    def __init__(self, spacy_model: str, seed: int) -> None:
        from shard_tools.lean_spacy import spacy

        self._nlp = spacy.load(spacy_model)
        self._generator = random.Random(seed)

    def make(self, captions: Sequence[str]) -> Iterator[str | None]:
        """See Recipe."""
        for doc in self._nlp.pipe(captions, batch_size=_BATCH):
            kinds = [[(c.start_char, c.end_char) for c in doc.noun_chunks]]
            kinds += [[(t.idx, t.idx + len(t)) for t in doc if t.tag_ == tag] for tag in self._TAGS]
            yield self._swapped(doc, [spans for spans in kinds if len(spans) > 1])

    def _swapped(self, doc: Any, kinds: list[list[tuple[int, int]]]) -> str | None:
        if not kinds:
            return None
        spans = self._generator.choice(kinds)
        (a, b), (c, d) = sorted(self._generator.sample(spans, 2))
        text = doc.text
        swapped = text[:a] + text[c:d] + text[b:c] + text[a:b] + text[d:]
        return swapped if swapped != text else None


class Tsvlc:
    """TSVLC's recipe (Doveh et al., CVPR 2023): `caption.split()`, and lists of words.

    A word that is in a list gives way to another of the same list, drawn evenly. Published lists
    are short; here they are the single words of this project's lexicons.
    """

    name = "TSVLC recipe: split, lists"

    def __init__(self, seed: int) -> None:
        self._generator = random.Random(seed)
        self._lists: dict[str, list[str]] = {}
        for concept in builtin_concepts():
            lexicon = load_lexicon(concept)
            words = [
                lemma for lemma in lexicon.words if lexicon.partners[lemma] and " " not in lemma
            ]
            for word in words:
                self._lists.setdefault(word, words)

    def make(self, captions: Sequence[str]) -> Iterator[str | None]:
        """See Recipe."""
        for caption in captions:
            words = caption.split()
            known = [i for i, word in enumerate(words) if word.lower() in self._lists]
            if not known:
                yield None
                continue
            place = self._generator.choice(known)
            others = self._lists[words[place].lower()]
            words[place] = self._generator.choice(others)
            made = " ".join(words)
            yield made if made != caption else None
