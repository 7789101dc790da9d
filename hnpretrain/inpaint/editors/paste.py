"""Cutting a thing out of a photo with a soft edge, and pasting it, scaled, into one."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

from hnpretrain.inpaint.editors.blend import blurred, grown, matte, mixed, reach_of, shrunk, spread
from hnpretrain.inpaint.editors.weightless import box_of

# Of the thing, where its color is not mixed with the ground's.
_PURE = 0.97
# How much of the detail at the scale of a pixel that was enlarged is added once more.
_SHARPEN = 0.4


@dataclass(frozen=True)
class CutOut:
    """A thing without its ground.

    Attributes:
        color_HWC: RGB, uint8; beyond the thing's edge its color goes on, so that none of the old
            ground's is pasted.
        alpha_HW: float32, 0..1.
        row, column: of its upper left corner in the photo that it is from.
    """

    color_HWC: np.ndarray
    alpha_HW: np.ndarray
    row: int
    column: int


def cut_out(photo_HWC: np.ndarray, mask_HW: np.ndarray) -> CutOut:
    """Cuts the thing under a mask (H x W, bool, not empty) out of a photo (RGB, uint8)."""
    reach = reach_of(photo_HWC)
    alpha_HW = matte(photo_HWC, mask_HW)
    box = box_of(grown(mask_HW, reach))
    alpha_HW, color_HWC = box.of(alpha_HW), box.of(photo_HWC)
    solid_HW = (alpha_HW >= _PURE) & box.of(mask_HW)
    pure_HW = shrunk(solid_HW, 1)
    # Of what is too thin to have an inside (a leg, a leaf), all is its own.
    pure_HW |= solid_HW & ~grown(pure_HW, 3)
    if not pure_HW.any():
        pure_HW = box.of(mask_HW)
    extended_HWC = spread(color_HWC, pure_HW, max(1.5, reach / 2))
    color_HWC = np.where(pure_HW[..., None], color_HWC, np.rint(extended_HWC)).astype(np.uint8)
    return CutOut(color_HWC, alpha_HW, box.top, box.left)


def pasted(
    ground_HWC: np.ndarray, thing: CutOut, factor: float, anchor: tuple[float, float]
) -> tuple[np.ndarray, np.ndarray]:
    """The ground with the thing on it, and what that covers: H x W x 3, uint8; H x W, bool.

    Args:
        ground_HWC: RGB, uint8.
        thing: what lies beyond the ground's border is cut off.
        factor: by which it is scaled.
        anchor: row and column that stay in place.
    """
    height, width = ground_HWC.shape[:2]
    rows, columns = thing.alpha_HW.shape
    row = anchor[0] + (thing.row - anchor[0]) * factor
    column = anchor[1] + (thing.column - anchor[1]) * factor
    top, left = math.floor(row), math.floor(column)
    # Sides rounded up, the part of a pixel left by the place at the start of each.
    tall = max(1, math.ceil(row + rows * factor) - top)
    wide = max(1, math.ceil(column + columns * factor) - left)
    premultiplied = np.dstack([thing.color_HWC * thing.alpha_HW[..., None], thing.alpha_HW * 255])
    scaled = _scaled(
        premultiplied.astype(np.float32), factor, (tall, wide), (row - top, column - left)
    )
    alpha_HW = (scaled[..., 3] / 255).clip(0, 1)
    alpha_HW[alpha_HW < 1 / 255] = 0
    color_HWC = scaled[..., :3] / np.maximum(scaled[..., 3:] / 255, 1 / 255)
    if factor > 1:  # as sharp again as what is around it
        color_HWC += _SHARPEN * (color_HWC - blurred(color_HWC, factor))
    covers_HW = np.zeros((height, width), dtype=np.float32)
    above_HWC = np.zeros((height, width, 3), dtype=np.float32)
    here = slice(max(0, top), min(height, top + tall)), slice(max(0, left), min(width, left + wide))
    there = (
        slice(here[0].start - top, here[0].stop - top),
        slice(here[1].start - left, here[1].stop - left),
    )
    covers_HW[here], above_HWC[here] = alpha_HW[there], color_HWC[there].clip(0, 255)
    return mixed(ground_HWC, above_HWC, covers_HW), covers_HW > 0


def _scaled(
    image: np.ndarray, factor: float, size: tuple[int, int], start: tuple[float, float]
) -> np.ndarray:
    """Scaled, and moved by a part of a pixel; low-passed before it is made smaller."""
    if factor < 1:
        sigma = 0.5 * math.sqrt(1 / factor**2 - 1)
        image = cv2.GaussianBlur(image, (0, 0), sigma, borderType=cv2.BORDER_CONSTANT)
    # Pixel centers lie at halves.
    matrix = np.array(
        [
            [factor, 0, start[1] + 0.5 * factor - 0.5],
            [0, factor, start[0] + 0.5 * factor - 0.5],
        ]
    )
    return cv2.warpAffine(
        image,
        matrix,
        (size[1], size[0]),
        flags=cv2.INTER_LANCZOS4 if factor > 1 else cv2.INTER_CUBIC,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=(0, 0, 0, 0),
    )
