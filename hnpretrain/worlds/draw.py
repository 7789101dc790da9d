"""Draws a scene at any size.

The background is made at the final size, enlarged without smoothing, drawn upon, and averaged down
again: edges come out smooth, and pixels that nothing was drawn on keep their value exactly. That is
what makes the two pictures of a test pair equal outside the change.

Each kind is one small function in its own coordinates: longer side 1, x right, y down, the box of
`KINDS`. Bodies are filled with the thing's color and outlined in a darker shade of it; all else is
dark ink (light where it lies inside a black body), so that a picture holds no second color that a
caption might mean.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageDraw

from hnpretrain.worlds.scene import COLORS, KINDS, Background, Scene, Thing

MIN_SIZE = 32
_SUPERSAMPLING = 4
_INK = (44, 42, 48)
_DETAIL_ON_BLACK = (178, 178, 182)
_EDGE = 0.6  # outlines, a share of the color's channels
_LINE = 0.035  # width of outlines, a share of the thing's longer side
_SHADE_STEP = 10  # how far `shade` moves each channel

Point = tuple[float, float]
RGB = tuple[int, int, int]


def render(scene: Scene, size: int = 64) -> Image.Image:
    """Draws the scene as an RGB image of size x size pixels.

    The same scene and size give the same pixels. Two scenes that differ in one thing give pixels
    that differ only where that thing is (its `box`, widened to whole pixels).

    Raises:
        ValueError: the size is below MIN_SIZE, where kinds can no longer be told apart.
    """
    if size < MIN_SIZE:
        raise ValueError(f"image size {size}: at least {MIN_SIZE} pixels are needed")
    image = Image.fromarray(_background(scene.background, size))
    canvas = image.resize((size * _SUPERSAMPLING,) * 2, Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(canvas)
    for thing in scene.things:
        _DRAWINGS[thing.kind](_Pen(draw, thing, size * _SUPERSAMPLING))
    return canvas.reduce(_SUPERSAMPLING)


def color_of(thing: Thing) -> RGB:
    """The RGB that fills the thing: its color's, moved by its shade."""
    red, green, blue = (
        min(255, max(0, round(channel + _SHADE_STEP * thing.shade)))
        for channel in COLORS[thing.color]
    )
    return (red, green, blue)


def _background(background: Background, size: int) -> np.ndarray:
    """The background as (size, size, 3) uint8."""
    tint, accent = (np.array(rgb, dtype=np.float32) for rgb in (background.tint, background.accent))
    y, x = np.mgrid[0:size, 0:size].astype(np.float32) / size
    along = x * math.cos(background.angle) + y * math.sin(background.angle)
    across = y * math.cos(background.angle) - x * math.sin(background.angle)
    turns = along / background.period
    match background.pattern:
        case "plain":
            mix = np.zeros_like(x)
        case "gradient":
            mix = (along - along.min()) / (along.max() - along.min())
        case "stripes":
            mix = (np.floor(turns) % 2).astype(np.float32)
        case "dots":
            rows = across / background.period
            mix = ((turns % 1 - 0.5) ** 2 + (rows % 1 - 0.5) ** 2 < 0.08).astype(np.float32)
        case "checks":
            rows = across / background.period
            mix = ((np.floor(turns) + np.floor(rows)) % 2).astype(np.float32)
        case "noise":
            noise = np.random.default_rng(background.seed)
            mix = noise.random((size, size), dtype=np.float32)
        case pattern:
            raise ValueError(f"background pattern {pattern!r} is not known")
    pixels = tint + mix[..., None] * (accent - tint)
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)


class _Pen:
    """Draws in one thing's own coordinates, with its color and its ink."""

    def __init__(self, draw: ImageDraw.ImageDraw, thing: Thing, side: int) -> None:
        self.draw = draw
        self.color = color_of(thing)
        # Outlines in a darker shade of the color: in ink, they would turn small things gray.
        self.edge = tuple(round(_EDGE * channel) for channel in self.color)
        self.ink = _INK
        self.detail = _DETAIL_ON_BLACK if thing.color == "black" else _INK
        self.width = KINDS[thing.kind][0]
        self.flip = thing.flip
        self.scale = thing.scale * side
        self.origin = (thing.box[0] * side, thing.box[1] * side)
        self.line_width = max(2, round(_LINE * self.scale))

    def _point(self, point: Point) -> Point:
        x, y = point
        if self.flip:
            x = self.width - x
        return (self.origin[0] + x * self.scale, self.origin[1] + y * self.scale)

    def _box(self, x0: float, y0: float, x1: float, y1: float) -> list[float]:
        (ax, ay), (bx, by) = self._point((x0, y0)), self._point((x1, y1))
        return [min(ax, bx), min(ay, by), max(ax, bx), max(ay, by)]

    def shape(self, points: Sequence[Point], fill: RGB | None = None) -> None:
        """A polygon: an outlined body of the thing's color, or a part filled with ink or detail."""
        corners = [self._point(point) for point in points]
        self.draw.polygon(corners, fill or self.color, fill or self.edge, self.line_width)

    def rect(self, x0: float, y0: float, x1: float, y1: float, fill: RGB | None = None) -> None:
        box = self._box(x0, y0, x1, y1)
        self.draw.rectangle(box, fill or self.color, fill or self.edge, self.line_width)

    def oval(self, x0: float, y0: float, x1: float, y1: float, fill: RGB | None = None) -> None:
        box = self._box(x0, y0, x1, y1)
        self.draw.ellipse(box, fill or self.color, fill or self.edge, self.line_width)

    def disc(self, x: float, y: float, radius: float, fill: RGB | None = None) -> None:
        self.oval(x - radius, y - radius, x + radius, y + radius, fill)

    def line(self, *points: Point, width: float = 1.0, inside: bool = False) -> None:
        """A line through the points; `width` in outline widths; `inside` a body it is a detail."""
        stroke = max(2, round(self.line_width * width))
        color = self.detail if inside else self.ink
        self.draw.line([self._point(point) for point in points], color, stroke, joint="curve")


def _arc(x: float, y: float, rx: float, ry: float, start: float, end: float) -> list[Point]:
    """Points along an ellipse, from start to end degrees, clockwise from the right."""
    steps = max(4, round(abs(end - start) / 15))
    angles = [math.radians(start + (end - start) * i / steps) for i in range(steps + 1)]
    return [(x + rx * math.cos(a), y + ry * math.sin(a)) for a in angles]


def _around(x: float, y: float, radius: float, count: int) -> list[Point]:
    """Evenly spaced points on a circle, clockwise from the top."""
    angles = [math.tau * i / count - math.pi / 2 for i in range(count)]
    return [(x + radius * math.cos(angle), y + radius * math.sin(angle)) for angle in angles]


def _apple(pen: _Pen) -> None:
    pen.shape(
        [
            *_arc(0.25, 0.46, 0.25, 0.24, 180, 290),
            (0.44, 0.3),
            *_arc(0.63, 0.46, 0.25, 0.24, 250, 360),
            *_arc(0.44, 0.5, 0.44, 0.5, 10, 75),
            (0.44, 0.95),
            *_arc(0.44, 0.5, 0.44, 0.5, 105, 170),
        ]
    )
    pen.line((0.44, 0.34), (0.47, 0.03), width=1.6)
    pen.shape([(0.47, 0.2), (0.6, 0.05), (0.8, 0.04), (0.68, 0.18)], fill=pen.ink)


def _ball(pen: _Pen) -> None:
    pen.disc(0.5, 0.5, 0.5)
    pen.line(*_arc(0.5, 0.5, 0.22, 0.48, 90, 270), inside=True)
    pen.line(*_arc(0.5, 0.5, 0.22, 0.48, -90, 90), inside=True)
    pen.line((0.02, 0.5), (0.98, 0.5), inside=True)


def _bird(pen: _Pen) -> None:
    pen.line((0.4, 0.58), (0.38, 0.74), width=1.3)
    pen.line((0.52, 0.58), (0.52, 0.74), width=1.3)
    pen.shape([(0.24, 0.36), (0.0, 0.24), (0.02, 0.5), (0.26, 0.52)])
    pen.oval(0.12, 0.22, 0.74, 0.64)
    pen.disc(0.7, 0.2, 0.2)
    pen.shape([(0.86, 0.14), (1.0, 0.22), (0.86, 0.29)], fill=pen.ink)
    pen.disc(0.75, 0.16, 0.035, fill=pen.detail)
    pen.shape([(0.26, 0.34), (0.58, 0.36), (0.4, 0.56), (0.28, 0.5)])


def _boat(pen: _Pen) -> None:
    pen.line((0.48, 0.02), (0.48, 0.7), width=1.6)
    pen.shape([(0.54, 0.04), (0.54, 0.6), (0.94, 0.6)])
    pen.shape([(0.42, 0.14), (0.42, 0.6), (0.1, 0.6)])
    pen.shape([(0.0, 0.68), (1.0, 0.68), (0.82, 1.0), (0.18, 1.0)])


def _book(pen: _Pen) -> None:
    pen.shape([(0.5, 0.12), (0.26, 0.0), (0.0, 0.08), (0.0, 0.64), (0.26, 0.58), (0.5, 0.72)])
    pen.shape([(0.5, 0.12), (0.74, 0.0), (1.0, 0.08), (1.0, 0.64), (0.74, 0.58), (0.5, 0.72)])
    for y in (0.22, 0.36):
        pen.line((0.09, y - 0.02), (0.26, y - 0.05), (0.4, y + 0.02), inside=True)
        pen.line((0.6, y + 0.02), (0.74, y - 0.05), (0.91, y - 0.02), inside=True)


def _car(pen: _Pen) -> None:
    pen.shape([(0.16, 0.28), (0.3, 0.0), (0.68, 0.0), (0.84, 0.28)])
    pen.shape([(0.29, 0.2), (0.36, 0.08), (0.46, 0.08), (0.46, 0.2)], fill=pen.detail)
    pen.shape([(0.54, 0.2), (0.54, 0.08), (0.63, 0.08), (0.71, 0.2)], fill=pen.detail)
    pen.shape([(0.0, 0.3), (0.06, 0.23), (0.92, 0.23), (1.0, 0.32), (1.0, 0.51), (0.0, 0.51)])
    pen.disc(0.24, 0.49, 0.11, fill=pen.ink)
    pen.disc(0.76, 0.49, 0.11, fill=pen.ink)


def _chair(pen: _Pen) -> None:
    for x in (0.02, 0.48):
        pen.rect(x, 0.56, x + 0.16, 1.0)
    pen.rect(0.0, 0.0, 0.2, 0.66)
    pen.rect(0.0, 0.46, 0.64, 0.66)


def _clock(pen: _Pen) -> None:
    pen.disc(0.5, 0.5, 0.5)
    ticks = zip(_around(0.5, 0.5, 0.36, 12), _around(0.5, 0.5, 0.42, 12), strict=True)
    for inner, outer in ticks:
        pen.line(inner, outer, inside=True)
    pen.line((0.5, 0.5), (0.5, 0.18), width=1.5, inside=True)
    pen.line((0.5, 0.5), (0.7, 0.62), width=1.5, inside=True)
    pen.disc(0.5, 0.5, 0.05, fill=pen.detail)


def _cup(pen: _Pen) -> None:
    pen.oval(0.56, 0.16, 1.0, 0.64)
    pen.oval(0.68, 0.29, 0.89, 0.51, fill=pen.detail)
    pen.shape([(0.0, 0.06), (0.76, 0.06), (0.64, 0.86), (0.12, 0.86)])
    pen.oval(0.0, 0.0, 0.76, 0.16, fill=pen.detail)


def _fish(pen: _Pen) -> None:
    pen.shape([(0.36, 0.14), (0.56, 0.0), (0.66, 0.14)])
    pen.shape([(0.3, 0.31), (0.0, 0.04), (0.06, 0.31), (0.0, 0.58)])
    pen.oval(0.2, 0.08, 1.0, 0.54)
    pen.line(*_arc(0.6, 0.31, 0.12, 0.17, -80, 80), inside=True)
    pen.disc(0.85, 0.26, 0.045, fill=pen.detail)
    pen.shape([(0.42, 0.46), (0.6, 0.46), (0.46, 0.62)])


def _flower(pen: _Pen) -> None:
    pen.line((0.36, 0.5), (0.36, 0.99), width=2.0)
    pen.shape([(0.36, 0.9), (0.14, 0.84), (0.06, 0.7), (0.26, 0.74)], fill=pen.ink)
    pen.shape([(0.36, 0.9), (0.58, 0.84), (0.66, 0.7), (0.46, 0.74)], fill=pen.ink)
    for x, y in _around(0.36, 0.36, 0.22, 5):
        pen.disc(x, y, 0.14)
    pen.disc(0.36, 0.36, 0.12, fill=pen.detail)


def _hat(pen: _Pen) -> None:
    pen.oval(0.0, 0.44, 1.0, 0.66)
    pen.shape([(0.22, 0.54), (0.26, 0.06), (0.36, 0.0), (0.64, 0.0), (0.74, 0.06), (0.78, 0.54)])
    pen.shape([(0.23, 0.38), (0.77, 0.38), (0.78, 0.54), (0.22, 0.54)], fill=pen.detail)


def _house(pen: _Pen) -> None:
    pen.rect(0.66, 0.06, 0.8, 0.34)
    pen.rect(0.1, 0.42, 0.86, 1.0)
    pen.shape([(0.0, 0.46), (0.48, 0.0), (0.96, 0.46)])
    pen.rect(0.2, 0.66, 0.4, 1.0, fill=pen.detail)
    pen.rect(0.54, 0.58, 0.74, 0.76, fill=pen.detail)


def _key(pen: _Pen) -> None:
    pen.shape(
        [
            (0.38, 0.14), (1.0, 0.14), (1.0, 0.46), (0.86, 0.46), (0.86, 0.33), (0.8, 0.33),
            (0.8, 0.44), (0.66, 0.44), (0.66, 0.33), (0.38, 0.33),
        ]
    )  # fmt: skip
    pen.disc(0.23, 0.23, 0.23)
    pen.disc(0.19, 0.23, 0.08, fill=pen.detail)


def _kite(pen: _Pen) -> None:
    pen.shape([(0.46, 0.0), (0.8, 0.28), (0.4, 0.8), (0.04, 0.22)])
    pen.line((0.46, 0.02), (0.4, 0.78), inside=True)
    pen.line((0.06, 0.22), (0.78, 0.28), inside=True)
    pen.line((0.4, 0.78), (0.34, 0.88), (0.18, 0.9), (0.03, 0.98), width=1.4)
    for x, y in ((0.32, 0.88), (0.14, 0.92)):
        pen.shape([(x - 0.08, y - 0.07), (x + 0.08, y + 0.05), (x + 0.08, y - 0.07),
                   (x - 0.08, y + 0.05)], fill=pen.ink)  # fmt: skip


def _lamp(pen: _Pen) -> None:
    pen.rect(0.3, 0.4, 0.4, 0.92, fill=pen.ink)
    pen.shape([(0.2, 0.0), (0.5, 0.0), (0.7, 0.46), (0.0, 0.46)])
    pen.oval(0.1, 0.86, 0.6, 1.0)


def _mushroom(pen: _Pen) -> None:
    pen.shape([(0.36, 0.46), (0.6, 0.46), (0.68, 1.0), (0.28, 1.0)])
    pen.shape([*_arc(0.48, 0.52, 0.48, 0.52, 180, 360), *_arc(0.48, 0.52, 0.48, 0.09, 0, 180)])
    for x, y, radius in ((0.26, 0.32, 0.08), (0.52, 0.2, 0.09), (0.72, 0.38, 0.07)):
        pen.disc(x, y, radius, fill=pen.detail)


def _star(pen: _Pen) -> None:
    tips, notches = _around(0.5, 0.528, 0.525, 10)[::2], _around(0.5, 0.528, 0.235, 10)[1::2]
    points = [point for both in zip(tips, notches, strict=True) for point in both]
    pen.shape(points)


def _table(pen: _Pen) -> None:
    pen.rect(0.08, 0.14, 0.24, 0.66)
    pen.rect(0.76, 0.14, 0.92, 0.66)
    pen.rect(0.0, 0.0, 1.0, 0.22)


def _tree(pen: _Pen) -> None:
    pen.rect(0.3, 0.6, 0.46, 1.0, fill=pen.ink)
    # One outline around four leafy rounds: all of them first, then their insides again.
    rounds = ((0.2, 0.46, 0.2), (0.56, 0.46, 0.2), (0.38, 0.24, 0.24), (0.38, 0.52, 0.2))
    for x, y, radius in rounds:
        pen.disc(x, y, radius)
    for x, y, radius in rounds:
        pen.draw.ellipse(
            pen._box(
                x - radius + _LINE, y - radius + _LINE, x + radius - _LINE, y + radius - _LINE
            ),
            fill=pen.color,
        )


def _truck(pen: _Pen) -> None:
    pen.rect(0.0, 0.0, 0.62, 0.48)
    pen.shape([(0.64, 0.12), (0.86, 0.12), (1.0, 0.3), (1.0, 0.48), (0.64, 0.48)])
    pen.shape([(0.71, 0.18), (0.83, 0.18), (0.92, 0.31), (0.71, 0.31)], fill=pen.detail)
    pen.disc(0.2, 0.5, 0.12, fill=pen.ink)
    pen.disc(0.8, 0.5, 0.12, fill=pen.ink)


def _umbrella(pen: _Pen) -> None:
    pen.line((0.5, 0.02), (0.5, 0.86), width=1.6)
    pen.line(*_arc(0.4, 0.84, 0.1, 0.1, 0, 180), width=1.6)
    pen.shape(
        [
            *_arc(0.5, 0.5, 0.5, 0.46, 180, 360),
            *_arc(0.833, 0.52, 0.167, 0.08, 0, -180),
            *_arc(0.5, 0.52, 0.167, 0.08, 0, -180),
            *_arc(0.167, 0.52, 0.167, 0.08, 0, -180),
        ]
    )
    pen.line((0.5, 0.06), (0.333, 0.5), inside=True)
    pen.line((0.5, 0.06), (0.667, 0.5), inside=True)


_DRAWINGS: dict[str, Callable[[_Pen], None]] = {
    "apple": _apple,
    "ball": _ball,
    "bird": _bird,
    "boat": _boat,
    "book": _book,
    "car": _car,
    "chair": _chair,
    "clock": _clock,
    "cup": _cup,
    "fish": _fish,
    "flower": _flower,
    "hat": _hat,
    "house": _house,
    "key": _key,
    "kite": _kite,
    "lamp": _lamp,
    "mushroom": _mushroom,
    "star": _star,
    "table": _table,
    "tree": _tree,
    "truck": _truck,
    "umbrella": _umbrella,
}
assert _DRAWINGS.keys() == KINDS.keys()
