"""negate: what a caption says is denied, in good English."""

import pytest

from shard_tools.negatives import CaptionedSample, NegativeMaker, NegativeSettings
from shard_tools.negatives.lexicon import load_lexicon
from shard_tools.negatives.settings import KINDS
from shard_tools.negatives.strategies.negate import Negate
from shard_tools.negatives.tagger import Tagger
from tests.support.strategies import check, make


@pytest.fixture(scope="module")
def negate() -> Negate:
    return Negate(KINDS["negate"], load_lexicon("action"))


@pytest.mark.parametrize(
    "caption, expected",
    [
        ("A dog is running on the beach.", "A dog is not running on the beach."),
        ("A man riding a horse.", "A man not riding a horse."),
        ("A dog sits on a bench.", "A dog does not sit on a bench."),
        ("Two dogs run on a beach.", "Two dogs do not run on a beach."),
        ("A cat has a red collar.", "A cat does not have a red collar."),
        ("The car is red.", "The car is not red."),
        ("A DOG IS RUNNING.", "A DOG IS NOT RUNNING."),
    ],
)
def test_verbs(negate: Negate, tagger: Tagger, caption: str, expected: str) -> None:
    assert expected in make(negate, tagger, caption).of("verb")


@pytest.mark.parametrize(
    "caption, allowed",
    [
        ("A table with a cup.", {"A table with no cup.", "A table without a cup."}),
        (
            "A room with red chairs on a rug.",
            {"A room with no red chairs on a rug.", "A room without red chairs on a rug."},
        ),
        ("There is a dog on the bed.", {"There is no dog on the bed."}),
        ("There are dogs on the bed.", {"There are no dogs on the bed."}),
    ],
)
def test_nouns(negate: Negate, tagger: Tagger, caption: str, allowed: set[str]) -> None:
    made = {
        text for key in "abcdefgh" for text in make(negate, tagger, caption, key=key).of("noun")
    }
    assert made == allowed


def test_one_of_a_list_is_not_denied(negate: Negate, tagger: Tagger) -> None:
    made = make(negate, tagger, "A table with a cup and a plate.")
    assert not made.of("noun")
    assert made.rejects["list"]


def test_a_sample_that_denies_already_is_left_alone(negate: Negate, tagger: Tagger) -> None:
    made = make(negate, tagger, "A man riding a horse.", "A man is not wearing a hat.")
    assert not made.texts
    assert made.rejects == {"negated": 1}


@pytest.mark.parametrize(
    "caption",
    [
        "A living room.",
        "A swimming pool.",
        "Is a dog.",
        "A couch in a waiting room.",
        "A toaster has been decorated.",
        "A tree with lots of toys.",
        "A box with different toys.",
        "",
    ],
)
def test_words_that_only_look_like_verbs(negate: Negate, tagger: Tagger, caption: str) -> None:
    assert not make(negate, tagger, caption).texts


def test_real_captions(coco: list[CaptionedSample]) -> None:
    settings = NegativeSettings(mix={"negate.verb": 1, "negate.noun": 1}, per_caption=9)
    made = NegativeMaker(settings, 0, None).make(coco[:200])
    negatives = [(c.text, n) for one in made for c in one.captions for n in c.negatives]
    for caption, negative in negatives:
        check(caption, negative)
        assert negative.concept == "negation"
        added = set(negative.text.lower().split()) - set(caption.lower().split())
        assert added & {"not", "no", "without"}
    captions = sum(len(one.captions) for one in made)
    assert sum(bool(c.negatives) for one in made for c in one.captions) > 0.5 * captions
