"""Test pairs: exactly one concept changes, in the facts, the words and the pixels."""

import dataclasses
from collections import Counter

import numpy as np
import pytest

from hnpretrain.worlds.draw import render
from hnpretrain.worlds.pairs import CONCEPTS, Pair, sample_pair
from hnpretrain.worlds.scene import COLORS, KINDS, OPPOSITE, stream
from tests.worlds.caption_checker import LARGE, SMALL, check

PER_CONCEPT = 400


@pytest.fixture(scope="module")
def pairs() -> dict[str, list[Pair]]:
    return {
        concept: [sample_pair(stream(0, "pairs", n, i), concept) for i in range(PER_CONCEPT)]
        for n, concept in enumerate(CONCEPTS)
    }


@pytest.mark.parametrize("concept", CONCEPTS)
def test_each_caption_fits_its_scene_and_not_the_other(
    pairs: dict[str, list[Pair]], concept: str
) -> None:
    for pair in pairs[concept]:
        check(pair.caption, pair.scene)
        check(pair.changed_caption, pair.changed)
        for text, scene in (
            (pair.caption, pair.changed),
            (pair.changed_caption, pair.scene),
        ):
            with pytest.raises((AssertionError, KeyError)):
                check(text, scene)


@pytest.mark.parametrize("concept", ["object", "color", "size"])
def test_one_thing_changes_one_attribute(pairs: dict[str, list[Pair]], concept: str) -> None:
    field = {"object": "kind", "color": "color", "size": "size"}[concept]
    for pair in pairs[concept]:
        assert pair.scene.background == pair.changed.background
        changed = [
            (one, other)
            for one, other in zip(pair.scene.things, pair.changed.things, strict=True)
            if one != other
        ]
        assert len(changed) == 1
        one, other = (dataclasses.asdict(thing) for thing in changed[0])
        different = {name for name in one if one[name] != other[name]}
        assert different == ({"size", "scale"} if concept == "size" else {field})


def test_location_changes_centers_alone_and_flips_the_side(pairs: dict[str, list[Pair]]) -> None:
    for pair in pairs["location"]:
        moved = 0
        for one, other in zip(pair.scene.things, pair.changed.things, strict=True):
            assert dataclasses.replace(one, center=other.center) == other
            moved += one != other
        assert moved == min(2, len(pair.scene.things))


@pytest.mark.parametrize("concept", CONCEPTS)
def test_the_changed_words_are_of_the_concept(pairs: dict[str, list[Pair]], concept: str) -> None:
    opposite = {**OPPOSITE, "over": "underneath", "underneath": "over"}
    for pair in pairs[concept]:
        one, other = pair.words
        if concept == "location":
            assert opposite[one] == other
        elif concept == "size":
            assert {one, other} in [set(words) for words in zip(SMALL, LARGE, strict=True)]
        else:
            allowed = set(KINDS) if concept == "object" else set(COLORS)
            assert {one, other} <= allowed


@pytest.mark.parametrize("concept", CONCEPTS)
def test_pixels_differ_inside_the_mask_alone(pairs: dict[str, list[Pair]], concept: str) -> None:
    for pair in pairs[concept][:100]:
        for size in (64, 96):
            one, other = (np.asarray(render(s, size)) for s in (pair.scene, pair.changed))
            mask = np.asarray(pair.mask(size)) > 0
            differs = (one != other).any(-1)
            assert differs.sum() > 20
            assert not (differs & ~mask).any()
            assert mask.mean() < 0.95


@pytest.mark.parametrize("concept", CONCEPTS)
def test_text_alone_tells_nothing(pairs: dict[str, list[Pair]], concept: str) -> None:
    """A guesser that learned from half the pairs how often each word is true does no better."""
    half = PER_CONCEPT // 2
    score: Counter[str] = Counter()
    for pair in pairs[concept][:half]:
        score[pair.words[0]] += 1
        score[pair.words[1]] -= 1
    right = sum(
        (score[pair.words[0]] > score[pair.words[1]])
        + 0.5 * (score[pair.words[0]] == score[pair.words[1]])
        for pair in pairs[concept][half:]
    )
    # Three standard deviations of a fair coin.
    assert abs(right / half - 0.5) < 1.5 / half**0.5


def test_a_pair_is_seeded_and_a_concept_checked() -> None:
    one, same = (sample_pair(stream(4, "pairs", 0, 9), "size") for _ in range(2))
    assert one == same
    with pytest.raises(ValueError, match="did you mean 'color'"):
        sample_pair(stream(0, "pairs", 0), "colour")
