"""Paints a thing in another color, and keeps its shading, its highlights and what is written on it.

A pixel of a colored thing is seen as a share of the thing's color, in some light, and a rest that
is not of it (a white letter, a highlight, a blurred edge). Light scales all of OKLab by one factor,
so that the share can be told from chroma / L, whatever the shade. The share is exchanged for the
new color in the same light; the rest stays. Things without a color are told by their lightness.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hnpretrain.inpaint.editors.base import CannotEdit, Edited, Task
from hnpretrain.inpaint.editors.blend import grown, guided, matte, reach_of, shrunk
from hnpretrain.inpaint.editors.colors import NamedColor, named_color
from hnpretrain.inpaint.editors.perceptual import oklab_to_srgb, srgb_to_oklab
from hnpretrain.inpaint.editors.weightless import WeightlessEditor

# Lightness of white in a well exposed photo; darker photos have darker colors of each name.
_WHITE = 0.93
# Chroma from which on a thing has a color at all, and below which it may be called white or gray:
# light is seldom white.
_LEAST_CHROMA, _MOST_GRAY_CHROMA = 0.035, 0.085
# Steepness at the thing's usual lightness, of lightness after over before: less would look flat,
# more would show a JPEG's blocks. Of light things made dark, of dark things made light.
_STEEP, _STEEP_DARK, _STEEP_LIGHT = 1.0, 0.6, 0.9
# Of a photo: below it is one of black and white.
_NO_CHROMA = 0.015
# Relative chroma from which on a pixel is wholly of the thing's color.
_PURE = 0.75
# And up to which it is none of the thing.
_TINTED = 0.15
# Of brown and beige, paleness tells less: light changes it as much as what is painted there.
_DULL, _PURE_DULL = 0.08, 0.45
# A black thing made white would be a flat white.
_MOST_LIFT = 2.4
# In OKLab: the distance within which colors are one; and of the thing, how much may already have
# the color that the rest is to get.
_SAME, _MOST_LOST = 0.15, 0.03
# Of the guided filter that smooths the shares.
_SHARE_EDGE = 0.02**2


@dataclass
class RecolorSettings:
    """Settings of `recolor`.

    Attributes:
        least_share: of the thing, that must have the color that the caption says, and so change.
        strength: of the new color's chroma; 1 is that of painted things.
    """

    least_share: float = 0.3
    strength: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.least_share <= 1:
            raise ValueError(f"least_share={self.least_share}: above 0, at most 1")
        if not 0.2 <= self.strength <= 2:
            raise ValueError(f"strength={self.strength}: between 0.2 and 2")


@dataclass(frozen=True)
class _Own:
    """The color that a thing has.

    Attributes:
        lightness: its usual one.
        ab: a + bi, at that lightness.
        is_gray: whether it is told by lightness, and not by hue.
        range: lightness from .. to, that is the thing's, where it is gray.
    """

    lightness: float
    ab: complex
    is_gray: bool
    range: tuple[float, float]


class RecolorEditor(WeightlessEditor):
    """Gives the thing the color that the proposal's target names; seeds change nothing."""

    name = "recolor"
    edits = ("recolor",)
    is_seeded = False

    def __init__(self, settings: RecolorSettings | None = None) -> None:
        self._chosen = settings or RecolorSettings()
        super().__init__(self._chosen)

    def _edit(self, task: Task) -> Edited:
        target = named_color(task.proposal.target)
        if target is None:
            raise CannotEdit(f"{task.proposal.target!r} names no color that is known")
        source = named_color(task.proposal.source)
        if source == target:
            raise CannotEdit(f"it is {target.name} already")
        photo_HWC, mask_HW = task.photo_HWC, task.mask_HW
        reach = reach_of(photo_HWC)
        lab_HWC = srgb_to_oklab(photo_HWC)
        inner_HW = shrunk(mask_HW, 1)
        inner_HW = inner_HW if inner_HW.sum() > mask_HW.sum() / 4 else mask_HW
        white = float(np.quantile(lab_HWC[..., 0], 0.995))
        own = _own_color(lab_HWC[inner_HW], source, white, self._chosen.least_share)
        alike_HW = _alike(lab_HWC, own)
        # Smoothed, since highlights on hair and grain in shadows are paler than the thing, but get
        # its new lightness all the same.
        share_HW = alike_HW * _paleness(lab_HWC, own)
        radius = max(1, reach // 2)
        share_HW = guided(photo_HWC, share_HW, radius, _SHARE_EDGE).clip(0, 1)
        alike_HW = guided(photo_HWC, alike_HW, radius, _SHARE_EDGE).clip(0, 1)
        if (share := float(share_HW[inner_HW].mean())) < self._chosen.least_share:
            raise CannotEdit(f"only {share:.0%} of it have the color that is to change")
        exposure = min(1.0, white / _WHITE)
        _check(lab_HWC, share_HW, inner_HW, own, target, exposure)
        alpha_HW = _edge(photo_HWC, mask_HW, share_HW, reach)
        painted_HWC = _painted(
            lab_HWC, alike_HW, share_HW, own, target, exposure, self._chosen.strength
        )
        # Mixed in OKLab: what keeps its share keeps its bytes.
        new_HWC = lab_HWC + alpha_HW[..., None] * (painted_HWC - lab_HWC)
        changed_HW = alpha_HW > 0
        image_HWC = photo_HWC.copy()
        image_HWC[changed_HW] = oklab_to_srgb(new_HWC[changed_HW])
        return Edited(
            image_HWC,
            changed_HW,
            {"color": target.name, "share": round(share, 3), "lightness": round(own.lightness, 3)},
        )


def _own_color(
    lab_NC: np.ndarray, source: NamedColor | None, white: float, least_share: float
) -> _Own:
    """The color of the named kind that a thing's pixels have; without a name, the usual one."""
    lightness_N = lab_NC[:, 0]
    ab_N = lab_NC[:, 1] + 1j * lab_NC[:, 2]
    if source is None:
        usual = complex(np.median(ab_N.real), np.median(ab_N.imag))
        is_gray, low, high = abs(usual) < _LEAST_CHROMA, 0.0, 1.0
        if is_gray:
            middle = float(np.median(lightness_N))
            low, high = middle - 0.25, middle + 0.25
        alike_N = np.abs(ab_N - usual) < max(0.06, 0.6 * abs(usual))
    elif source.is_gray:
        is_gray, (low, high) = True, _gray_range(source.name, white)
        alike_N = (np.abs(ab_N) < _MOST_GRAY_CHROMA) & (lightness_N >= low) & (lightness_N <= high)
    else:
        is_gray, low, high = False, 0.0, 1.0
        beside_N = np.abs(np.rad2deg(np.angle(ab_N * np.conj(source.direction))))
        alike_N = (beside_N < source.spread) & (np.abs(ab_N) > _LEAST_CHROMA)
    if (share := float(alike_N.mean())) < least_share / 2:
        what = source.name if source else "of one color"
        raise CannotEdit(f"only {share:.0%} of it are {what}")
    lightness_N, ab_N = lightness_N[alike_N], ab_N[alike_N]
    if not is_gray:
        # What is mixed with highlights and letters is paler than the color itself.
        colorful_N = np.abs(ab_N) / np.maximum(lightness_N, 0.05)
        purest_N = colorful_N >= np.median(colorful_N)
        lightness_N, ab_N = lightness_N[purest_N], ab_N[purest_N]
    middle = max(0.02, float(np.median(lightness_N)))
    ab = complex(np.median(ab_N.real), np.median(ab_N.imag))
    return _Own(middle, ab, is_gray, (low, high))


def _gray_range(name: str, white: float) -> tuple[float, float]:
    scale = min(1.0, white / _WHITE)
    return {
        "white": (0.55 * scale, 1.0),
        "black": (0.0, 0.45),
        "gray": (0.3 * scale, 0.85),
        "silver": (0.4 * scale, 1.0),
    }[name]


def _smooth_step(values: np.ndarray, start: float, end: float) -> np.ndarray:
    share = ((values - start) / (end - start)).clip(0, 1)
    return share * share * (3 - 2 * share)


def _alike(lab_HWC: np.ndarray, own: _Own) -> np.ndarray:
    """Whether each pixel's color is the thing's, however pale; H x W, 0..1."""
    lightness_HW = np.maximum(lab_HWC[..., 0], 0.02)
    ab_HW = lab_HWC[..., 1] + 1j * lab_HWC[..., 2]
    if own.is_gray:
        strange_HW = np.abs(ab_HW - own.ab * lightness_HW / own.lightness)
        low, high = own.range
        alike_HW = 1 - _smooth_step(strange_HW, 0.05, 0.11)
        if low > 0:
            alike_HW *= _smooth_step(lightness_HW, 0.45 * low, 0.9 * low)
        if high < 1:
            alike_HW *= 1 - _smooth_step(lightness_HW, high, high + 0.2)
        return alike_HW
    beside_HW = np.abs(np.rad2deg(np.angle(ab_HW / own.ab)))
    return 1 - _smooth_step(beside_HW, 28, 55)


def _paleness(lab_HWC: np.ndarray, own: _Own) -> np.ndarray:
    """How much of the thing's color is in each pixel that is like it; H x W, 0..1."""
    if own.is_gray:
        return np.ones(lab_HWC.shape[:2], dtype=np.float32)
    ab_HW = lab_HWC[..., 1] + 1j * lab_HWC[..., 2]
    turned_HW = ab_HW / own.ab * own.lightness / np.maximum(lab_HWC[..., 0], 0.02)
    if abs(own.ab) <= _DULL:
        return (turned_HW.real / _PURE_DULL).clip(0, 1)
    # White things take on a little of a color, from the light and from a JPEG's coarse chroma.
    return _smooth_step(turned_HW.real, _TINTED, _PURE)


def _check(
    lab_HWC: np.ndarray,
    share_HW: np.ndarray,
    inner_HW: np.ndarray,
    own: _Own,
    target: NamedColor,
    exposure: float,
) -> None:
    """Raises CannotEdit where the picture would not show what its caption says."""
    ab_HW = lab_HWC[..., 1] + 1j * lab_HWC[..., 2]
    if not target.is_gray and np.quantile(np.abs(ab_HW), 0.99) < _NO_CHROMA:
        raise CannotEdit("the photo has no colors, so that one would stand out")
    aim = _aim(own, target, exposure)
    if target.is_gray and aim > _MOST_LIFT * own.lightness:
        raise CannotEdit(f"it is too dark to be made {target.name}: its shading would be lost")
    if target.is_gray:
        # White letters on what becomes white.
        same_HW = np.hypot(lab_HWC[..., 0] - aim, np.abs(ab_HW)) < _SAME
        lost = float((same_HW & (share_HW < 0.5))[inner_HW].mean())
        if lost > _MOST_LOST:
            raise CannotEdit(f"{lost:.0%} of it are {target.name} already, and would be lost")


def _edge(
    photo_HWC: np.ndarray, mask_HW: np.ndarray, share_HW: np.ndarray, reach: int
) -> np.ndarray:
    """How much of the change each pixel takes; H x W, 0..1.

    Where the surroundings have another color than the thing, the shares alone tell where it ends,
    better than the mask. Else the mask's edge is the only one.
    """
    alpha_HW = matte(photo_HWC, mask_HW)
    near_HW = grown(mask_HW, reach)
    ring_HW = grown(mask_HW, 3 * reach) & ~near_HW
    if ring_HW.any():
        # Locally: a sign may stand half before a wall of its own color.
        ring_share_HW = guided(photo_HWC, ring_HW * share_HW, 4 * reach, 1e6)
        ring_HW_mean = guided(photo_HWC, ring_HW, 4 * reach, 1e6)
        alike_HW = ring_share_HW / np.maximum(ring_HW_mean, 1e-3)
        apart_HW = 1 - _smooth_step(alike_HW, 0.15, 0.5)
        alpha_HW = np.where(near_HW, np.maximum(alpha_HW, apart_HW), alpha_HW)
    return alpha_HW * (share_HW > 0)


def _painted(
    lab_HWC: np.ndarray,
    alike_HW: np.ndarray,
    share_HW: np.ndarray,
    own: _Own,
    target: NamedColor,
    exposure: float,
    strength: float,
) -> np.ndarray:
    aim = _aim(own, target, exposure)
    lightness_HW = lab_HWC[..., 0]
    ab_HW = lab_HWC[..., 1] + 1j * lab_HWC[..., 2]
    new_lightness_HW = _relit(lightness_HW, own.lightness, aim)
    # In the shade a color is as much weaker as it is darker; highlights have the light's color.
    relative_HW = new_lightness_HW / aim
    glare_HW = ((new_lightness_HW - aim) / max(1e-3, 1.02 - aim)).clip(0, 1)
    chroma_HW = target.chroma * strength * np.minimum(relative_HW, 1.15) * (1 - glare_HW**1.5)
    new_HW = chroma_HW * target.direction
    if own.is_gray:
        cast_HW = ab_HW - own.ab * lightness_HW / own.lightness
        new_ab_HW = (1 - share_HW) * ab_HW + share_HW * (new_HW + 0.5 * cast_HW)
    else:
        turned_HW = ab_HW / own.ab * own.lightness / np.maximum(lightness_HW, 0.02)
        kept_HW = turned_HW.real.clip(0, 1.2) + 0.5j * turned_HW.imag.clip(-0.5, 0.5)
        new_ab_HW = (1 - alike_HW) * ab_HW + alike_HW * kept_HW * new_HW
    painted_HWC = lab_HWC.copy()
    painted_HWC[..., 0] += share_HW * (new_lightness_HW - lightness_HW)
    painted_HWC[..., 1], painted_HWC[..., 2] = new_ab_HW.real, new_ab_HW.imag
    return painted_HWC


def _aim(own: _Own, target: NamedColor, exposure: float) -> float:
    """The thing's new usual lightness: of those that its new color has, the nearest."""
    low, high = target.lightness
    scale = 1 if target.name == "black" else exposure
    return float(np.clip(own.lightness, low * scale, high * scale))


def _relit(lightness_HW: np.ndarray, usual: float, aim: float) -> np.ndarray:
    """Lightness after: the usual one becomes the aim; the order stays, 0 stays 0, 1 is the most."""
    ratio = aim / usual
    steep = _STEEP_DARK if ratio < 0.6 else _STEEP_LIGHT if ratio > 1.6 else _STEEP
    power = float(np.clip(steep / ratio, 0.22, 3.0))
    new_HW = aim * (lightness_HW / usual) ** power
    # Above the aim, what is left up to white is approached and not passed.
    room = max(0.02, 1 - aim)
    over_HW = np.maximum(new_HW - aim, 0)
    return np.minimum(new_HW, aim) + room * np.tanh(over_HW / room)
