"""The part of a photo that a model works on, at the model's own size, and the way back.

A model sees a square of S x S pixels. The photo's part around the mask is scaled until its longer
side is S; the rest of the square, right or below, repeats the part's last pixels and is cut off
afterwards. So each photo has one scale, the same for both sides, and all squares fit one batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

# A smaller part would be blurred more than a model can mend, and show it too little.
_MAX_MAGNIFICATION = 2.0


@dataclass(frozen=True)
class Window:
    """Rows [top, bottom) and columns [left, right) of a photo, and the side S of the square."""

    left: int
    top: int
    right: int
    bottom: int
    side: int

    @classmethod
    def around(cls, mask_HW: np.ndarray, context: float, side: int) -> Window:
        """The window of a mask: a square around its middle, as far as the photo reaches.

        Args:
            mask_HW: bool, not empty.
            context: sides of the window in those of the mask's box, the longer one. The window has
                side / 2 pixels at least.
            side: S.
        """
        height, width = mask_HW.shape
        rows = np.flatnonzero(mask_HW.any(1))
        columns = np.flatnonzero(mask_HW.any(0))
        box_height, box_width = rows[-1] + 1 - rows[0], columns[-1] + 1 - columns[0]
        wanted = max(context * max(box_height, box_width), side / _MAX_MAGNIFICATION)
        top, bottom = _span(rows[0] + box_height / 2, wanted, height)
        left, right = _span(columns[0] + box_width / 2, wanted, width)
        return cls(left, top, right, bottom, side)

    @property
    def _scaled(self) -> tuple[int, int]:
        """Height and width in the square."""
        height, width = self.bottom - self.top, self.right - self.left
        scale = self.side / max(height, width)
        return max(1, round(height * scale)), max(1, round(width * scale))

    def of_photo(self, photo_HWC: np.ndarray) -> np.ndarray:
        """S x S x 3, uint8."""
        part_HWC = photo_HWC[self.top : self.bottom, self.left : self.right]
        return self._padded(_resized(part_HWC, *self._scaled, Image.Resampling.LANCZOS), "edge")

    def of_mask(self, mask_HW: np.ndarray, block: int) -> np.ndarray:
        """S x S, bool: whole blocks of `block` x `block` pixels in which something is masked.

        Latent models look at one pixel of each block alone, and would miss what is thinner.
        """
        part_HW = mask_HW[self.top : self.bottom, self.left : self.right].astype(np.uint8) * 255
        scaled_HW = _resized(part_HW, *self._scaled, Image.Resampling.BOX) > 0
        mask_SS = self._padded(scaled_HW, "constant")
        count = -(-self.side // block)
        spare = count * block - self.side
        blocks = np.pad(mask_SS, ((0, spare), (0, spare))).reshape(count, block, count, block)
        whole = blocks.any((1, 3)).repeat(block, 0).repeat(block, 1)
        return whole[: self.side, : self.side]

    def back(self, square_SSC: np.ndarray, photo_HWC: np.ndarray) -> np.ndarray:
        """A copy of the photo with the square's content in the window; H x W x 3, uint8."""
        height, width = self._scaled
        size = self.bottom - self.top, self.right - self.left
        image_HWC = photo_HWC.copy()
        image_HWC[self.top : self.bottom, self.left : self.right] = _resized(
            square_SSC[:height, :width], *size, Image.Resampling.LANCZOS
        )
        return image_HWC

    def _padded(self, array: np.ndarray, mode: str) -> np.ndarray:
        spare = [(0, self.side - array.shape[axis]) for axis in (0, 1)]
        return np.pad(array, [*spare, (0, 0)][: array.ndim], mode=mode)  # type: ignore[call-overload]


def grown(mask_HW: np.ndarray, pixels: int) -> np.ndarray:
    """The mask and all that lies within so many pixels of it; H x W, bool."""
    import cv2

    if not pixels or not mask_HW.any():
        return mask_HW.copy()
    outside_HW = np.logical_not(mask_HW).astype(np.uint8)
    return cv2.distanceTransform(outside_HW, cv2.DIST_L2, cv2.DIST_MASK_PRECISE) <= pixels


def put_into(
    photo_HWC: np.ndarray, made_HWC: np.ndarray, mask_HW: np.ndarray, soft_edge: int
) -> np.ndarray:
    """The photo outside the mask, what was made inside; H x W x 3, uint8.

    Just inside the mask's edge, `soft_edge` pixels wide, one becomes the other; outside the mask
    and behind the edge, all pixels are exactly those of one. The photo's own border is no edge.
    """
    import cv2

    if mask_HW.all():
        return made_HWC.copy()
    inside_HW = mask_HW.astype(np.uint8)
    depth_HW = cv2.distanceTransform(inside_HW, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    share_HW1 = np.minimum(depth_HW / (soft_edge + 1), 1)[..., None]
    mixed_HWC = photo_HWC * (1 - share_HW1) + made_HWC * share_HW1
    return np.rint(mixed_HWC).astype(np.uint8)


def _span(middle: float, wanted: float, limit: int) -> tuple[int, int]:
    """[start, end) of about the wanted length around the middle, moved to lie in [0, limit)."""
    length = min(math.ceil(wanted), limit)
    start = min(max(round(middle - length / 2), 0), limit - length)
    return start, start + length


def _resized(
    array: np.ndarray, height: int, width: int, resampling: Image.Resampling
) -> np.ndarray:
    if array.shape[:2] == (height, width):
        return array
    return np.asarray(Image.fromarray(array).resize((width, height), resampling))
