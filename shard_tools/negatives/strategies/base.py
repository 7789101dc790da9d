"""What a strategy is: one way to make a caption false."""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

from hnpretrain.shards.schema import Negative
from shard_tools.negatives import english, rules
from shard_tools.negatives.captions import CaptionText, SampleText, TaggedCaption


@dataclass(frozen=True)
class Proposal:
    """A negative that may be drawn.

    Attributes:
        negative: the negative.
        kind: whose turn it takes when few are drawn, `strategy.kind` as in the settings' mix.
        meaning: what stands for its target; of proposals for one place of the caption, those
            whose meanings are `alike` say nearly the same, and only one is drawn.
        alike: the meanings that say nearly the same as this one.
    """

    negative: Negative
    kind: str
    meaning: str = ""
    alike: frozenset[str] = frozenset()


@dataclass
class Task:
    """One caption to work on.

    Attributes:
        sample: all captions of the image.
        caption: the one to be changed.
        rejects: counts by reason what the strategy could have made and did not.
        identity: what the random numbers depend on: seed, key, caption number, purpose.
    """

    sample: SampleText
    caption: CaptionText
    rejects: Counter[str]
    identity: tuple[int, str, int, str]

    @cached_property
    def generator(self) -> random.Random:
        """Random numbers for this caption and strategy, whatever worker makes it and when."""
        seed, key, number, purpose = self.identity
        text = f'[{seed}, {json.dumps(key)}, {number}, "{purpose}"]'
        return random.Random(int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big"))


def denies(task: Task) -> bool:
    """Whether the caption denies something, and is therefore left alone; counted as `negated`."""
    denied = rules.denies(task.caption)
    if denied:
        task.rejects["negated"] += 1
    return denied


class Strategy(Protocol):
    """One way to make negatives.

    Tagging takes most of the time, so a strategy first says from the text alone whether it needs
    any.

    Attributes:
        kinds: the `strategy.kind` of its proposals.
        identity: what decides its result beside the settings, as JSON values: digests of lexicons
            and models.
    """

    kinds: tuple[str, ...]
    identity: dict[str, Any]

    def begin(self, task: Task) -> Any:
        """What the strategy means to do with a caption, for `finish`; None if nothing."""

    def finish(self, begun: Sequence[tuple[Task, TaggedCaption, Any]]) -> list[list[Proposal]]:
        """The proposals for each caption that was begun, given its tags.

        A whole batch comes at once, for models that are faster so; what one caption gets must not
        depend on the others.
        """


def edited(
    caption: CaptionText, start: int, end: int, target: str, concept: str, strategy: str
) -> Negative:
    """The caption with characters [start, end) replaced, and the article before them put right.

    The target is written as the words that it replaces: capitals at the start, or throughout.
    """
    text = caption.text
    source = text[start:end]
    word = english.match_case(source, target, caption.all_caps)
    if source[:1].isupper() and not any(map(str.isalnum, text[:start])):
        word = english.capitalized(word)  # it opens the caption
    before = english.with_article(text[:start], word, caption.all_caps)
    return Negative(
        text=before + word + text[end:],
        concept=concept,
        strategy=strategy,
        source=source,
        target=word,
        span=(start, end),
    )
