"""Soft edges: masks are rough and hard, things in photos are neither."""

from __future__ import annotations

import math

import cv2
import numpy as np

# Of the shorter side: how far COCO's polygons lie off the things that they outline.
_ROUGHNESS = 0.011
_LEAST_REACH = 2
# Of the guided filter, for colors in 0..1: edges weaker than its root are smoothed over.
_EDGE = 0.025**2
_STEEP = 3.0


def reach_of(photo_HWC: np.ndarray) -> int:
    """How many pixels a mask's edge may lie off the thing's."""
    return max(_LEAST_REACH, round(_ROUGHNESS * min(photo_HWC.shape[:2])))


def grown(mask_HW: np.ndarray, pixels: float) -> np.ndarray:
    """The mask and all that is nearer to it than so many pixels and a half; bool."""
    if not mask_HW.any():
        return mask_HW.copy()
    outside_HW = np.logical_not(mask_HW).astype(np.uint8)
    distance_HW = cv2.distanceTransform(outside_HW, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return np.asarray(distance_HW < pixels + 0.5)


def shrunk(mask_HW: np.ndarray, pixels: float) -> np.ndarray:
    """What of the mask is further from its edge; the photo's border is no edge; bool."""
    return ~grown(~mask_HW, pixels)


def guided(image_HWC: np.ndarray, values_HW: np.ndarray, radius: int, edge: float) -> np.ndarray:
    """Values smoothed but for the image's edges (He, Sun and Tang, 2013); float32.

    Args:
        image_HWC: RGB, uint8.
        radius: of the windows in pixels.
        edge: variance, of colors in 0..1, from which on an edge is kept.
    """
    guide_HWC = image_HWC.astype(np.float32) / 255
    return cv2.ximgproc.guidedFilter(guide_HWC, values_HW.astype(np.float32), radius, edge)


def matte(photo_HWC: np.ndarray, mask_HW: np.ndarray) -> np.ndarray:
    """How much of each pixel is of the thing; H x W, float32, 0..1.

    Within `reach_of` of the mask's edge, the edge follows the photo's; beyond it is as in the mask.
    """
    reach = reach_of(photo_HWC)
    soft_HW = guided(photo_HWC, mask_HW, reach, _EDGE)
    # As steep as edges in photos are: a pixel or two.
    alpha_HW = ((soft_HW - 0.5) * _STEEP + 0.5).clip(0, 1)
    alpha_HW[shrunk(mask_HW, reach)] = 1
    alpha_HW[~grown(mask_HW, reach)] = 0
    return alpha_HW


def ramp(mask_HW: np.ndarray, width: int) -> np.ndarray:
    """1 in the mask, falling to 0 over so many pixels around it; H x W, float32."""
    if not mask_HW.any():
        return np.zeros(mask_HW.shape, dtype=np.float32)
    outside_HW = np.logical_not(mask_HW).astype(np.uint8)
    distance_HW = cv2.distanceTransform(outside_HW, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    share_HW = (1 - distance_HW / (width + 1)).clip(0, 1)
    return (share_HW * share_HW * (3 - 2 * share_HW)).astype(np.float32)


def spread(values_HWC: np.ndarray, known_HW: np.ndarray, sigma: float) -> np.ndarray:
    """Values where they are known, elsewhere means of the known ones nearby; float32.

    Args:
        values_HWC: H x W x C.
        known_HW: 0..1, or bool.
        sigma: in pixels of the Gaussian by which the nearest are weighed; farther ones count where
            there are none near.
    """
    known_HW1 = known_HW.astype(np.float32)[..., None]
    result_HWC = values_HWC.astype(np.float32) * known_HW1
    total_HW1 = known_HW1
    longest = max(known_HW.shape)
    while True:
        sums_HWC = blurred(values_HWC * known_HW1, sigma)
        weights_HW1 = blurred(known_HW1[..., 0], sigma)[..., None]
        share_HW1 = (1 - total_HW1) * (weights_HW1 / 0.05).clip(0, 1)
        result_HWC = result_HWC + share_HW1 * sums_HWC / np.maximum(weights_HW1, 1e-6)
        total_HW1 = total_HW1 + share_HW1
        if sigma > longest or total_HW1.min() > 0.999:
            return result_HWC / np.maximum(total_HW1, 1e-6)
        sigma *= 2.5


def blurred(values: np.ndarray, sigma: float) -> np.ndarray:
    """By a Gaussian; wide ones on a reduced image, where they are as good and fast; float32."""
    values = values.astype(np.float32)
    factor = max(1, 2 ** math.floor(math.log2(max(sigma, 1) / 3)))
    height, width = values.shape[:2]
    if factor == 1:
        return cv2.GaussianBlur(values, (0, 0), sigma, borderType=cv2.BORDER_REFLECT)
    small = (max(1, math.ceil(width / factor)), max(1, math.ceil(height / factor)))
    reduced = cv2.resize(values, small, interpolation=cv2.INTER_AREA)
    reduced = cv2.GaussianBlur(reduced, (0, 0), sigma / factor, borderType=cv2.BORDER_REFLECT)
    return cv2.resize(reduced, (width, height), interpolation=cv2.INTER_LINEAR)


def mixed(below_HWC: np.ndarray, above_HWC: np.ndarray, alpha_HW: np.ndarray) -> np.ndarray:
    """`above` over `below`; exactly `below` where alpha is 0; H x W x 3, uint8."""
    alpha_HW1 = alpha_HW[..., None].astype(np.float32)
    image_HWC = below_HWC * (1 - alpha_HW1) + above_HWC * alpha_HW1
    return np.rint(image_HWC.clip(0, 255)).astype(np.uint8)
