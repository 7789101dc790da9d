"""shuffle: the same words in another order."""

from itertools import pairwise

import pytest

from shard_tools.negatives import CaptionedSample, NegativeMaker, NegativeSettings, english
from shard_tools.negatives.strategies.shuffle import Shuffle
from shard_tools.negatives.tagger import Tagger
from tests.support.strategies import check, make, words_of

CAPTION = "A small dog is running after an orange cat in the old park near two ponds."
PAIRED = "Two men riding a horse on the beach near a small dog."


def test_pairs_stay_together(tagger: Tagger) -> None:
    pairs = ["two men", "riding a", "horse on", "the beach", "near a", "small dog"]
    for key in "abcdef":
        (text,) = make(Shuffle(["bigram"]), tagger, PAIRED, key=key).texts
        assert text != PAIRED
        assert text[0].isupper()
        assert text.endswith(".")
        assert words_of(text) == words_of(PAIRED)
        for pair in pairs:
            assert pair in text.lower()


def test_nouns_take_places_of_nouns(tagger: Tagger) -> None:
    texts = {
        text
        for key in "abcdefghij"
        for text in make(Shuffle(["words"]), tagger, CAPTION, key=key).texts
    }
    assert len(texts) > 3
    for text in texts:
        assert words_of(text) == words_of(CAPTION)
        words = english.plain(text).split()
        assert {words[2], words[8], words[12], words[15]} == {"dog", "cat", "park", "ponds"}
        assert {words[1], words[7], words[11]} == {"small", "orange", "old"}
        assert (words[0], words[6]) == ("a", "an")  # no word is touched


@pytest.mark.parametrize(
    "caption",
    ["A dog that is lying down on the sidewalk.", "There is a snowboarder coming down a hill."],
)
def test_whole_phrases_in_another_order_say_the_same(tagger: Tagger, caption: str) -> None:
    for key in "abcdefgh":
        for text in make(Shuffle(["bigram"]), tagger, caption, key=key).texts:
            before, after = (set(pairwise(english.plain(t).split())) for t in (caption, text))
            lost = before - after
            nouns = {"dog", "sidewalk", "snowboarder", "hill"}
            assert nouns & {one for one, _ in lost}
            assert nouns & {other for _, other in lost}


def test_a_list_in_another_order_says_the_same(tagger: Tagger) -> None:
    made = make(Shuffle(["words"]), tagger, "A dog and a cat and a bird.")
    assert not made.texts
    assert made.rejects == {"list": 1}


def test_capitals_throughout(tagger: Tagger) -> None:
    (text,) = make(Shuffle(["bigram"]), tagger, PAIRED.upper()).texts
    assert text.isupper()
    assert words_of(text) == words_of(PAIRED)


@pytest.mark.parametrize(
    "caption, reason",
    [
        ("A dog.", "short"),
        ("dogs dogs dogs dogs dogs dogs", "short"),
        ("A dog is not a cat.", "negated"),
    ],
)
def test_what_cannot_be_shuffled(tagger: Tagger, caption: str, reason: str) -> None:
    made = make(Shuffle(["bigram"]), tagger, caption)
    assert not made.texts
    assert made.rejects[reason] == 1


def test_real_captions(coco: list[CaptionedSample]) -> None:
    settings = NegativeSettings(mix={"shuffle.bigram": 1, "shuffle.words": 1}, per_caption=9)
    made = NegativeMaker(settings, 0, None).make(coco[:200])
    negatives = [(c.text, n) for one in made for c in one.captions for n in c.negatives]
    for caption, negative in negatives:
        check(caption, negative)
        assert negative.concept == "order"
        assert words_of(caption) == words_of(negative.text)
    assert len(negatives) > 1500
