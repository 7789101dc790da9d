"""`shuffle`: the caption's words in another order."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from hnpretrain.shards.schema import Negative
from shard_tools.negatives.captions import CaptionText, TaggedCaption
from shard_tools.negatives.roles import ADJECTIVES, NOUNS, VERBS
from shard_tools.negatives.strategies.base import Proposal, Task, denies, edited
from shard_tools.negatives.strategies.phrases import symmetric

_TRIES = 8
_FEWEST_WORDS = 4
_WORD = re.compile(r"\S+")
_FINAL = re.compile(r"[^\w\s]+\s*$")


class Shuffle:
    """Puts words in another order, mostly one that is no English: that is its nature.

    ARO (Yuksekgonul et al., ICLR 2023) shuffles nouns and adjectives (`words`), FSC-CLIP (Oh, Cho,
    Kim, Kim, Hwang, "Preserving Multi-Modal Capabilities of Pre-trained VLMs for Improving
    Vision-Linguistic Compositionality", EMNLP 2024) the caption's pairs of adjacent words
    (`bigram`): each pair stays together, their order is drawn. A text-only classifier finds these
    out; they teach a text tower that order matters, and little else.

    The first word's capital and the final punctuation stay in place. Words only change places, so
    an "a" may come before a vowel. Pairs that are whole phrases ("lying down", "on the") make
    captions that still hold, so `bigram` parts a noun from the word before it and one from the word
    after it. Words of one list ("a cat and a dog") in another order would say the same, so `words`
    moves at least one past a verb or a preposition.

    Reasons, each for a caption: `negated`, `short` (too few words to shuffle), `list` (no order
    that was drawn changes the meaning).
    """

    identity: dict[str, Any] = {}  # noqa: RUF012  (nothing but the settings decides)

    def __init__(self, kinds: Sequence[str]) -> None:
        """Args:
        kinds: what is shuffled, of settings.KINDS["shuffle"].
        """
        self.kinds = tuple(f"shuffle.{kind}" for kind in kinds)
        makers = {"bigram": _bigrams, "words": _words}
        self._makers: dict[str, Any] = {kind: makers[kind] for kind in kinds}

    def begin(self, task: Task) -> bool | None:
        """True where there are words to shuffle."""
        if len(task.caption.words.lower) < _FEWEST_WORDS:
            task.rejects["short"] += 1
            return None
        return None if denies(task) else True

    def finish(self, begun: Sequence[tuple[Task, TaggedCaption, bool]]) -> list[list[Proposal]]:
        """See Strategy."""
        return [
            [
                Proposal(negative, f"shuffle.{kind}")
                for kind, maker in self._makers.items()
                if (negative := maker(task, tagged)) is not None
            ]
            for task, tagged, _ in begun
        ]


def _bigrams(task: Task, tagged: TaggedCaption) -> Negative | None:
    text = task.caption.text
    final = _FINAL.search(text)
    found = list(_WORD.finditer(text, 0, final.start() if final else len(text)))
    words = [match.group() for match in found]
    if words and not tagged.tags[0].startswith("NNP") and not task.caption.all_caps:
        words[0] = words[0][:1].lower() + words[0][1:]
    starts = {start for start, tag in zip(tagged.starts, tagged.tags, strict=True) if tag in NOUNS}
    nouns = frozenset(
        word for word, match in zip(words, found, strict=True) if match.start() in starts
    )
    pairs = [words[i : i + 2] for i in range(0, len(words), 2)]
    for _ in range(_TRIES):
        task.generator.shuffle(pairs)
        order = [word for pair in pairs for word in pair]
        if _lost(words, order, nouns):
            places = [match.span() for match in found]
            return _rewritten(task.caption, places, order)
    task.rejects["list" if len(pairs) > 1 and len(set(words)) > 1 else "short"] += 1
    return None


def _lost(words: Sequence[str], order: Sequence[str], nouns: frozenset[str]) -> bool:
    """Whether a noun has lost the word before it, and one the word after it."""
    lost = set(pairwise(words)) - set(pairwise(order))
    return any(after in nouns for _, after in lost) and any(before in nouns for before, _ in lost)


def _words(task: Task, tagged: TaggedCaption) -> Negative | None:
    places = [
        i
        for i, tag in enumerate(tagged.tags)
        if tag in NOUNS | ADJECTIVES and tagged.tokens[i].isalpha()
    ]
    if len(places) < 2:
        task.rejects["short"] += 1
        return None
    parts = _parts(tagged)
    for _ in range(_TRIES):
        drawn = _shuffled(tagged, places, task.generator)
        # A word that only changes places with one of its own part says the same in a list.
        if any(
            tagged.tokens[i] != tagged.tokens[j] and parts[i] != parts[j]
            for i, j in zip(places, drawn, strict=True)
        ):
            order = {i: _token(tagged, j) for i, j in zip(places, drawn, strict=True)}
            everything = range(len(tagged.tokens))
            spans = [(tagged.starts[i], tagged.ends[i]) for i in everything]
            return _rewritten(
                task.caption, spans, [order.get(i, _token(tagged, i)) for i in everything]
            )
    task.rejects["list"] += 1
    return None


def _shuffled(tagged: TaggedCaption, places: Sequence[int], generator: random.Random) -> list[int]:
    """For each place the one whose word comes there: nouns by nouns, adjectives by adjectives."""
    drawn: dict[int, int] = {}
    for tags in (NOUNS, ADJECTIVES):
        own = [i for i in places if tagged.tags[i] in tags]
        drawn.update(zip(own, generator.sample(own, len(own)), strict=True))
    return [drawn[i] for i in places]


def _token(tagged: TaggedCaption, i: int) -> str:
    """A token as written, but for the capital that opens the caption."""
    word = tagged.caption.text[tagged.starts[i] : tagged.ends[i]]
    if i == 0 and not tagged.tags[0].startswith("NNP") and not tagged.caption.all_caps:
        return word[:1].lower() + word[1:]
    return word


def _parts(tagged: TaggedCaption) -> list[int]:
    """For each token the number of the part that it stands in: verbs and prepositions part."""
    parts, part = [], 0
    for i, tag in enumerate(tagged.tags):
        if (tag in VERBS or tag in ("IN", "TO")) and not symmetric(tagged, i):
            part += 1
        parts.append(part)
    return parts


def _rewritten(
    caption: CaptionText, places: Sequence[tuple[int, int]], words: Sequence[str]
) -> Negative | None:
    """The caption with other words at some places; None if that changes nothing.

    The capital of the first place stays. An article before the first word that changed is inside
    the span: before a span it would follow the new word.
    """
    text = caption.text
    written = list(words)
    if text[places[0][0]].isupper():
        written[0] = written[0][:1].upper() + written[0][1:]
    changed = [i for i, (start, end) in enumerate(places) if text[start:end] != written[i]]
    if not changed:
        return None
    first, last = changed[0], changed[-1]
    while first > 0 and written[first - 1].lower() in ("a", "an"):
        first -= 1
    start, end = places[first][0], places[last][1]
    target, at = "", start
    for i in range(first, last + 1):
        target += text[at : places[i][0]] + written[i]
        at = places[i][1]
    return edited(caption, start, end, target, "order", "shuffle")
