"""Test pairs: the same scene twice, with exactly one concept changed.

This is InpaintCOCO's idea (Roesch et al. 2024, arXiv 2403.02875) with a renderer in the place of
human editors: one image and one caption differ from the other in a single object, color, size or
location, and nothing else does. A model passes only if it sees that concept.

Which of the two comes first is drawn last, by a coin: reading captions alone tells nothing.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from hnpretrain.config import require_one_of
from hnpretrain.worlds.captions import caption_of
from hnpretrain.worlds.scene import (
    COLORS,
    KINDS,
    PLACES,
    Scene,
    Thing,
    compose,
    sample_looks,
)

CONCEPTS = ("object", "color", "size", "location")


@dataclass(frozen=True)
class Pair:
    """Two scenes that differ in one concept, each with a caption that fits it and not the other.

    Attributes:
        concept: one of CONCEPTS.
        scene: the first scene.
        changed: the second; its background and all that the change does not concern are the same.
        caption: true of `scene`, false of `changed`.
        changed_caption: the reverse; differs from `caption` in one word (and its a/an).
        words: that word in `caption` and in `changed_caption`.
        boxes: (x0, y0, x1, y1), fractions of the side: where the two pictures may differ.
    """

    concept: str
    scene: Scene
    changed: Scene
    caption: str
    changed_caption: str
    words: tuple[str, str]
    boxes: tuple[tuple[float, float, float, float], ...]

    def mask(self, size: int) -> Image.Image:
        """The changed region as a size x size image of mode L: 255 where changed, else 0."""
        image = Image.new("L", (size, size), 0)
        draw = ImageDraw.Draw(image)
        for x0, y0, x1, y1 in self.boxes:
            # A pixel more on each side: outlines are as wide as they need to be to be seen.
            corner = (math.floor(x0 * size) - 1, math.floor(y0 * size) - 1)
            draw.rectangle([corner, (math.ceil(x1 * size), math.ceil(y1 * size))], fill=255)
        return image


def sample_pair(rng: np.random.Generator, concept: str) -> Pair:
    """Draws a pair that differs in the concept.

    - `object`, `color`, `size`: one thing changes its kind, color or size where it stands. The new
      kind or color is none that the scene has.
    - `location`: a thing moves to the mirror-image place (one thing), or two things that are side
      by side, or above each other, trade sides (two or three things).

    Raises:
        ValueError: the concept is not one of CONCEPTS.
    """
    require_one_of("concept", concept, CONCEPTS)
    first, second = _move(rng) if concept == "location" else _alter(rng, concept)
    if rng.integers(2):
        first, second = second, first
    boxes = [
        thing.box
        for one, other in zip(first.things, second.things, strict=True)
        if one != other
        for thing in (one, other)
    ]
    while True:
        # The same stream twice gives the same sentence but for the changed fact, if it is told.
        seed = int(rng.integers(2**62))
        caption, changed_caption = (
            caption_of(scene, np.random.default_rng(seed)) for scene in (first, second)
        )
        words = changed_word(caption, changed_caption)
        if words:
            return Pair(concept, first, second, caption, changed_caption, words, tuple(boxes))


def changed_word(one: str, other: str) -> tuple[str, str] | None:
    """The word in which two captions differ, in both; None if it is not exactly one.

    Case, punctuation and the articles "a" and "an", which go with the next word, do not count.
    """
    words, others = (text.lower().replace(",", "").rstrip(".").split() for text in (one, other))
    if len(words) != len(others):
        return None
    different = [
        (a, b) for a, b in zip(words, others, strict=True) if a != b and {a, b} != {"a", "an"}
    ]
    return different[0] if len(different) == 1 else None


def _alter(rng: np.random.Generator, concept: str) -> tuple[Scene, Scene]:
    """Changes the kind, color or size of one thing."""
    looks = sample_looks(rng)
    target = int(rng.integers(len(looks)))
    look = looks[target]
    if concept == "object":
        kinds = [kind for kind in KINDS if kind not in {other.kind for other in looks}]
        look = dataclasses.replace(look, kind=kinds[int(rng.integers(len(kinds)))])
    elif concept == "color":
        colors = [color for color in COLORS if color not in {other.color for other in looks}]
        look = dataclasses.replace(look, color=colors[int(rng.integers(len(colors)))])
    else:
        look = dataclasses.replace(look, size="small" if look.size == "large" else "large")
    first, second = compose(rng, [looks, [*looks[:target], look, *looks[target + 1 :]]])
    return first, second


def _move(rng: np.random.Generator) -> tuple[Scene, Scene]:
    """Takes one thing, or two neighbors, to the other side of the middle."""
    sides = tuple(place for place in PLACES if place != "middle")
    (scene,) = compose(rng, [sample_looks(rng)], places=sides)
    if len(scene.things) == 1:
        moved, direction = [0], scene.place(0)
    else:
        one, other = _neighbors(rng, scene)
        moved, direction = [one, other], scene.relation(one, other)
    axis = 0 if direction in ("left", "right") else 1
    things = [
        _mirrored(thing, axis) if i in moved else thing for i, thing in enumerate(scene.things)
    ]
    return scene, Scene(tuple(things), scene.background)


def _neighbors(rng: np.random.Generator, scene: Scene) -> tuple[int, int]:
    """Two things that are side by side or one above the other; every scene of two or more has."""
    indexes = range(len(scene.things))
    pairs = [(i, j) for i in indexes for j in indexes if i < j and scene.relation(i, j)]
    return pairs[int(rng.integers(len(pairs)))]


def _mirrored(thing: Thing, axis: int) -> Thing:
    center = list(thing.center)
    center[axis] = round(1 - center[axis], 4)
    return dataclasses.replace(thing, center=(center[0], center[1]))
