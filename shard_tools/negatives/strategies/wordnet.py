"""`wordnet`: a word gives way to its antonym, or to another kind of the same thing."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate

from shard_tools.negatives import english
from shard_tools.negatives.captions import TaggedCaption
from shard_tools.negatives.lexicon import Word
from shard_tools.negatives.roles import NOUNS
from shard_tools.negatives.strategies.base import Proposal, Task, denies, edited
from shard_tools.negatives.strategies.guards import CONCEPTS, PARTS, ROLES, SENSES, Guards
from shard_tools.negatives.strategies.places import places_of
from shard_tools.negatives.wndb import ADJECTIVE, NOUN, VERB, Synset, WordNet

# Lexicographer files (lexnames(5)) of what is seen in pictures.
_ANIMALS, _ARTIFACTS, _FOOD, _OBJECTS, _PEOPLE, _PLANTS = 5, 6, 13, 17, 18, 20
_CONCRETE = frozenset({_ANIMALS, _ARTIFACTS, _FOOD, _OBJECTS, _PEOPLE, _PLANTS})
# What is under a broader word than this is no other kind of one thing ("structure", "device").
_MOST_KINDS = 60
_CACHED = 1 << 14


class WordNetReplacement:
    """Replaces a word by its antonym in WordNet, else by a co-hyponym: "a fork" -> "a spoon".

    FSC-CLIP (Oh, Cho, Kim, Kim, Hwang, "Preserving Multi-Modal Capabilities of Pre-trained VLMs for
    Improving Vision-Linguistic Compositionality", EMNLP 2024); WordNet: Miller, "WordNet: A Lexical
    Database for English", 1995. Kinds: `noun`, `adjective`, `verb`.

    1. The meaning is the most frequent one: of nouns, that can be seen. An adjective whose meanings
       have different contraries ("old": young, new) is left alone.
    2. Candidates are its antonyms; of nouns and verbs without any, the words that share a direct
       hypernym. People have antonyms alone: an actor can be a father.
    3. A candidate must have this meaning as its most frequent one, be tagged at least once in
       WordNet's corpus, be one plain word, and never be a synonym, hypernym or hyponym of the
       word in any of the first few meanings of both. Where the lexicons know one of them, they
       must exchange both: a suit and a shirt share a hypernym too. Where they know neither, only
       animals, food and qualities are taken: what else shares a hypernym is often no English in the
       other's place ("runway", "lever"). A verb takes what the other takes.
    4. One is drawn by WordNet's counts, the word itself among them; when that comes up, no
       negative is made, so that a word is entered as often as it is left (see `frequencies`).
    5. No caption of the image mentions it, what may be it, or a kind of it; no annotated object
       is one.

    Reasons, each for a word: `unknown` (no such meaning in WordNet, or no candidate), `role`,
    `repeated`, `number`, and those of `Guards.refusal`; `negated` for a caption.
    """

    def __init__(self, kinds: Sequence[str], wordnet: WordNet, guards: Guards) -> None:
        """Args:
        kinds: what is replaced, of settings.KINDS["wordnet"].
        wordnet: where words are looked up.
        guards: rule out what may be true.
        """
        self.kinds = tuple(f"wordnet.{kind}" for kind in kinds)
        self.identity = guards.identity
        self._guards = guards
        self._wordnet = wordnet
        self._candidates = lru_cache(_CACHED)(self._find_candidates)

    def begin(self, task: Task) -> bool | None:
        """True unless the caption is empty or denies something."""
        if not task.caption.words.lower:
            return None
        return None if denies(task) else True

    def finish(self, begun: Sequence[tuple[Task, TaggedCaption, bool]]) -> list[list[Proposal]]:
        """See Strategy."""
        return [
            [
                proposal
                for kind in self.kinds
                for token, shape in places_of(tagged, kind.partition(".")[2])
                if (proposal := self._proposal(task, tagged, kind, token, shape)) is not None
            ]
            for task, tagged, _ in begun
        ]

    def _proposal(
        self, task: Task, tagged: TaggedCaption, kind: str, token: int, shape: str
    ) -> Proposal | None:
        name = kind.partition(".")[2]
        part = PARTS[name]
        lemma = self._wordnet.lemma(tagged.tokens[token], part, shape)
        targets, ends = self._candidates(lemma, part) if lemma else ((), ())
        if lemma is None or not targets:
            task.rejects["unknown"] += 1
            return None
        target = task.generator.choices(targets, cum_weights=ends)[0]
        if target == lemma:
            return None
        if reason := (
            self._misuse(tagged, token, lemma, target, shape, part)
            or self._guards.refusal(task, tagged, token, lemma, target, part)
        ):
            task.rejects[reason] += 1
            return None
        written = self._wordnet.inflected(target, part, shape)
        start, end = tagged.starts[token], tagged.ends[token]
        negative = edited(task.caption, start, end, written, CONCEPTS[name], "wordnet")
        return Proposal(negative, kind, target)

    def _misuse(
        self, tagged: TaggedCaption, token: int, lemma: str, target: str, shape: str, part: str
    ) -> str:
        """Why no such word may stand at a place, or ''."""
        if part == NOUN and sum(lemma in english.stems(word) for word in tagged.tokens) > 1:
            return "repeated"
        if self._guards.in_compound(tagged, token):
            return "role"
        if part == VERB and not self._done_by_living(tagged, token):
            return "role"
        return "number" if part == NOUN and not self._countable(lemma, target, shape) else ""

    def _done_by_living(self, tagged: TaggedCaption, token: int) -> bool:
        """Whether the nearest noun before a verb is a person or an animal.

        Of things, "sits" and "stands" say the same.
        """
        for i in range(token - 1, -1, -1):
            if tagged.tags[i] in NOUNS:
                shape = "many" if tagged.tags[i] == "NNS" else "one"
                lemma = self._wordnet.lemma(tagged.tokens[i], NOUN, shape)
                senses = self._wordnet.senses(lemma, NOUN)[:1] if lemma else ()
                return any(synset.file in (_PEOPLE, _ANIMALS) for synset in senses)
        return False

    def _countable(self, lemma: str, target: str, shape: str) -> bool:
        """Whether a noun has the number of the place: WordNet doesn't tell "bread" from "loaf"."""
        for word in (lemma, target):
            known = self._known(word)
            if known is not None:
                if known.ambiguous or known.number not in ("count", "both"):
                    return False
            elif shape == "one" and self._wordnet.senses(word, NOUN)[0].file == _FOOD:
                return False
        return True

    def _known(self, noun: str) -> Word | None:
        """What a lexicon of nouns says of a word."""
        for lexicon in self._guards.lexicons:
            form = lexicon.forms.get((noun,))
            if form is not None and lexicon.role == "noun":
                return lexicon.words[form.lemma]
        return None

    def _find_candidates(self, lemma: str, part: str) -> tuple[tuple[str, ...], tuple[int, ...]]:
        """The words to draw from, the lemma first, and the running sums of their counts."""
        counts: dict[str, int] = {}
        for synset in self._meanings(lemma, part):
            for target in self._others(synset, lemma):
                count = self._wordnet.count(target, part, 0)
                if (
                    count
                    and _plain(target)
                    and not self._guards.related(lemma, target, part)
                    and self._exchangeable(lemma, target, synset)
                ):
                    counts[target] = count
        if not counts:
            return (), ()
        own = max(1, self._wordnet.count(lemma, part, 0))
        targets = sorted(counts)
        return (lemma, *targets), tuple(accumulate((own, *(counts[word] for word in targets))))

    def _exchangeable(self, lemma: str, target: str, synset: Synset) -> bool:
        """Whether a lexicon exchanges two words or, where that will do, none knows either."""
        unknown = synset.part == ADJECTIVE or synset.file == _FOOD or self._is_animal(synset)
        for lexicon in self._guards.lexicons:
            if lexicon.role == ROLES[synset.part]:
                source, into = lexicon.forms.get((lemma,)), lexicon.forms.get((target,))
                if source is not None and into is not None:
                    return into.lemma in lexicon.partners[source.lemma]
                if source is not None or into is not None:
                    unknown = False
        return unknown

    def _is_animal(self, synset: Synset) -> bool:
        """Whether it is a kind of animal: the lexicographers' file has their wings, too."""
        animal = self._wordnet.senses("animal", NOUN)[:1]
        return any(one.name in self._wordnet.broader(*synset.name) for one in animal)

    def _meanings(self, lemma: str, part: str) -> Sequence[Synset]:
        """The meanings in which a lemma is replaced."""
        senses = self._wordnet.senses(lemma, part)[:SENSES]
        if part == NOUN:
            return [synset for synset in senses if synset.file in _CONCRETE][:1]
        if part == VERB:
            return senses[:1]
        contrary = [synset for synset in senses if self._wordnet.antonyms(synset, lemma)]
        if len({word for s in contrary for word in self._wordnet.antonyms(s, lemma)}) > 1:
            return []
        return contrary[:1]

    def _others(self, synset: Synset, lemma: str) -> list[str]:
        """Antonyms of a lemma in this meaning; else words beside it under a hypernym."""
        antonyms = self._wordnet.antonyms(synset, lemma)
        if antonyms or synset.part == ADJECTIVE or synset.file == _PEOPLE:
            return antonyms
        found = []
        for broader in self._wordnet.related(synset, ("@",)):
            kinds = self._wordnet.related(broader, ("~",))
            if len(kinds) > _MOST_KINDS:
                continue
            for other in kinds:
                if other.name != synset.name and other.frames >= synset.frames:
                    found += [
                        word
                        for word in other.words
                        if (senses := self._wordnet.senses(word, synset.part))
                        and senses[0].name == other.name
                    ]
        return found


def _plain(word: str) -> bool:
    return word.isalpha() and word.islower() and word.isascii() and len(word) > 2
