"""What must not stand in a word's place: what lexicons and WordNet say can be true of one thing.

For words that come from elsewhere than a lexicon's exchanges, whose rules are `rules.refusal`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from shard_tools.negatives import english, rules
from shard_tools.negatives.captions import SampleText, TaggedCaption
from shard_tools.negatives.lexicon import Lexicon, Mention
from shard_tools.negatives.roles import fits, use_of
from shard_tools.negatives.strategies.base import Task
from shard_tools.negatives.strategies.memo import OfSample
from shard_tools.negatives.wndb import ADJECTIVE, NOUN, VERB, WordNet

ROLES = {NOUN: "noun", ADJECTIVE: "adjective", VERB: "verb"}
PARTS = {"noun": NOUN, "adjective": ADJECTIVE, "verb": VERB}
CONCEPTS = {"noun": "object", "adjective": "attribute", "verb": "action"}

# A word's meanings beyond these are rare.
SENSES = 3
_CACHED = 1 << 14


class Guards:
    """Refuses a word in another's place.

    Args:
        lexicons: whose rules hold for the words that they know.
        wordnet: whose relations hold for the others; None if there is no WordNet.
    """

    def __init__(self, lexicons: Sequence[Lexicon], wordnet: WordNet | None) -> None:
        self.lexicons = tuple(lexicons)
        self.identity = {lexicon.concept: lexicon.digest() for lexicon in lexicons}
        self._wordnet = wordnet
        self._stems = OfSample(_stems_of)
        if wordnet is not None:
            self.identity["wordnet"] = wordnet.digest()
            self._relations = _Relations(wordnet)

    def related(self, one: str, other: str, part: str) -> bool:
        """Whether both lemmas can be true of one thing."""
        for lexicon in self.lexicons:
            forms = lexicon.forms.get((one,)), lexicon.forms.get((other,))
            if forms[0] and forms[1] and lexicon.related(forms[0].lemma, forms[1].lemma):
                return True
        return self._wordnet is not None and self._relations.related(one, other, part)

    def in_compound(self, tagged: TaggedCaption, token: int) -> bool:
        """Whether a lexicon or WordNet knows the word with its neighbours: "hot dog"."""
        if self._wordnet is not None:
            for first in (token - 1, token):
                pair = tagged.tokens[max(first, 0) : first + 2]
                if len(pair) == 2 and any(
                    self._wordnet.senses("_".join(pair), part) for part in (NOUN, VERB)
                ):
                    return True
        return any(
            mention.end - mention.start > 1 and token in tagged.tokens_of(mention)
            for lexicon in self.lexicons
            for mention in tagged.caption.mentions(lexicon)
        )

    def refusal(
        self, task: Task, tagged: TaggedCaption, token: int, lemma: str, target: str, part: str
    ) -> str:
        """Why the lemma `target` may not stand for the token, a form of `lemma`; or ''.

        `synonym`, `context` (the actions' lexicon has no such exchange), else as `rules.refusal`.
        """
        if self.related(lemma, target, part):
            return "synonym"
        for lexicon in self.lexicons:
            into = lexicon.forms.get((target,))
            if into is None:
                continue
            mention = _mention_at(tagged, token, lexicon)
            if mention is not None:
                if reason := rules.refusal(lexicon, task.sample, task.caption, mention, into.lemma):
                    return reason
                if lexicon.role == "verb" and not _exchanges(lexicon, tagged, mention, into.lemma):
                    return "context"
            mentioned, family = task.sample.mentioned(lexicon), lexicon.family(into.lemma)
            if not family.isdisjoint(mentioned.annotated):
                return "annotated"
            if not family.isdisjoint(mentioned.lemmas):
                return "mentioned_elsewhere"
        if not self._stems(task.sample).isdisjoint(english.stems(target)):
            return "mentioned_elsewhere"
        if self._wordnet is None:
            return ""
        return self._relations.refusal(task.sample, lemma, target, part)


def _words_of(sample: SampleText) -> set[str]:
    """All words of a sample's captions and of its annotated objects' names."""
    words = {word for caption in sample.captions for word in caption.words.lower}
    return words | {word for name in sample.objects for word in english.Words(name).lower}


def _stems_of(sample: SampleText) -> frozenset[str]:
    return frozenset().union(*map(english.stems, _words_of(sample)))


def _mention_at(tagged: TaggedCaption, token: int, lexicon: Lexicon) -> Mention | None:
    mentions = tagged.caption.mentions(lexicon)
    return next((m for m in mentions if token in tagged.tokens_of(m)), None)


def _exchanges(lexicon: Lexicon, tagged: TaggedCaption, mention: Mention, target: str) -> bool:
    word = lexicon.words[mention.form.lemma]
    use = use_of(tagged, mention, word, lexicon.role)
    return use is not None and fits(lexicon, use, word, lexicon.words[target])


@dataclass(frozen=True)
class _Names:
    """Synsets by their names: those of some words, and with them all that is above them."""

    direct: frozenset[tuple[str, int]]
    broader: frozenset[tuple[str, int]]

    @classmethod
    def union(cls, all_names: Iterable[_Names]) -> _Names:
        listed = list(all_names)
        return cls(
            frozenset().union(*(names.direct for names in listed)),
            frozenset().union(*(names.broader for names in listed)),
        )


class _Relations:
    """Which words can be true of one thing, as WordNet has it."""

    def __init__(self, wordnet: WordNet) -> None:
        self._wordnet = wordnet
        self._names = lru_cache(_CACHED)(self._find_names)
        self._names_of_form = lru_cache(_CACHED)(self._find_names_of_form)
        self._mentioned = OfSample(self._find_mentioned)

    def related(self, one: str, other: str, part: str) -> bool:
        """Whether a word is a synonym, hypernym or hyponym of another, in any frequent meaning."""
        mine, theirs = self._names(one, part), self._names(other, part)
        return not (
            mine.direct.isdisjoint(theirs.broader) and theirs.direct.isdisjoint(mine.broader)
        )

    def refusal(self, sample: SampleText, lemma: str, target: str, part: str) -> str:
        """Why `target` may not stand for `lemma` in a caption of a sample, or ''."""
        mentioned, names = self._mentioned(sample), self._names(target, part)
        if not names.direct.isdisjoint(mentioned.broader):  # it, a synonym, or a kind of it
            return "mentioned_elsewhere"
        # "Animals" may be foxes, but those that cover the word itself speak of that.
        above = names.broader - self._names(lemma, part).broader
        return "" if above.isdisjoint(mentioned.direct) else "mentioned_elsewhere"

    def _find_mentioned(self, sample: SampleText) -> _Names:
        """The meanings of all words of a sample."""
        return _Names.union(map(self._names_of_form, _words_of(sample)))

    def _find_names_of_form(self, word: str) -> _Names:
        """The frequent meanings of all that a form may be a form of."""
        if not word.isalpha() or len(word) < 3:
            return _Names(frozenset(), frozenset())
        return _Names.union(
            self._names(stem, part)
            for stem in english.stems(word)
            for part in (NOUN, VERB, ADJECTIVE)
        )

    def _find_names(self, word: str, part: str) -> _Names:
        """A word's frequent meanings, and what is much like them."""
        senses = self._wordnet.senses(word, part)[:SENSES]
        direct = {synset.name for synset in senses}
        if part != NOUN:
            direct |= {s.name for one in senses for s in self._wordnet.related(one, "&$^*")}
        broader = frozenset().union(*(self._wordnet.broader(*name) for name in direct))
        return _Names(frozenset(direct), broader)
