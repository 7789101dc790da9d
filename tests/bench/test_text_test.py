"""The text-only test tells what can be told by text, and nothing else."""

import random
from collections.abc import Callable

import pytest

from shard_tools.bench.text_test import Pair, auc

NOUNS = ("dog", "cat", "bus", "bed", "cow", "car", "hat", "cup")
PLACES = ("road", "hill", "lake", "room", "yard", "shop")


def _pairs(images: int, negative: Callable[[str, random.Random], str]) -> list[Pair]:
    """Two captions for each image, with a negative each."""
    generator = random.Random(0)
    pairs = []
    for number in range(images):
        for _ in range(2):
            caption = f"A {generator.choice(NOUNS)} by a {generator.choice(PLACES)}."
            pairs.append(Pair(str(number), caption, negative(caption, generator)))
    return pairs


def _another_noun(caption: str, generator: random.Random) -> str:
    return f"A {generator.choice(NOUNS)}{caption[5:]}"


def test_words_of_the_same_frequencies_are_a_coins_throw() -> None:
    assert 0.45 < auc(_pairs(400, _another_noun)) < 0.55


@pytest.mark.parametrize(
    "give_away",
    [
        lambda caption, _: caption.replace("by", "near"),
        lambda caption, _: caption.replace("a ", "a  ").replace(".", " !"),
        lambda caption, _: " ".join(reversed(caption.split())),
    ],
    ids=["word", "symbol", "order"],
)
def test_what_only_negatives_have_gives_them_away(
    give_away: Callable[[str, random.Random], str],
) -> None:
    assert auc(_pairs(100, give_away)) > 0.99


def test_a_rare_give_away_counts_for_its_share() -> None:
    def sometimes(caption: str, generator: random.Random) -> str:
        if generator.random() < 0.4:
            return caption.replace("by", "near")
        return _another_noun(caption, generator)

    assert 0.6 < auc(_pairs(400, sometimes)) < 0.8


def test_an_image_is_never_on_both_sides() -> None:
    """What tells an image's own negatives from its captions is no help for other images."""
    generator = random.Random(0)
    pairs = []
    for number in range(60):
        # Each image's captions have a word of their own, its negatives another one.
        true, false = (f"z{generator.random()}" for _ in range(2))
        pairs += [
            Pair(str(number), f"A {true} by a {place}.", f"A {false} by a {place}.")
            for place in PLACES
        ]
    assert 0.4 < auc(pairs) < 0.6
    # The same pairs, each as if it were an image of its own: now the words are known.
    split = [Pair(str(n), pair.caption, pair.negative) for n, pair in enumerate(pairs)]
    assert auc(split) > 0.95


def test_it_is_the_same_each_time() -> None:
    pairs = _pairs(60, _another_noun)
    assert auc(pairs) == auc(pairs)


@pytest.mark.parametrize("images", [0, 4])
def test_too_few_images_are_refused(images: int) -> None:
    with pytest.raises(ValueError, match="at least 5 images"):
        auc(_pairs(images, _another_noun))
