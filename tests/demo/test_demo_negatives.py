"""The demo's negatives: false, of every concept, and not to be told by text alone."""

from collections import Counter, defaultdict

import pytest

from hnpretrain.demo import path
from hnpretrain.shards.schema import Caption, Negative
from hnpretrain.worlds.captions import SIZE_WORDS, captions_of
from hnpretrain.worlds.pairs import CONCEPTS
from hnpretrain.worlds.scene import COLORS, KINDS, Scene, sample_scene, stream
from shard_tools.negatives import (
    CaptionedSample,
    NegativeMaker,
    NegativeSettings,
    frequency_counter,
)
from shard_tools.negatives.lexicon import load_lexicon
from tests.worlds.caption_checker import check

SCENES = 800
PLACES = ("left", "right", "top", "bottom", "above", "below", "over", "underneath")


@pytest.fixture(scope="module")
def made() -> list[tuple[Scene, Caption]]:
    """Every caption of some scenes with its negatives, made as the demo makes them.

    Words are counted over all scenes of the demo, as `shard build` does it.
    """
    lexicons = {concept: str(file) for concept, file in path._LEXICONS.items()}
    settings = NegativeSettings(lexicons=lexicons)
    counter = frequency_counter(settings)
    scenes, samples = [], []
    for number in range(path.SCENES):
        rng = stream(0, "train", number)
        scene = sample_scene(rng)
        captions = tuple(captions_of(scene, rng, path.CAPTIONS))
        kinds = tuple(thing.kind for thing in scene.things)
        counter.add(captions, kinds)
        if number < SCENES:
            scenes.append(scene)
            samples.append(CaptionedSample(str(number), captions, kinds))
    maker = NegativeMaker(settings, 0, counter.table())
    return [
        (scene, caption)
        for scene, sample in zip(scenes, maker.make(samples), strict=True)
        for caption in sample.captions
    ]


def negatives_of(made: list[tuple[Scene, Caption]], concept: str) -> list[Negative]:
    return [n for _, caption in made for n in caption.negatives if n.concept == concept]


def test_the_lexicons_hold_the_words_of_the_world() -> None:
    words = {c: set(load_lexicon(c, str(file)).words) for c, file in path._LEXICONS.items()}
    assert words["object"] == set(KINDS)
    assert words["color"] == set(COLORS)
    assert words["size"] == {word for row in SIZE_WORDS.values() for word in row}
    assert {word for phrase in words["location"] for word in phrase.split()} >= set(PLACES)


def test_every_negative_is_false(made: list[tuple[Scene, Caption]]) -> None:
    for scene, caption in made:
        for negative in caption.negatives:
            with pytest.raises((AssertionError, KeyError)):
                check(negative.text, scene)


def test_no_word_gives_a_negative_away(made: list[tuple[Scene, Caption]]) -> None:
    seen = {word.strip(".,:").lower() for _, c in made for word in c.text.split()}
    for _, caption in made:
        for negative in caption.negatives:
            assert {word.strip(".,:").lower() for word in negative.text.split()} <= seen


@pytest.mark.parametrize("concept", CONCEPTS)
def test_text_alone_tells_nothing(made: list[tuple[Scene, Caption]], concept: str) -> None:
    """Who learned from half the scenes which words are true does no better than a coin."""
    pairs = [(n.source.lower(), n.target.lower()) for n in negatives_of(made, concept)]
    score: Counter[str] = Counter()
    half = len(pairs) // 2  # not every second one: those of one caption share their word
    for source, target in pairs[:half]:
        score[source] += 1
        score[target] -= 1
    rest = pairs[half:]
    right = sum(
        (score[source] > score[target]) + 0.5 * (score[source] == score[target])
        for source, target in rest
    )
    assert len(rest) > 300
    # Negatives of one scene hang together: four standard deviations of a fair coin.
    assert abs(right / len(rest) - 0.5) < 2 / len(rest) ** 0.5


def test_what_a_caption_tells_is_changed(made: list[tuple[Scene, Caption]]) -> None:
    told: defaultdict[str, list[bool]] = defaultdict(list)
    for _, caption in made:
        words = {word.strip(".,:").lower() for word in caption.text.split()}
        of = {negative.concept for negative in caption.negatives}
        told["object"].append("object" in of)
        if words & set(COLORS):
            told["color"].append("color" in of)
        if words & set(PLACES):
            told["location"].append("location" in of)
    shares = {concept: sum(have) / len(have) for concept, have in told.items()}
    assert shares["object"] > 0.9
    assert shares["color"] > 0.9
    # Else another caption tells the opposite, or the corpus has too few of the opposite there.
    assert shares["location"] > 0.5
