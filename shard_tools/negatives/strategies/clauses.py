"""Verbs, what they say of whom, and what relates two nouns, read off a caption's tags."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

from shard_tools.negatives import english
from shard_tools.negatives.captions import TaggedCaption
from shard_tools.negatives.roles import VERBS
from shard_tools.negatives.strategies.base import Task
from shard_tools.negatives.strategies.phrases import OF_RELATIONS, Thing, followed_by_noun

PRONOUNS = frozenset({"PRP", "PRP$"})
_FINITE = frozenset({"VBZ", "VBP", "VBD"})
_LINK_TAGS = VERBS | {"IN", "TO", "RB", "RP", "WDT", "MD"}
# What adverbs must say to contradict each other: how fast, how loud, how glad, how careful.
_OPPOSED = (
    ({"quickly", "rapidly", "swiftly"}, {"slowly", "leisurely"}),
    ({"quietly", "silently", "calmly", "peacefully"}, {"loudly", "noisily", "wildly"}),
    ({"happily", "cheerfully", "joyfully"}, {"sadly", "angrily"}),
    ({"carefully", "gently", "softly"}, {"carelessly", "roughly", "violently"}),
)
# "taking a picture", "making a face": verb and noun are one thing to say.
_LIGHT_VERBS = frozenset({"take", "took", "make", "made", "give", "gave", "get", "got", "do"})
# With another subject they would mean another thing.
_MUTUAL = frozenset({"other", "another", "together"})


def agrees(tagged: TaggedCaption) -> bool:
    """Whether a verb of the caption may have to agree in number."""
    return not _FINITE.isdisjoint(tagged.tags)


def is_subject(tagged: TaggedCaption, thing: Thing) -> bool:
    """Whether nothing governs the thing: "there is a dog ..." opens like "a dog ..."."""
    before = thing.phrase.start - 1
    return thing.use.after in ("", "with") and (
        before < 0
        or tagged.tags[before] not in VERBS | {"RP"}
        or tagged.tokens[before] in ("is", "are")
    )


def relates(tagged: TaggedCaption, link: range) -> bool:
    """Whether the words between two nouns relate them: a verb, a preposition, or both."""
    if not 0 < len(link) <= 6:
        return False
    for i in link:
        if tagged.tokens[i] in OF_RELATIONS or (
            tagged.tags[i] == "DT" and tagged.tokens[min(i + 1, link[-1])] in OF_RELATIONS
        ):
            continue
        if tagged.tokens[i] == "of" and tagged.tokens[i - 1] in OF_RELATIONS:
            continue
        if tagged.tags[i] not in _LINK_TAGS:
            return False
    return tagged.tags[link[-1]] in VERBS | {"IN", "TO", "RP"}


def light(tagged: TaggedCaption, thing: Thing) -> bool:
    """Whether a thing only completes its verb: "taking a picture"."""
    before = thing.phrase.start - 1
    return (
        before >= 0
        and tagged.tags[before] in VERBS
        and not _LIGHT_VERBS.isdisjoint(english.stems(tagged.tokens[before]))
    )


def predicate(tagged: TaggedCaption, thing: Thing) -> int | None:
    """The verb right after a subject: its place."""
    i = thing.tokens.stop
    while i < len(tagged.tags) and tagged.tokens[i] in ("is", "are", "who", "that"):
        i += 1
    return i if i < len(tagged.tags) and tagged.tags[i] in ("VBG", "VBZ", "VBP") else None


def whole(tagged: TaggedCaption, phrase: range) -> bool:
    """Whether a verb phrase means the same with another subject."""
    return not any(
        tagged.tags[i] in PRONOUNS | {"CC", "WDT", "WP", "WRB", ":"} or tagged.tokens[i] in _MUTUAL
        for i in phrase
    ) and not followed_by_noun(tagged, phrase[-1])


def adverbs(
    task: Task, tagged: TaggedCaption, things: Sequence[Thing]
) -> Iterator[tuple[range, range]]:
    """How two things are done, one the opposite of the other: "runs quickly ... walks slowly"."""
    del task, things
    places = [
        i
        for i, (token, tag) in enumerate(zip(tagged.tokens, tagged.tags, strict=True))
        if tag == "RB"
        and token.endswith("ly")
        and any(
            0 <= j < len(tagged.tags) and tagged.tags[j] in VERBS - {"VBN"} for j in (i - 1, i + 1)
        )
    ]
    for first, second in pairwise(places):
        said = {tagged.tokens[first], tagged.tokens[second]}
        if any(said & some and said & others for some, others in _OPPOSED):
            yield range(first, first + 1), range(second, second + 1)
