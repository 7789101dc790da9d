"""`replace`: one word of a concept gives way to another of the same concept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from shard_tools.negatives import rules
from shard_tools.negatives.captions import TaggedCaption
from shard_tools.negatives.frequencies import Frequencies, balanced
from shard_tools.negatives.lexicon import Form, Lexicon, Mention
from shard_tools.negatives.roles import countable_as, holds, use_of
from shard_tools.negatives.strategies.base import Proposal, Task, edited

_LIKENESS = frozenset({"like", "as", "than"})


class ConceptReplacement:
    """Replaces one word of a concept by another of the same concept; the rest stays.

    Roesch, Oswald, Geierhos, Libovicky, "Enhancing Conceptual Understanding in Multimodal
    Contrastive Learning through Hard Negative Samples", 2024 (arXiv 2403.02875): "A white cat
    sits under a black open umbrella" -> "A brown cat sits ...". The paper's word lists are not
    published; the lexicons are this project's, and so are the guards below. With lists of states,
    materials, actions and counts, the same is the rule-based half of TSVLC (Doveh et al.,
    "Teaching Structured Vision & Language Concepts to Vision & Language Models", CVPR 2023).

    A word is replaced only where
    1. tags say that it is used in the concept's role, outside idioms and negations;
    2. the exchange's conditions on the words around it hold;
    3. the target is no synonym, hypernym or hyponym of it, and neither the target nor anything
       related to it is mentioned in any caption of the image or annotated in it;
    4. no scene that the captions speak of is likely to hold the target unmentioned;
    5. number, countability and pronouns go with the target.
    What comes in its place is drawn as `frequencies` tells.

    Reasons for a word: `negated`, `repeated`, `role`. For a target that was drawn: `context`
    (no exchange goes with the words around it), `number`, and those of `rules.refusal`.
    """

    def __init__(self, lexicon: Lexicon, frequencies: Frequencies, draws: int) -> None:
        """Args:
        lexicon: the concept's words.
        frequencies: of those words.
        draws: how often is drawn for each word: more give more negatives.
        """
        self.kinds: tuple[str, ...] = (f"replace.{lexicon.concept}",)
        self.identity: dict[str, Any] = {lexicon.concept: lexicon.digest()}
        self._lexicon = lexicon
        self._frequencies = frequencies
        self._draws = draws

    def begin(self, task: Task) -> list[tuple[Mention, list[Form]]] | None:
        """The words to replace, each with the forms drawn for it."""
        lexicon, caption = self._lexicon, task.caption
        found = caption.mentions(lexicon)
        exchanged = [mention for mention in found if lexicon.partners[mention.form.lemma]]
        if not exchanged:
            return None
        if rules.denies(caption):
            task.rejects["negated"] += len(exchanged)
            return None
        plans = []
        for mention in exchanged:
            if sum(other.form.lemma == mention.form.lemma for other in found) > 1:
                # "A man shakes hands with another man": one of two is changed at best.
                task.rejects["repeated"] += 1
            elif forms := self._drawn(task, mention):
                plans.append((mention, forms))
        return plans or None

    def _drawn(self, task: Task, mention: Mention) -> list[Form]:
        partners = self._lexicon.partners[mention.form.lemma]
        mixture = self._frequencies.mixture(task.caption, mention)
        drawn = balanced(
            self._frequencies, mixture, mention.form, partners, self._draws, task.generator
        )
        forms = []
        for form in drawn:
            reason = rules.refusal(self._lexicon, task.sample, task.caption, mention, form.lemma)
            if reason:
                task.rejects[reason] += 1
            else:
                forms.append(form)
        return forms

    def finish(
        self, begun: Sequence[tuple[Task, TaggedCaption, list[tuple[Mention, list[Form]]]]]
    ) -> list[list[Proposal]]:
        """See Strategy."""
        return [
            [
                proposal
                for mention, forms in plans
                for proposal in self._proposals(task, tagged, mention, forms)
            ]
            for task, tagged, plans in begun
        ]

    def _proposals(
        self, task: Task, tagged: TaggedCaption, mention: Mention, forms: Sequence[Form]
    ) -> list[Proposal]:
        lexicon = self._lexicon
        source = lexicon.words[mention.form.lemma]
        use = use_of(tagged, mention, source, lexicon.role)
        if use is None or (
            lexicon.role == "noun"
            and (use.after in _LIKENESS or (source.ambiguous and not use.determined))
        ):
            task.rejects["role"] += 1
            return []
        if lexicon.role == "relation" and _names_twice(tagged, use.heads):
            # "A train behind a train": one is in front of a train as well.
            task.rejects["repeated"] += 1
            return []
        start, end = task.caption.span_of(mention)
        proposals = []
        for form in forms:
            target = lexicon.words[form.lemma]
            if not any(
                form.lemma in exchange.targets and holds(exchange, use, lexicon.role)
                for exchange in lexicon.exchanges_of(source.lemma)
            ):
                task.rejects["context"] += 1
            elif lexicon.role == "noun" and target.ambiguous and not use.determined:
                task.rejects["role"] += 1
            elif lexicon.role == "noun" and not countable_as(source, target, use):
                task.rejects["number"] += 1
            else:
                negative = edited(task.caption, start, end, form.text, lexicon.concept, "replace")
                alike = lexicon.family(form.lemma) | lexicon.broader(form.lemma)
                proposals.append(Proposal(negative, self.kinds[0], form.lemma, alike))
        return proposals


def _names_twice(tagged: TaggedCaption, names: frozenset[str]) -> bool:
    """Whether two words of the caption are forms of one of these."""
    return sum(token in names or f"{token}s" in names for token in tagged.tokens) > 1
