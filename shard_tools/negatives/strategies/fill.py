"""`fill`: a masked language model puts another word in a word's place."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from shard_tools.negatives import english
from shard_tools.negatives.captions import TaggedCaption
from shard_tools.negatives.strategies.base import Proposal, Task, denies, edited
from shard_tools.negatives.strategies.guards import CONCEPTS, PARTS, ROLES, Guards
from shard_tools.negatives.strategies.masked_model import Gap, MaskedModel
from shard_tools.negatives.strategies.phrases import FIXED_DETERMINERS, UNDESCRIBING
from shard_tools.negatives.strategies.places import places_of
from shard_tools.negatives.wndb import WordNet


class Fill:
    """Masks one word and lets a masked language model fill the gap: "a red car", "a blue car".

    CE-CLIP (Zhang, Awal, Agrawal, CVPR 2024) and the second half of TSVLC (Doveh et al., CVPR
    2023). Kinds: `noun`, `adjective`, `verb`; of each one place of the caption is drawn.

    CE-CLIP's recipe takes the fourth of the five likeliest words, so that the true one seldom
    comes. It is not followed: it makes rare words common, and keeps synonyms. Here
    1. only whole words of letters count, of the same part of speech and form as the one masked, as
       the lexicons have it, or WordNet where they don't know the word;
    2. one is drawn from the likeliest by their probabilities, the original among them; when that
       comes up no negative is made. Where the model is right about the corpus, negatives then have
       its word frequencies, and no text-only classifier finds them out (see `frequencies`);
    3. what was drawn is no form, synonym, hypernym or hyponym of the original, and no caption of
       the image mentions it.
    A caption without such a word gets none, where CE-CLIP's code stores the bare mask.

    Reasons, each for a word: `unknown` (no lemma is known of it), `too_long_for_model`,
    `synonym`, and those of `Guards.refusal`; `negated` for a caption.
    """

    def __init__(
        self, kinds: Sequence[str], model: MaskedModel, guards: Guards, wordnet: WordNet | None
    ) -> None:
        """Args:
        kinds: what is replaced, of settings.KINDS["fill"].
        model: fills the gaps.
        guards: rule out what may be true.
        wordnet: knows forms and parts of speech beyond the lexicons'; None if there is none.
        """
        self.kinds = tuple(f"fill.{kind}" for kind in kinds)
        self.identity: dict[str, Any] = {
            "model": model.digest,
            "top": model.top,
            **guards.identity,
        }
        self._model = model
        self._guards = guards
        self._wordnet = wordnet

    def begin(self, task: Task) -> bool | None:
        """True unless the caption is empty or denies something."""
        if not task.caption.words.lower:
            return None
        return None if denies(task) else True

    def finish(self, begun: Sequence[tuple[Task, TaggedCaption, bool]]) -> list[list[Proposal]]:
        """See Strategy."""
        proposals: list[list[Proposal]] = [[] for _ in begun]
        asked: list[tuple[int, str, int, str]] = []  # number of the caption, kind, token, shape
        gaps = []
        for number, (task, tagged, _) in enumerate(begun):
            for kind in self.kinds:
                places = list(places_of(tagged, kind.partition(".")[2]))
                if places:
                    token, shape = task.generator.choice(places)
                    asked.append((number, kind, token, shape))
                    gaps.append(self._gap(tagged, kind, token, shape))
        for (number, kind, token, shape), words in zip(asked, self._model.fill(gaps), strict=True):
            task, tagged, _ = begun[number]
            proposal = self._proposal(task, tagged, kind, token, shape, words)
            if proposal is not None:
                proposals[number].append(proposal)
        return proposals

    def _gap(self, tagged: TaggedCaption, kind: str, token: int, shape: str) -> Gap:
        part = PARTS[kind.partition(".")[2]]
        name = f"{part} {shape}"
        self._model.allow(name, lambda word: self._lemma(word, part, shape) is not None)
        return Gap(tagged.caption.text, tagged.starts[token], tagged.ends[token], name)

    def _proposal(
        self,
        task: Task,
        tagged: TaggedCaption,
        kind: str,
        token: int,
        shape: str,
        words: dict[str, float],
    ) -> Proposal | None:
        name = kind.partition(".")[2]
        original, part = tagged.tokens[token], PARTS[name]
        drawn = task.generator.random()
        if not words:
            task.rejects["too_long_for_model"] += 1
            return None
        ends = accumulate(words.values())
        word = next((w for w, end in zip(words, ends, strict=True) if drawn < end), original)
        if word == original:
            return None
        lemma, target = self._lemma(original, part, shape), self._lemma(word, part, shape)
        if lemma is None or target is None or self._guards.in_compound(tagged, token):
            task.rejects["unknown"] += 1
            return None
        reason = "synonym" if english.stems(word) & english.stems(original) else ""
        reason = reason or self._guards.refusal(task, tagged, token, lemma, target, part)
        if reason:
            task.rejects[reason] += 1
            return None
        start, end = tagged.starts[token], tagged.ends[token]
        return Proposal(edited(task.caption, start, end, word, CONCEPTS[name], "fill"), kind, word)

    def _lemma(self, word: str, part: str, shape: str) -> str | None:
        """The lemma of a word that is mostly used as this part of speech, in this shape."""
        if len(word) < 3 or word in FIXED_DETERMINERS or word in UNDESCRIBING:
            return None  # WordNet has "in" for inches
        known = False
        for lexicon in self._guards.lexicons:
            form = lexicon.forms.get((word,))
            if form is not None:
                known = True
                if lexicon.role == ROLES[part] and form.shape == shape:
                    return form.lemma
        if known or self._wordnet is None:
            return None
        lemma = self._wordnet.lemma(word, part, shape)
        return lemma if lemma and self._wordnet.usual_part(lemma) == part else None
