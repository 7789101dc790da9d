"""What a photo shows of a thing: the word for its color, or for its size, where that is plain."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from hnpretrain.inpaint.editors.perceptual import srgb_to_oklab

# Of the pixels of a thing, so many must be of its color.
_COLOR_SHARE = 0.6
# Chroma / lightness (OKLab), which shade does not change: below the first a pixel is white, gray or
# black, above the second it has a color. Between them, warm or cold light may color what is white.
_GRAY, _COLORED = 0.055, 0.12
# Of chroma: what is darker has the noise of the camera.
_LEAST_CHROMA = 0.04
# Hues in degrees, up to which a color is called so; red begins again after pink.
_HUES = (
    *((15, "pink"), (45, "red"), (75, "orange"), (118, "yellow"), (168, "green")),
    *((215, ""), (285, "blue"), (325, "purple"), (350, "pink"), (361, "red")),
)
# Shares of the photo from which on, and up to which, a thing may be called so.
_LARGE, _SMALL = 0.08, 0.04
# Of the photo's shorter side: the rim of a mask. Without it, too little of a thin thing is left to
# tell its color.
_RIM = 0.01
_LEAST_INNER = 0.6


def color(image_HWC: np.ndarray, mask_HW: np.ndarray) -> str:
    """The basic word for the color of a thing; empty if it has several, or one between two.

    Args:
        image_HWC: RGB, uint8.
        mask_HW: bool, true on the thing.
    """
    inner_HW = _inner(mask_HW)
    if inner_HW.sum() < _LEAST_INNER * mask_HW.sum():
        return ""
    lab_NC = srgb_to_oklab(image_HWC[inner_HW])
    lightness_N, a_N, b_N = lab_NC.T
    chroma_N = np.hypot(a_N, b_N)
    hue_N = np.degrees(np.arctan2(b_N, a_N)) % 360
    names_N = np.full(len(lab_NC), "gray", dtype=object)
    names_N[lightness_N > 0.78] = "white"
    names_N[lightness_N < 0.35] = "black"
    saturation_N = chroma_N / np.maximum(lightness_N, 0.01)
    is_colored_N = (saturation_N > _COLORED) & (chroma_N > _LEAST_CHROMA)
    names_N[(saturation_N > _GRAY) & ~is_colored_N & (lightness_N > 0.35)] = ""
    bounds = np.array([bound for bound, _ in _HUES])
    words = np.array([word for _, word in _HUES], dtype=object)
    names_N[is_colored_N] = words[np.searchsorted(bounds, hue_N[is_colored_N])]
    is_brown_N = np.isin(names_N, ("orange", "red")) & (lightness_N < 0.55) & (chroma_N < 0.13)
    names_N[is_brown_N] = "brown"
    names, counts = np.unique(names_N.astype(str), return_counts=True)
    best = int(counts.argmax())
    word = str(names[best])
    # What is gray may be a white thing in the shade, and what is of no color has no word.
    return word if word != "gray" and counts[best] >= _COLOR_SHARE * len(names_N) else ""


def _inner(mask_HW: np.ndarray) -> np.ndarray:
    """The mask without its rim, which may lie beside the thing."""
    import cv2

    rim = max(1, round(_RIM * min(mask_HW.shape)))
    kernel = np.ones((2 * rim + 1, 2 * rim + 1), np.uint8)
    # The photo's border is no rim.
    return cv2.erode(mask_HW.astype(np.uint8), kernel, borderValue=1) > 0


def size(image_HWC: np.ndarray, mask_HW: np.ndarray) -> str:
    """`large` or `small` for a thing that takes much or little of the photo, else empty.

    True beside its edited picture, where the same thing is smaller or larger.

    Args:
        image_HWC: not looked at.
        mask_HW: bool, true on the thing.
    """
    del image_HWC
    area = float(mask_HW.mean())
    return "large" if area >= _LARGE else "small" if area <= _SMALL else ""


STATED: dict[str, Callable[[np.ndarray, np.ndarray], str]] = {"color": color, "size": size}
