"""Pictures: every kind in every color can be seen, and is of that color."""

import dataclasses
import itertools

import numpy as np
import pytest
from PIL import Image

from hnpretrain.worlds.draw import render
from hnpretrain.worlds.scene import (
    COLORS,
    KINDS,
    PATTERNS,
    Background,
    Scene,
    Thing,
    sample_scene,
    stream,
)

GROUND = (206, 212, 200)
INK = (44, 42, 48)
BACKGROUND = Background("plain", GROUND, GROUND, 0.0, 0.2, 0)


def thing(kind: str, color: str, scale: float) -> Thing:
    return Thing(kind, color, "large", False, 0.0, (0.5, 0.5), scale)


def pixels(*things: Thing, background: Background = BACKGROUND, size: int = 64) -> np.ndarray:
    return np.asarray(render(Scene(things, background), size)).astype(int)


@pytest.mark.parametrize("scale", [0.28, 0.6])
@pytest.mark.parametrize("kind", list(KINDS))
def test_a_thing_is_mostly_of_its_color(kind: str, scale: float) -> None:
    palette = {**COLORS, "ink": INK, "ground": GROUND}
    for color in COLORS:
        image = pixels(thing(kind, color, scale))
        drawn = image[(image != GROUND).any(-1)]
        distance = ((drawn[:, None] - np.array(list(palette.values()))) ** 2).sum(-1) ** 0.5
        # Pixels on an edge are blends of two colors and have no name.
        clear = distance[distance.min(1) < 45].argmin(1)
        counts = {name: int((clear == i).sum()) for i, name in enumerate(palette)}
        if color == "black":
            counts["black"] += counts["ink"]
        others = {name: n for name, n in counts.items() if name not in (color, "ink", "ground")}
        assert counts[color] > 30, counts
        assert counts[color] > 1.3 * max(others.values()), (color, counts)
        assert counts[color] > counts["ink"] or color == "black", (color, counts)


def test_no_two_kinds_look_alike() -> None:
    masks = {kind: (pixels(thing(kind, "red", 0.6)) != GROUND).any(-1) for kind in KINDS}
    for one, other in itertools.combinations(KINDS, 2):
        union = (masks[one] | masks[other]).sum()
        inner = np.abs(pixels(thing(one, "red", 0.6)) - pixels(thing(other, "red", 0.6))).max(-1)
        assert (inner > 60).sum() > 0.12 * union, (one, other)


def test_drawings_fill_their_box_and_stay_inside() -> None:
    for kind in KINDS:
        drawn = (pixels(thing(kind, "blue", 0.8), size=128) != GROUND).any(-1)
        ys, xs = np.nonzero(drawn)
        x0, y0, x1, y1 = (128 * edge for edge in thing(kind, "blue", 0.8).box)
        found = np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
        slack = found - np.array([x0, y0, x1, y1])
        assert (slack * [1, 1, -1, -1] >= -1.5).all(), (kind, slack)
        assert (np.abs(slack) <= 6).all(), (kind, slack)


def test_things_stand_off_from_every_background() -> None:
    for i in range(300):
        scene = sample_scene(stream(0, "train", i))
        image = pixels(*scene.things, background=scene.background)
        empty = pixels(background=scene.background)
        for each in scene.things:
            x0, y0, x1, y1 = (round(64 * edge) for edge in each.box)
            area = np.abs(image - empty)[y0:y1, x0:x1].max(-1)
            assert (area > 40).mean() > 0.2, (scene, each)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_patterns_lie_between_their_tints(pattern: str) -> None:
    background = Background(pattern, (200, 190, 180), (220, 210, 200), 0.5, 0.2, 3)
    image = pixels(background=background)
    assert image.min() >= 180
    assert image.max() <= 220
    assert (len(np.unique(image.reshape(-1, 3), axis=0)) > 1) == (pattern != "plain")


def test_flip_mirrors_the_drawing() -> None:
    car = thing("car", "red", 0.5)
    mirrored = pixels(dataclasses.replace(car, flip=True))[:, ::-1]
    assert np.abs(mirrored - pixels(car)).mean() < 6
    assert (mirrored[:, ::-1] != pixels(car)).any()


def test_any_size_shows_the_same_scene() -> None:
    scene = sample_scene(stream(0, "train", 12))
    small, large = render(scene, 64), render(scene, 224)
    assert large.size == (224, 224)
    shrunk = np.asarray(large.resize((64, 64), Image.Resampling.BOX)).astype(int)
    assert np.abs(shrunk - np.asarray(small)).mean() < 6


def test_a_size_too_small_to_see_is_refused() -> None:
    with pytest.raises(ValueError, match="32 pixels"):
        render(sample_scene(stream(0, "train", 0)), 16)
