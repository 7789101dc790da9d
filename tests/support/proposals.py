"""All that `replace` may put into a caption, whatever is drawn and however few are stored."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from hnpretrain.shards.schema import Negative
from shard_tools.negatives.captions import SampleText, TaggedCaption
from shard_tools.negatives.frequencies import Frequencies
from shard_tools.negatives.lexicon import Lexicon
from shard_tools.negatives.strategies.base import Task
from shard_tools.negatives.strategies.replace import ConceptReplacement
from shard_tools.negatives.tagger import Tagger

# So many even draws that every word of a lexicon comes up: the largest group has 400 forms.
_EVERY = 8000


@dataclass(frozen=True)
class Proposed:
    """What may replace words of a sample's first caption, and what was refused, by reason."""

    negatives: list[Negative]
    rejects: Counter[str]

    @property
    def texts(self) -> set[str]:
        return {negative.text for negative in self.negatives}

    @property
    def targets(self) -> set[str]:
        return {negative.target for negative in self.negatives}

    def edits(self) -> dict[str, set[str]]:
        """Each word that is replaced, with what may come in its place."""
        edits: dict[str, set[str]] = {}
        for negative in self.negatives:
            edits.setdefault(negative.source, set()).add(negative.target)
        return edits


class Proposer:
    """Makes every proposal of `replace` for a caption."""

    def __init__(self, lexicons: Sequence[Lexicon], tagger: Tagger) -> None:
        self._tagger = tagger
        self._strategies = {
            lexicon.concept: ConceptReplacement(lexicon, Frequencies(lexicon), _EVERY)
            for lexicon in lexicons
        }

    def __call__(
        self, *captions: str, concept: str = "", objects: tuple[str, ...] = ()
    ) -> Proposed:
        """The proposals for the first of an image's captions, of one concept or all."""
        sample = SampleText.of(captions, objects)
        caption, rejects = sample.captions[0], Counter[str]()
        (doc,) = self._tagger.tag([caption.text.lower() if caption.all_caps else caption.text])
        negatives = []
        for strategy in [self._strategies[concept]] if concept else self._strategies.values():
            task = Task(sample, caption, rejects, (0, "key", 0, strategy.kinds[0]))
            plan = strategy.begin(task)
            if plan is not None:
                (proposals,) = strategy.finish([(task, TaggedCaption(caption, doc), plan)])
                negatives += [proposal.negative for proposal in proposals]
        return Proposed(negatives, rejects)
