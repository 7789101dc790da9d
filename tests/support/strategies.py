"""What one strategy makes of a caption, whatever a maker would draw from it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from hnpretrain.shards.schema import Negative
from shard_tools.edits import locate
from shard_tools.negatives import english
from shard_tools.negatives.captions import SampleText, TaggedCaption
from shard_tools.negatives.strategies.base import Proposal, Strategy, Task
from shard_tools.negatives.tagger import Tagger

WORDNET = Path(__file__).parents[1] / "assets" / "wordnet"


@dataclass(frozen=True)
class Made:
    """A strategy's proposals for a sample's first caption, and what it refused, by reason."""

    proposals: list[Proposal]
    rejects: Counter[str]

    @property
    def texts(self) -> set[str]:
        return {proposal.negative.text for proposal in self.proposals}

    def of(self, kind: str) -> set[str]:
        return {p.negative.text for p in self.proposals if p.kind.endswith(f".{kind}")}


def make(
    strategy: Strategy,
    tagger: Tagger,
    *captions: str,
    objects: tuple[str, ...] = (),
    key: str = "key",
) -> Made:
    """Runs a strategy on the first of an image's captions, with random numbers of a key."""
    sample = SampleText.of(captions, objects)
    caption = sample.captions[0]
    task = Task(sample, caption, Counter(), (0, key, 0, strategy.kinds[0]))
    plan = strategy.begin(task)
    if plan is None:
        return Made([], task.rejects)
    (doc,) = tagger.tag([english.lowered(caption.text) if caption.all_caps else caption.text])
    (proposals,) = strategy.finish([(task, TaggedCaption(caption, doc), plan)])
    for proposal in proposals:
        check(caption.text, proposal.negative)
    return Made(proposals, task.rejects)


def check(caption: str, negative: Negative) -> None:
    """A negative is its caption with the span replaced, but for an article before the span."""
    locate(caption, negative)
    assert english.plain(negative.text) != english.plain(caption)


def words_of(text: str) -> list[str]:
    """A text's words in alphabetical order, with "an" as "a"."""
    return sorted("a" if word == "an" else word for word in english.plain(text).split())
