"""What a caption and its negative say of a photo: which thing changes, and how.

Reads the words of `shard_tools.negatives`: their lexicons, the tags of spaCy's tagger, and the
rules that tell how a word is used. As there, precision goes before recall: an edit that is not
proposed costs nothing, one of a misread caption costs a person's time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from hnpretrain.shards.schema import Negative
from shard_tools.negatives import english
from shard_tools.negatives.captions import CaptionText, TaggedCaption
from shard_tools.negatives.lexicon import Lexicon, Mention, load_lexicon
from shard_tools.negatives.roles import ADJECTIVES, NOUNS, Use, use_of
from shard_tools.negatives.strategies.base import edited
from shard_tools.negatives.tagger import Tagger

# Of sizes, those whose change is a change of scale. What is thick, long or wide has one of its
# sides changed, which no scaling does.
_SMALL = frozenset({"small", "little", "tiny", "short", "smaller"})
_LARGE = frozenset({"big", "large", "huge", "giant", "massive", "tall", "larger"})
_PLAIN_SIZES = dict.fromkeys(("little", "tiny"), "small")
_PLAIN_SIZES |= dict.fromkeys(("big", "huge", "giant", "massive"), "large")
_COUNTS = {
    word: number
    for number, word in enumerate(
        "one two three four five six seven eight nine ten eleven twelve".split(),  # noqa: SIM905
        start=1,
    )
}


class LeftOut(ValueError):
    """No edit can be proposed.

    Attributes:
        reason: to count by.
        detail: of this one; may be empty.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True)
class Noun:
    """A noun of a caption that names a thing, or several.

    Attributes:
        text: as written.
        lemma: its name in the lexicon of objects.
        span: [start, end) in the caption's characters.
        words: [start, end) in the caption's words.
        number: how many things it means: 1, 2 and so on if a word tells, else 0 for `several`.
    """

    text: str
    lemma: str
    span: tuple[int, int]
    words: tuple[int, int]
    number: int


@dataclass(frozen=True)
class Change:
    """What a negative changes in the photo.

    Attributes:
        noun: names the thing.
        edit: of `records.EDITS`.
        concept: `color`, `size` or `object`.
        target: of a thing that is replaced the lemma of what comes; else the word that comes.
    """

    noun: Noun
    edit: str
    concept: str
    target: str


class Reader:
    """Reads captions.

    Attributes:
        objects: the lexicon of things.
    """

    def __init__(self, spacy_model: str) -> None:
        """Loads the lexicons and the tagger; ValueError if that is not installed."""
        self.objects = load_lexicon("object")
        self._adjectives = {concept: load_lexicon(concept) for concept in ("color", "size")}
        self._tagger = Tagger(spacy_model, batch_size=64)

    def tagged(self, captions: Sequence[str]) -> list[TaggedCaption]:
        """Captions with their tags."""
        texts = [CaptionText(caption) for caption in captions]
        lowered = [english.lowered(t.text) if t.all_caps else t.text for t in texts]
        documents = self._tagger.tag(lowered)
        return [TaggedCaption(text, doc) for text, doc in zip(texts, documents, strict=True)]

    def nouns(self, caption: TaggedCaption) -> list[Noun]:
        """The nouns that name things, left to right."""
        return [noun for noun, _ in self._nouns(caption)]

    def _nouns(self, caption: TaggedCaption) -> Iterator[tuple[Noun, Use]]:
        for mention in caption.caption.mentions(self.objects):
            word = self.objects.words[mention.form.lemma]
            use = use_of(caption, mention, word, "noun")
            if use is not None and not (word.ambiguous and not use.determined):
                yield _noun(caption, mention, use), use

    def described(self, captions: Iterable[TaggedCaption], concept: str) -> set[str]:
        """Lemmas of the nouns that words of a concept describe in some caption."""
        lexicon = self._adjectives[concept]
        found: set[str] = set()
        for caption in captions:
            nouns = self.nouns(caption)
            for mention in caption.caption.mentions(lexicon):
                use = use_of(caption, mention, lexicon.words[mention.form.lemma], lexicon.role)
                heads = use.heads if use else frozenset()
                found.update(noun.lemma for noun in nouns if heads & _stems(noun))
                # Also where the use is not clear: "a white and black cat".
                after = (noun.lemma for noun in nouns if noun.words[0] >= mention.end)
                found.update(islice(after, 1))
        return found

    def places(self, caption: TaggedCaption, concept: str) -> list[tuple[Noun, int]]:
        """The nouns of one thing, each with the place, in characters, where a word of a concept
        would go that describes it.
        """
        return [
            (noun, self._place(caption, noun, concept))
            for noun, use in self._nouns(caption)
            if noun.number == 1 and use.countable in ("single", "open") and use.determined
            # "a man's bicycle", "a glass of wine": the words would be taken to describe another.
            if use.before not in ("of", "'s", "'")
        ]

    def _place(self, caption: TaggedCaption, noun: Noun, concept: str) -> int:
        """Colors go right before the noun, sizes before its other adjectives."""
        place = noun.span[0]
        if concept == "size":
            for token in reversed(range(caption.starts.index(place))):
                stands_alone = caption.caption.text[caption.starts[token] - 1].isspace()
                if caption.tags[token] not in ADJECTIVES or not stands_alone:
                    break
                place = caption.starts[token]
        return place

    def change(self, caption: TaggedCaption, negative: Negative) -> Change:
        """What a negative changes.

        Raises:
            LeftOut: `concept` (no edit of a photo makes it true), `unread` (it is not clear what
                the words speak of), `axis` (a size that no scaling changes), `described` (a thing
                that is replaced has a color or a size that what comes may lack).
        """
        if negative.strategy == "negate":
            return Change(self._denied(caption, negative), "remove", "object", "")
        if negative.strategy != "replace":
            raise LeftOut("concept", f"{negative.strategy} of {negative.concept}")
        if negative.concept == "object":
            form = self.objects.forms.get(english.Words(negative.target).lower)
            for noun, _ in self._nouns(caption):
                if noun.span == negative.span and form is not None:
                    if any(noun.lemma in self.described([caption], c) for c in self._adjectives):
                        raise LeftOut("described", noun.text)  # what comes may look otherwise
                    return Change(noun, "replace", "object", form.lemma)
            raise LeftOut("unread", negative.source)
        if negative.concept not in self._adjectives:
            raise LeftOut("concept", f"{negative.strategy} of {negative.concept}")
        lexicon = self._adjectives[negative.concept]
        noun = self._described(caption, lexicon, negative)
        form = lexicon.forms.get(english.Words(negative.target).lower)
        if form is None:
            raise LeftOut("unread", negative.target)
        if negative.concept == "color":
            return Change(noun, "recolor", "color", form.lemma)
        if form.lemma not in _SMALL | _LARGE:
            raise LeftOut("axis", f"{negative.source} -> {negative.target}")
        edit = "shrink" if form.lemma in _SMALL else "enlarge"
        return Change(noun, edit, "size", form.lemma)

    def _described(self, caption: TaggedCaption, lexicon: Lexicon, negative: Negative) -> Noun:
        """The noun that the negative's adjective describes."""
        for mention in caption.caption.mentions(lexicon):
            if caption.caption.span_of(mention) != negative.span:
                continue
            use = use_of(caption, mention, lexicon.words[mention.form.lemma], lexicon.role)
            if use is None:
                break
            nouns = [noun for noun in self.nouns(caption) if not use.heads.isdisjoint(_stems(noun))]
            after = [noun for noun in nouns if noun.words[0] >= mention.end]
            # "a red stop sign", or "the sign is red".
            nearest = after[:1] or [noun for noun in nouns if noun.words[1] <= mention.start][-1:]
            if nearest:
                return nearest[0]
        raise LeftOut("unread", negative.source)

    def _denied(self, caption: TaggedCaption, negative: Negative) -> Noun:
        """The thing that "without a dog" or "there is no dog" denies."""
        first = next((i for i, start in enumerate(caption.starts) if start >= negative.span[0]), 0)
        head = first
        # The last noun of the phrase that the replaced words open.
        while head < len(caption.tags) and caption.tags[head] not in NOUNS:
            head += 1
        while head + 1 < len(caption.tags) and caption.tags[head + 1] in NOUNS:
            head += 1
        for noun in self.nouns(caption):
            if head < len(caption.ends) and noun.span[1] == caption.ends[head]:
                return noun
        raise LeftOut("unread", negative.source)

    def denials(self, caption: TaggedCaption) -> list[Negative]:
        """Negatives of "a toilet and a sink": "a toilet and no sink".

        The denial of the first of two things would be read as one of both.
        """
        found = []
        for noun, use in self._nouns(caption):
            token = caption.starts.index(noun.span[0])
            while token > 0 and caption.tags[token - 1] in ADJECTIVES:
                token -= 1
            before = caption.tokens[max(0, token - 2) : token]
            after = caption.tags[caption.ends.index(noun.span[1]) + 1 :][:1]
            is_last = not after or after[0] in (".", "IN")
            if before[:1] == ["and"] and before[1:] in (["a"], ["an"]) and is_last:
                article = caption.starts[token - 1], caption.ends[token - 1]
                if noun.number == 1 and use.countable == "single":
                    found.append(edited(caption.caption, *article, "no", "negation", "negate"))
        return found

    def plain(self, caption: TaggedCaption, negative: Negative, change: Change) -> Negative:
        """A negative with the plainest word for what it says: "small" for "petite".

        Negatives for training are to differ; of pairs to look at, each is to be understood.
        """
        if change.edit == "remove":
            return negative
        word = _PLAIN_SIZES.get(change.target, change.target)
        if change.edit == "replace":
            form = self.objects.forms[english.Words(negative.target).lower]
            if form.shape == "many":
                word = self.objects.words[form.lemma].plural_form()
        return edited(caption.caption, *negative.span, word, negative.concept, negative.strategy)

    def may_name(self, noun: Noun, category: str) -> bool:
        """Whether things of a category can be what a noun names: a poodle is a dog, a bus a
        vehicle, a girl a person.
        """
        known = self.objects.forms.get(english.Words(category).lower)
        if known is None:
            return english.plain(category) == noun.lemma
        return (
            known.lemma == noun.lemma
            or known.lemma in self.objects.broader(noun.lemma)
            or noun.lemma in self.objects.broader(known.lemma)
        )

    def is_broader(self, noun: Noun, category: str) -> bool:
        """Whether the noun names more than the category: food, of which this is a pizza."""
        known = self.objects.forms.get(english.Words(category).lower)
        return known is not None and noun.lemma in self.objects.broader(known.lemma)

    def is_narrower(self, noun: Noun, category: str) -> bool:
        """Whether some things of the category are not what the noun names: a person, no girl."""
        known = self.objects.forms.get(english.Words(category).lower)
        return known is not None and known.lemma in self.objects.broader(noun.lemma)


def count(noun: Noun, things: int, all_are: bool) -> None:
    """Refuses a noun that does not mean all of these things.

    Args:
        things: how many there are of what it may name.
        all_are: whether the noun names each of them for sure.

    Raises:
        LeftOut: `no_thing`, `ambiguous` (one of several), `number` (the caption counts otherwise).
    """
    if not things:
        raise LeftOut("no_thing", noun.text)
    if noun.number == 1 and things > 1:
        raise LeftOut("ambiguous", f"{noun.text}: {things} in the photo")
    if noun.number not in (0, things) or (noun.number == 0 and things == 1):
        raise LeftOut("number", f"{noun.text}: {things} in the photo")
    if things > 1 and not all_are:
        raise LeftOut("ambiguous", f"{noun.text}: which of {things}?")


def stated(caption: str, place: int, word: str) -> tuple[str, tuple[int, int]]:
    """A caption with a word put in at a place, and the article before it put right.

    Returns:
        The caption, and [start, end) of the word in it.
    """
    all_caps = english.is_all_caps(caption)
    before = english.with_article(caption[:place], word, all_caps)
    word = english.match_case("", word, all_caps)
    rest = caption[place:]
    if not any(map(str.isalnum, before)):  # it opens the caption
        word = english.capitalized(word)
        if not rest[1:2].isupper():  # "TV" stays
            rest = rest[:1].lower() + rest[1:]
    return f"{before}{word} {rest}", (len(before), len(before) + len(word))


def _noun(caption: TaggedCaption, mention: Mention, use: Use) -> Noun:
    start, end = caption.caption.span_of(mention)
    number = 0 if use.countable in ("plural", "mass") else 1
    if use.countable == "plural":
        told = list(caption.caption.words.lower[: mention.start][-4:])
        # Adjectives may stand between: "two large dogs".
        while told and told[-1] not in _COUNTS and _is_adjective(caption, told[-1]):
            told.pop()
        number = _COUNTS.get(told[-1], 0) if told else 0
    text = caption.caption.text[start:end]
    return Noun(text, mention.form.lemma, (start, end), (mention.start, mention.end), number)


def _stems(noun: Noun) -> frozenset[str]:
    return english.stems(noun.text.split()[-1].lower())


def _is_adjective(caption: TaggedCaption, word: str) -> bool:
    return any(
        tag in ADJECTIVES
        for token, tag in zip(caption.tokens, caption.tags, strict=True)
        if token == word
    )
