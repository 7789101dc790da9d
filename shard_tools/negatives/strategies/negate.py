"""`negate`: what the caption says is denied."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from shard_tools.negatives import rules
from shard_tools.negatives.captions import TaggedCaption
from shard_tools.negatives.lexicon import Lexicon
from shard_tools.negatives.roles import ADJECTIVES, NOUNS, PREMODIFIERS
from shard_tools.negatives.strategies.base import Proposal, Task, edited
from shard_tools.negatives.strategies.memo import OfSample
from shard_tools.negatives.strategies.phrases import UNDESCRIBING

_BE = frozenset({"is", "are", "was", "were"})
_AFTER_BE = ADJECTIVES | {"VBG", "VBN", "IN"}
_MAIN_VERBS = frozenset({"VBZ", "VBP"})


class Negate:
    """Denies what a thing does, or that it is there: "a dog is running", "a dog is not running".

    CoN-CLIP (Singh, Shrivastava, Vatsa, Singh, Bharati, "Learn 'No' to Say 'Yes' Better: Improving
    Vision-Language Models via Negations", 2024, arXiv 2403.20312). Kinds:
    1. `verb`: "is running" -> "is not running", "a man riding" -> "a man not riding", "two dogs
       run" -> "two dogs do not run", "a dog sits" -> "a dog does not sit";
    2. `noun`: "with a cup" -> "with no cup" or "without a cup", "there is a dog" -> "there is no
       dog".

    The words "no" and "not" give these negatives away unless captions hold them too: CoN-CLIP pairs
    them with captions that truly deny something ("a dog, not a cat"), which a data set must bring.

    Reasons, each for a caption: `negated` (a caption of the image denies something already); for
    a place: `list` ("with a cup and a plate").
    """

    def __init__(self, kinds: Sequence[str], actions: Lexicon) -> None:
        """Args:
        kinds: what is denied, of settings.KINDS["negate"].
        actions: a lexicon of verbs, for "sits" -> "does not sit".
        """
        self.kinds = tuple(f"negate.{kind}" for kind in kinds)
        self.identity: dict[str, Any] = {actions.concept: actions.digest()}
        makers = {"verb": self._verbs, "noun": _nouns}
        self._denied = OfSample(lambda sample: any(map(rules.denies, sample.captions)))
        self._makers: dict[str, Any] = {kind: makers[kind] for kind in kinds}
        self._bases = {
            " ".join(form.words): actions.words[form.lemma].verb_forms()["base"]
            for form in actions.forms.values()
            if form.shape == "s" and form.text == actions.words[form.lemma].verb_forms()["s"]
        } | {"has": "have"}

    def begin(self, task: Task) -> bool | None:
        """True unless a caption of the image denies something."""
        if not task.caption.words.lower:
            return None
        if self._denied(task.sample):
            task.rejects["negated"] += 1
            return None
        return True

    def finish(self, begun: Sequence[tuple[Task, TaggedCaption, bool]]) -> list[list[Proposal]]:
        """See Strategy."""
        return [
            [
                Proposal(
                    edited(task.caption, start, end, target, "negation", "negate"),
                    f"negate.{kind}",
                )
                for kind, maker in self._makers.items()
                for start, end, target in maker(task, tagged)
            ]
            for task, tagged, _ in begun
        ]

    def _verbs(self, task: Task, c: TaggedCaption) -> Iterator[tuple[int, int, str]]:
        """What is done: characters to be replaced, and by what."""
        del task
        for i, (token, tag) in enumerate(zip(c.tokens, c.tags, strict=True)):
            before = c.tags[i - 1] if i > 0 else ""
            after = c.tags[i + 1] if i + 1 < len(c.tags) else ""
            if before not in NOUNS | {"WDT", "PRP"}:
                continue
            if token in _BE and tag in _MAIN_VERBS | {"VBD"}:
                if after in _AFTER_BE:
                    yield c.starts[i], c.ends[i], f"{token} not"
            elif tag == "VBG" and before in NOUNS and after not in ("CC", "VBN"):
                yield c.starts[i], c.ends[i], f"not {token}"
            elif after in ("VBG", "VBN"):
                continue  # "has been decorated"; "two guys horseback riding" is mistagged
            elif tag == "VBP" and before == "NNS" and token.isalpha():
                yield c.starts[i], c.ends[i], f"do not {token}"
            elif tag == "VBZ" and token in self._bases:
                yield c.starts[i], c.ends[i], f"does not {self._bases[token]}"


def _nouns(task: Task, c: TaggedCaption) -> Iterator[tuple[int, int, str]]:
    """What is there: characters to be replaced, and by what."""
    for i, token in enumerate(c.tokens):
        before = c.tags[i - 1] if i > 0 else ""
        opens = token == "with" and before in NOUNS
        exists = token in ("is", "are") and before == "EX"
        if not (opens or exists):
            continue
        noun = _noun_of_phrase(c, i + 1)
        if noun is None or not UNDESCRIBING.isdisjoint(c.tokens[i + 1 : noun]):
            continue
        if c.tokens[noun + 1 : noun + 2] == ["of"]:
            continue  # "with lots of toys"
        if noun + 1 < len(c.tags) and c.tags[noun + 1] in ("CC", ","):
            task.rejects["list"] += 1
            continue
        article = c.tokens[i + 1] in ("a", "an")
        if not article and (c.tags[i + 1] in ("DT", "PDT", "PRP$", "CD") or c.tags[noun] != "NNS"):
            continue
        written = c.tokens[i]
        if opens and task.generator.random() < 0.5:
            yield c.starts[i], c.ends[i], "without"
        else:
            end = c.ends[i + 1] if article else c.ends[i]
            yield c.starts[i], end, f"{written} no"


def _noun_of_phrase(c: TaggedCaption, start: int) -> int | None:
    """The last noun of the phrase that begins here."""
    i = start
    while i < len(c.tags) and c.tags[i] in PREMODIFIERS | NOUNS:
        i += 1
    return i - 1 if i > start and c.tags[i - 1] in NOUNS else None
