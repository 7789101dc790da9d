"""Captions: every claim is read back from the text alone and checked against the geometry."""

import re
from collections import Counter

import numpy as np
import pytest

from hnpretrain.worlds.captions import captions_of, with_article
from hnpretrain.worlds.pairs import changed_word
from hnpretrain.worlds.scene import Background, Scene, Thing, sample_scene, stream
from tests.worlds.caption_checker import check


def test_every_claim_of_thousands_of_captions_is_true() -> None:
    claims: Counter[str] = Counter()
    texts: list[str] = []
    for i in range(1500):
        rng = stream(3, "train", i)
        scene = sample_scene(rng)
        captions = captions_of(scene, rng)
        texts += captions
        for text in captions:
            claims += check(text, scene)
    assert min(claims[sort] for sort in ("object", "color", "size", "relation", "place")) > 500
    assert claims["count"] > 100
    # Variety: most captions occur once, and they run from two words to a full description.
    lengths = [len(text.split()) for text in texts]
    assert len(set(texts)) > 0.75 * len(texts)
    assert min(lengths) <= 2
    assert max(lengths) >= 16


@pytest.mark.parametrize(
    "false_text",
    [
        "a red cup",
        "The tiny cup.",
        "a blue car to the left of a cup",
        "a cup is above the car",
        "the car is on the left",
        "a car at the top",
        "three things: a car and a cup",
        "a car that is green",
        "a car and a fish",
        "an car",
        "the car barks",
    ],
)
def test_the_checker_of_this_file_finds_false_claims(false_text: str) -> None:
    background = Background("plain", (200, 200, 200), (200, 200, 200), 0.0, 0.2, 0)
    car = Thing("car", "blue", "small", False, 0.0, (0.8, 0.5), 0.3)
    cup = Thing("cup", "white", "large", False, 0.0, (0.32, 0.5), 0.58)
    scene = Scene((car, cup), background)
    check("A blue car on the right of the big white cup.", scene)
    check("two things: a tiny car on the right of the picture and a cup", scene)
    with pytest.raises((AssertionError, KeyError)):
        check(false_text, scene)


def test_captions_differ_and_one_names_everything() -> None:
    for i in range(300):
        rng = stream(0, "valid", i)
        scene = sample_scene(rng)
        captions = captions_of(scene, rng)
        assert len(set(captions)) == 5
        assert any(
            all(re.search(rf"\b{t.kind}\b", text.lower()) for t in scene.things)
            for text in captions
        )


def test_captions_are_seeded() -> None:
    scene = sample_scene(stream(0, "train", 1))
    one, same, other = (captions_of(scene, np.random.default_rng(s)) for s in (5, 5, 6))
    assert one == same != other


def test_caption_count_must_be_positive() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        captions_of(sample_scene(stream(0, "train", 1)), np.random.default_rng(0), 0)


@pytest.mark.parametrize("phrase, want", [("orange cup", "an orange cup"), ("cup", "a cup")])
def test_articles(phrase: str, want: str) -> None:
    assert with_article(phrase) == want


@pytest.mark.parametrize(
    "one, other, want",
    [
        ("A red car.", "An orange car.", ("red", "orange")),
        ("a car, left of a cup", "a car, right of a cup", ("left", "right")),
        ("a red car", "a red car", None),
        ("a red car", "a blue cup", None),
        ("a car", "a red car", None),
    ],
)
def test_changed_word(one: str, other: str, want: tuple[str, str] | None) -> None:
    assert changed_word(one, other) == want
