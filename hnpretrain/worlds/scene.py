"""What a scene is, and how one is drawn from a random stream.

1. `stream(seed, split, *index)` gives the generator of one scene: scene 7 of the train split is the
   same whatever else is made, and no two splits share a stream.
2. Every thing gets a kind, a color and a size, independently and uniformly, so that no word of a
   caption tells another. Kinds and colors differ within a scene: "the red car" is then one thing.
3. `compose` places the things. Each layout settles one axis and leaves the other in the middle, so
   that a stated place or relation is true and its opposite, and the other axis' words, are false.
4. The background comes last, in a pale tint that stands off from every color in the scene.

Coordinates are fractions of the picture's side, x to the right and y down.
"""

from __future__ import annotations

import colorsys
import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

# Width and height of each kind when its longer side is 1.
KINDS: dict[str, tuple[float, float]] = {
    "apple": (0.88, 1.0),
    "ball": (1.0, 1.0),
    "bird": (1.0, 0.76),
    "boat": (1.0, 1.0),
    "book": (1.0, 0.72),
    "car": (1.0, 0.6),
    "chair": (0.64, 1.0),
    "clock": (1.0, 1.0),
    "cup": (1.0, 0.86),
    "fish": (1.0, 0.62),
    "flower": (0.72, 1.0),
    "hat": (1.0, 0.66),
    "house": (0.96, 1.0),
    "key": (1.0, 0.46),
    "kite": (0.8, 1.0),
    "lamp": (0.7, 1.0),
    "mushroom": (0.96, 1.0),
    "star": (1.0, 0.96),
    "table": (1.0, 0.66),
    "tree": (0.76, 1.0),
    "truck": (1.0, 0.62),
    "umbrella": (1.0, 0.96),
}

# The eleven basic color terms of Berlin and Kay (1969), as the RGB that they are drawn in.
COLORS: dict[str, tuple[int, int, int]] = {
    "black": (24, 24, 26),
    "blue": (35, 85, 225),
    "brown": (122, 72, 32),
    "gray": (130, 130, 132),
    "green": (40, 160, 60),
    "orange": (250, 135, 15),
    "pink": (250, 145, 190),
    "purple": (125, 45, 170),
    "red": (220, 28, 35),
    "white": (250, 250, 250),
    "yellow": (252, 222, 30),
}

SIZES = ("small", "large")
PLACES = ("left", "right", "top", "bottom", "middle")
PATTERNS = ("plain", "gradient", "stripes", "dots", "checks", "noise")
SPLITS = ("train", "valid", "test", "pairs")
OPPOSITE = {
    "left": "right",
    "right": "left",
    "top": "bottom",
    "bottom": "top",
    "above": "below",
    "below": "above",
}

# How many things: mostly one or two, since a tower of a few minutes must learn from them.
_COUNT_SHARES = (0.4, 0.45, 0.15)
_MARGIN = 0.02  # free border of the picture
_GAP = 0.03  # least distance between two things
_JITTER = 0.07  # how far a centre strays on the axis that is not settled
# A centre this far from the middle settles a place; two centres this far apart a relation.
_PLACE_OFFSET = 0.12
_RELATION_OFFSET = 0.22
_MIDDLE_OFFSET = 0.1
_SAME_LINE_OFFSET = 0.17
# Longer side of a thing: (small, large) for up to two things, and for three, which share a grid.
# The largest small is 0.34 and the smallest large 0.4: no scene has a size between.
_SCALES = {
    False: ((0.28, 0.34), (0.54, 0.62)),
    True: ((0.26, 0.3), (0.42, 0.44)),
}
# Least distance ("redmean" units, white to black is 765) of a tint from the scene's colors.
_TINT_DISTANCE = 110.0
_TINT_TRIES = 24


@dataclass(frozen=True)
class Look:
    """What a thing is, before it has a place.

    Attributes:
        kind: a key of KINDS.
        color: a key of COLORS.
        size: one of SIZES.
        flip: drawn mirrored, left to right.
        shade: -1 (darker) to 1 (lighter), a slight change of the color.
    """

    kind: str
    color: str
    size: str
    flip: bool
    shade: float


@dataclass(frozen=True)
class Thing(Look):
    """A thing in its place.

    Attributes:
        center: (x, y).
        scale: the longer side.
    """

    center: tuple[float, float]
    scale: float

    @property
    def box(self) -> tuple[float, float, float, float]:
        """(x0, y0, x1, y1)."""
        width, height = KINDS[self.kind]
        half_width, half_height = width * self.scale / 2, height * self.scale / 2
        x, y = self.center
        return (x - half_width, y - half_height, x + half_width, y + half_height)


@dataclass(frozen=True)
class Background:
    """A pattern of two near tints.

    Attributes:
        pattern: one of PATTERNS.
        tint: RGB of the ground.
        accent: RGB of the stripes, dots or far end of the gradient.
        angle: direction of stripes and gradients, in radians.
        period: of the pattern, a fraction of the picture's side.
        seed: of the noise.
    """

    pattern: str
    tint: tuple[int, int, int]
    accent: tuple[int, int, int]
    angle: float
    period: float
    seed: int


@dataclass(frozen=True)
class Scene:
    """One to three things of different kinds and colors before a background."""

    things: tuple[Thing, ...]
    background: Background

    def place(self, i: int) -> str | None:
        """Where thing i is in the picture, one of PLACES; None where two words would be true."""
        x, y = (c - 0.5 for c in self.things[i].center)
        if abs(y) <= _MIDDLE_OFFSET:
            if abs(x) >= _PLACE_OFFSET:
                return "left" if x < 0 else "right"
            return "middle" if abs(x) <= _MIDDLE_OFFSET else None
        if abs(x) <= _MIDDLE_OFFSET and abs(y) >= _PLACE_OFFSET:
            return "top" if y < 0 else "bottom"
        return None

    def relation(self, i: int, j: int) -> str | None:
        """Where thing i is, seen from j: left, right, above, below; None on a diagonal."""
        dx, dy = (a - b for a, b in zip(self.things[i].center, self.things[j].center, strict=True))
        if abs(dx) >= _RELATION_OFFSET and abs(dy) <= _SAME_LINE_OFFSET:
            return "left" if dx < 0 else "right"
        if abs(dy) >= _RELATION_OFFSET and abs(dx) <= _SAME_LINE_OFFSET:
            return "above" if dy < 0 else "below"
        return None

    def to_json(self) -> dict[str, Any]:
        """The facts, as JSON values: things with place, and relations as [i, word, j], i < j."""
        relations = [
            [i, self.relation(i, j), j]
            for i in range(len(self.things))
            for j in range(i + 1, len(self.things))
        ]
        return {
            "things": [
                {
                    "kind": thing.kind,
                    "color": thing.color,
                    "size": thing.size,
                    "place": self.place(i),
                    "box": [round(edge, 4) for edge in thing.box],
                }
                for i, thing in enumerate(self.things)
            ],
            "relations": [relation for relation in relations if relation[1]],
            "background": self.background.pattern,
        }


def stream(seed: int, split: str, *index: int) -> np.random.Generator:
    """The random stream of one item of one split.

    The split's name is hashed into the seed, so the splits' streams are disjoint by construction:
    nothing drawn for "pairs" or "test" was ever drawn for "train", for any seed and index.

    Raises:
        ValueError: the split is not one of SPLITS, or a number is negative.
    """
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is not one of {', '.join(SPLITS)}")
    if min(seed, *index, 0) < 0:
        raise ValueError(f"seed {seed} and index {index}: neither may be negative")
    name = int.from_bytes(hashlib.sha256(split.encode()).digest()[:8], "big")
    return np.random.default_rng([name, seed, *index])


def sample_scene(rng: np.random.Generator) -> Scene:
    """Draws a scene."""
    return compose(rng, [sample_looks(rng)])[0]


def sample_looks(rng: np.random.Generator) -> list[Look]:
    """Draws one to three looks of different kinds and colors."""
    count = 1 + int(rng.choice(len(_COUNT_SHARES), p=_COUNT_SHARES))
    kinds = rng.permutation(len(KINDS))[:count]
    colors = rng.permutation(len(COLORS))[:count]
    return [
        Look(
            kind=list(KINDS)[kind],
            color=list(COLORS)[color],
            size=SIZES[rng.integers(2)],
            flip=bool(rng.integers(2)),
            shade=round(float(rng.uniform(-1, 1)), 3),
        )
        for kind, color in zip(kinds, colors, strict=True)
    ]


def compose(
    rng: np.random.Generator,
    versions: Sequence[Sequence[Look]],
    places: Sequence[str] = PLACES,
) -> list[Scene]:
    """Scenes that share centres and background: one for each version of the same things.

    Room is kept for the larger of the versions, so a thing may change kind or size and still touch
    nothing else; the tint stands off from the colors of all versions.

    Args:
        rng: the scene's stream.
        versions: lists of looks, of one length.
        places: where a single thing may be.

    Returns:
        One scene a version.
    """
    count = len(versions[0])
    # For each thing, its longer side when small and when large.
    scales = [
        {
            size: float(rng.uniform(*bounds))
            for size, bounds in zip(SIZES, _SCALES[count > 2], strict=True)
        }
        for _ in range(count)
    ]
    if count == 1:
        place = places[int(rng.integers(len(places)))]
        extents = _extents(versions, scales)
        centers = [_single_center(rng, place, extents[0])]
    elif count == 2:
        axis = int(rng.integers(2))
        _shrink_to_fit(versions, scales, axis)
        centers = _line_centers(rng, axis, _extents(versions, scales))
    else:
        extents = _extents(versions, scales)
        cells = rng.permutation(4)[:count]
        centers = [_cell_center(rng, int(cell), e) for cell, e in zip(cells, extents, strict=True)]

    names = sorted({look.color for version in versions for look in version})
    background = _sample_background(rng, [COLORS[name] for name in names])
    return [
        Scene(
            tuple(
                Thing(**asdict(look), center=center, scale=round(scale[look.size], 4))
                for look, scale, center in zip(version, scales, centers, strict=True)
            ),
            background,
        )
        for version in versions
    ]


def _extents(
    versions: Sequence[Sequence[Look]], scales: Sequence[dict[str, float]]
) -> list[tuple[float, float]]:
    """Width and height that hold each thing in all its versions."""
    return [
        (
            max(KINDS[version[i].kind][0] * scale[version[i].size] for version in versions),
            max(KINDS[version[i].kind][1] * scale[version[i].size] for version in versions),
        )
        for i, scale in enumerate(scales)
    ]


def _shrink_to_fit(
    versions: Sequence[Sequence[Look]], scales: Sequence[dict[str, float]], axis: int
) -> None:
    """Makes large things just small enough to lie side by side along the axis."""
    room = 1 - 2 * _MARGIN - _GAP
    lengths = [extent[axis] for extent in _extents(versions, scales)]
    large = [any(version[i].size == "large" for version in versions) for i in range(len(scales))]
    fixed = sum(length for length, is_large in zip(lengths, large, strict=True) if not is_large)
    free = sum(lengths) - fixed
    if fixed + free > room:
        for scale, is_large in zip(scales, large, strict=True):
            if is_large:
                scale["large"] *= (room - fixed) / free


def _single_center(
    rng: np.random.Generator, place: str, extent: tuple[float, float]
) -> tuple[float, float]:
    axis = 0 if place in ("left", "right") else 1
    along = 0.5 + rng.uniform(-_JITTER, _JITTER)
    across = 0.5 + rng.uniform(-_JITTER, _JITTER)
    if place != "middle":
        lowest = _MARGIN + extent[axis] / 2
        along = rng.uniform(lowest, max(lowest, 0.5 - _PLACE_OFFSET - 0.02))
        if place in ("right", "bottom"):
            along = 1 - along
    return _point(axis, along, across)


def _line_centers(
    rng: np.random.Generator, axis: int, extents: Sequence[tuple[float, float]]
) -> list[tuple[float, float]]:
    """Two centres on either side of the middle, along the axis."""
    first, second = extents[0][axis], extents[1][axis]
    apart = (first + second) / 2 + _GAP
    lowest, highest = _MARGIN + first / 2, 1 - _MARGIN - second / 2
    inner = 0.5 - _PLACE_OFFSET
    one = rng.uniform(lowest, max(lowest, min(inner, highest - apart)))
    two = rng.uniform(min(highest, max(1 - inner, one + apart)), highest)
    if rng.integers(2):
        one, two = 1 - one, 1 - two
    return [_point(axis, along, 0.5 + rng.uniform(-_JITTER, _JITTER)) for along in (one, two)]


def _cell_center(
    rng: np.random.Generator, cell: int, extent: tuple[float, float]
) -> tuple[float, float]:
    """A centre in one of the four quarters of the picture, with the thing inside the quarter."""
    x, y = (
        0.25 + side * 0.5 + rng.uniform(-1, 1) * min(_JITTER, 0.235 - length / 2)
        for side, length in zip(divmod(cell, 2), extent, strict=True)
    )
    return _point(0, x, y)


def _point(axis: int, along: float, across: float) -> tuple[float, float]:
    x, y = (along, across) if axis == 0 else (across, along)
    return (round(float(x), 4), round(float(y), 4))


def _sample_background(
    rng: np.random.Generator, colors: Sequence[tuple[int, int, int]]
) -> Background:
    """A background whose tints no one would call by one of the colors in the scene."""
    pattern = PATTERNS[rng.integers(len(PATTERNS))]
    best: tuple[float, tuple[int, int, int], tuple[int, int, int]] | None = None
    for hue, saturation, value, step in rng.uniform(size=(_TINT_TRIES, 4)):
        tint = _rgb(hue, 0.04 + 0.14 * saturation, 0.55 + 0.4 * value)
        accent = _rgb(hue, 0.04 + 0.14 * saturation, 0.55 + 0.4 * value + 0.16 * (step - 0.5))
        distance = min(_distance(t, color) for t in (tint, accent) for color in colors)
        if best is None or distance > best[0]:
            best = (distance, tint, accent)
        if distance >= _TINT_DISTANCE:
            break
    assert best is not None
    return Background(
        pattern,
        best[1],
        best[2],
        angle=round(float(rng.uniform(0, np.pi)), 4),
        period=round(float(rng.uniform(0.12, 0.3)), 4),
        seed=int(rng.integers(2**31)),
    )


def _rgb(hue: float, saturation: float, value: float) -> tuple[int, int, int]:
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, min(1.0, value))
    return (round(255 * red), round(255 * green), round(255 * blue))


def _distance(a: tuple[int, int, int], b: tuple[int, int, int]) -> float:
    """The "redmean" color distance: near to what eyes see, without leaving RGB."""
    mean = (a[0] + b[0]) / 2
    red, green, blue = (x - y for x, y in zip(a, b, strict=True))
    squared = (2 + mean / 256) * red**2 + 4 * green**2 + (2 + (255 - mean) / 256) * blue**2
    return float(squared**0.5)
