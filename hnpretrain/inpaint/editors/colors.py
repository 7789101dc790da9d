"""What the words for colors mean in OKLCH: where things of a color lie in photos.

The basic terms are those of Berlin and Kay (1969). Hues are those at which sRGB's namesakes lie,
moved to what photos show (a red sign is darker and duller than sRGB's red).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class NamedColor:
    """A color that a word names.

    Attributes:
        name: the word.
        lightness: OKLab's L from .. to, at which the color is at its most typical, in full light.
        chroma: of what is painted so; 0 for grays.
        hue: in degrees; without meaning for grays.
        spread: how many degrees beside `hue` a thing may lie and still be called so.
    """

    name: str
    lightness: tuple[float, float]
    chroma: float
    hue: float = 0.0
    spread: float = 30.0

    @property
    def is_gray(self) -> bool:
        return self.chroma < 0.03

    @property
    def direction(self) -> complex:
        """Of its hue, a + bi, of length 1."""
        return complex(np.exp(1j * np.deg2rad(self.hue)))


_COLORS = (
    NamedColor("white", (0.90, 0.96), 0.0),
    NamedColor("black", (0.17, 0.25), 0.0),
    NamedColor("gray", (0.52, 0.62), 0.0),
    NamedColor("silver", (0.74, 0.82), 0.004, 250),
    NamedColor("red", (0.48, 0.58), 0.20, 27, 33),
    NamedColor("orange", (0.69, 0.76), 0.17, 58, 28),
    NamedColor("brown", (0.36, 0.46), 0.075, 55, 42),
    NamedColor("beige", (0.82, 0.90), 0.045, 82, 30),
    NamedColor("tan", (0.68, 0.78), 0.065, 72, 30),
    NamedColor("gold", (0.74, 0.83), 0.135, 88, 30),
    NamedColor("yellow", (0.85, 0.92), 0.17, 102, 30),
    NamedColor("green", (0.46, 0.60), 0.14, 147, 40),
    NamedColor("teal", (0.48, 0.60), 0.09, 195, 30),
    NamedColor("turquoise", (0.72, 0.82), 0.12, 190, 30),
    NamedColor("blue", (0.44, 0.57), 0.17, 260, 42),
    NamedColor("purple", (0.42, 0.55), 0.17, 306, 35),
    NamedColor("pink", (0.74, 0.84), 0.13, 355, 40),
)
_BY_NAME = {color.name: color for color in _COLORS}
_BY_NAME |= {"grey": _BY_NAME["gray"], "golden": _BY_NAME["gold"], "violet": _BY_NAME["purple"]}


def named_color(words: str) -> NamedColor | None:
    """The color that words name ("red", "a red one", "Grey"); None if it is none or several."""
    named = {_BY_NAME[word] for word in re.findall(r"[a-z]+", words.lower()) if word in _BY_NAME}
    return named.pop() if len(named) == 1 else None
