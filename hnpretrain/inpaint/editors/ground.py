"""What was behind a thing: copied in pieces from the rest of the photo.

Shift maps (Pritch, Kav-Venaki and Peleg, "Shift-map image editing", ICCV 2009) as OpenCV has them.
On our photos they leave textures and edges in place where its other ways (frequency selective
reconstruction, Navier-Stokes, fast marching) smear. Their time grows faster than the number of
pixels, so that large windows are filled reduced in size, and the pieces that were found are then
copied at full size.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from hnpretrain.inpaint.editors.base import CannotEdit
from hnpretrain.inpaint.editors.blend import blurred, grown, reach_of, shrunk, spread

# Pixels that are filled in one to two seconds on one core; a window may be filled twice.
_WORK_PIXELS = 48_000
# Around the hole, in its longer side and in the photo's shorter one: what is copied from.
_MARGIN, _LEAST_MARGIN = 0.8, 0.15
# Of the window: how much must be left to copy from.
_LEAST_KNOWN = 0.35
# Of 255: by how much a piece is made brighter or darker to fit to its surroundings.
_MOST_CORRECTION = 36.0
_LEAST_SIDE = 24
# Of 255: unevenness of a ground that is smooth, and of one that is not.
_SMOOTH, _UNEVEN = 4.0, 8.0
# Steps of 8-bit Lab within which colors count as one, and the share of the hole's surroundings that
# a color must have, to be looked for elsewhere.
_COLOR_STEP = 20
_LEAST_OF_COLOR = 0.02
# Of the hole's longer side: what counts as its surroundings.
_SURROUNDINGS = 0.25


@dataclass(frozen=True)
class _Window:
    top: int
    bottom: int
    left: int
    right: int

    def of(self, array: np.ndarray) -> np.ndarray:
        return array[self.top : self.bottom, self.left : self.right]


def fill(photo_HWC: np.ndarray, hole_HW: np.ndarray) -> np.ndarray:
    """The photo as it may look without what is in the hole; H x W x 3, uint8.

    Only pixels of the hole change. The same input gives the same bytes.

    Args:
        photo_HWC: RGB, uint8.
        hole_HW: bool, with some margin around what is to go.

    Raises:
        CannotEdit: too little is left of the photo to copy from.
    """
    if not hole_HW.any():
        return photo_HWC.copy()
    window = _window(hole_HW)
    part_HWC, gap_HW = window.of(photo_HWC), window.of(hole_HW)
    if (known := 1 - gap_HW.mean()) < _LEAST_KNOWN or min(gap_HW.shape) < _LEAST_SIDE:
        raise CannotEdit(
            f"too little ground is seen to copy from ({known:.0%} of the surroundings)"
        )
    reach = reach_of(photo_HWC)
    strange_HW = _strange(part_HWC, gap_HW, reach)
    copied_HWC, from_HW = _copied(part_HWC, gap_HW, gap_HW)
    if (strange_HW & from_HW).any():
        copied_HWC, _ = _copied(part_HWC, gap_HW, gap_HW | strange_HW)
    fitted_HWC = _fitted(part_HWC, copied_HWC, gap_HW, 2 * reach)
    filled_HWC = photo_HWC.copy()
    window.of(filled_HWC)[gap_HW] = fitted_HWC[gap_HW]
    return filled_HWC


def _window(hole_HW: np.ndarray) -> _Window:
    rows, columns = (np.flatnonzero(hole_HW.any(axis)) for axis in (1, 0))
    longer = max(rows[-1] - rows[0], columns[-1] - columns[0]) + 1
    margin = round(max(_MARGIN * longer, _LEAST_MARGIN * min(hole_HW.shape), _LEAST_SIDE))
    return _Window(
        max(0, int(rows[0]) - margin),
        min(hole_HW.shape[0], int(rows[-1]) + 1 + margin),
        max(0, int(columns[0]) - margin),
        min(hole_HW.shape[1], int(columns[-1]) + 1 + margin),
    )


def _strange(part_HWC: np.ndarray, gap_HW: np.ndarray, reach: int) -> np.ndarray:
    """What should not be copied: of colors that are not around the gap, so other things; bool.

    Else a cow is easily replaced by the next cow.
    """
    rows, columns = gap_HW.any(1).sum(), gap_HW.any(0).sum()
    ring_HW = grown(gap_HW, max(4 * reach, _SURROUNDINGS * max(rows, columns))) & ~gap_HW
    if not ring_HW.any():
        return np.zeros_like(gap_HW)
    lab_HWC = cv2.cvtColor(np.ascontiguousarray(part_HWC), cv2.COLOR_RGB2Lab)
    bins_HWC = cv2.GaussianBlur(lab_HWC, (0, 0), reach / 2) // _COLOR_STEP
    bins = 255 // _COLOR_STEP + 1
    flat_HW = (bins_HWC.astype(int) * (bins * bins, bins, 1)).sum(-1)
    counts = np.bincount(flat_HW[ring_HW], minlength=bins**3).reshape(bins, bins, bins)
    known = counts >= max(1, _LEAST_OF_COLOR * ring_HW.sum())
    for axis in range(3):  # and its neighbours
        padded = np.pad(known, [(1, 1) if each == axis else (0, 0) for each in range(3)])
        known = np.logical_or.reduce(
            [np.take(padded, np.arange(bins) + shift, axis) for shift in range(3)]
        )
    strange_HW = ~known.reshape(-1)[flat_HW]
    # Specks belong to a texture; things are larger.
    strange_HW = grown(shrunk(strange_HW, reach), 3 * reach) & ~grown(gap_HW, 3 * reach)
    return strange_HW if 1 - (strange_HW | gap_HW).mean() >= _LEAST_KNOWN else gap_HW


def _copied(
    part_HWC: np.ndarray, gap_HW: np.ndarray, unknown_HW: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The part with its gap filled from what is known, and from where: H x W, bool."""
    height, width = gap_HW.shape
    scale = min(1.0, (_WORK_PIXELS / (height * width)) ** 0.5)
    if scale == 1:
        filled_HWC, shift_HW2 = _shift_map(part_HWC, unknown_HW)
        rows_HW, columns_HW = np.indices(gap_HW.shape)
        return filled_HWC, _marked(
            rows_HW + shift_HW2[..., 0], columns_HW + shift_HW2[..., 1], gap_HW
        )
    size = max(_LEAST_SIDE, round(width * scale)), max(_LEAST_SIDE, round(height * scale))
    small_HWC = cv2.resize(part_HWC, size, interpolation=cv2.INTER_AREA)
    share_HW = cv2.resize(unknown_HW.astype(np.float32), size, interpolation=cv2.INTER_AREA)
    filled_HWC, shift_HW2 = _shift_map(small_HWC, share_HW > 0)
    large_HWC = cv2.resize(filled_HWC, (width, height), interpolation=cv2.INTER_CUBIC)
    # Each pixel takes the shift of the reduced picture's pixel that it lies in.
    rows_H, columns_W = np.arange(height), np.arange(width)
    ratio = height / size[1], width / size[0]
    small_rows_H = np.minimum((rows_H / ratio[0]).astype(int), size[1] - 1)
    small_columns_W = np.minimum((columns_W / ratio[1]).astype(int), size[0] - 1)
    shift_HW2 = np.rint(shift_HW2[small_rows_H][:, small_columns_W] * ratio).astype(int)
    from_rows_HW = (rows_H[:, None] + shift_HW2[..., 0]).clip(0, height - 1)
    from_columns_HW = (columns_W + shift_HW2[..., 1]).clip(0, width - 1)
    sharp_HWC = part_HWC[from_rows_HW, from_columns_HW]
    lost_HW = gap_HW[from_rows_HW, from_columns_HW]
    sharp_HWC[lost_HW] = large_HWC[lost_HW]
    return sharp_HWC, _marked(from_rows_HW, from_columns_HW, gap_HW)


def _marked(rows_HW: np.ndarray, columns_HW: np.ndarray, gap_HW: np.ndarray) -> np.ndarray:
    marked_HW = np.zeros_like(gap_HW)
    marked_HW[rows_HW[gap_HW], columns_HW[gap_HW]] = True
    return marked_HW


def _shift_map(part_HWC: np.ndarray, gap_HW: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The filled picture, and from how many rows and columns away each pixel was copied."""
    lab_HWC = cv2.cvtColor(np.ascontiguousarray(part_HWC), cv2.COLOR_RGB2Lab)
    made_HWC = np.zeros_like(lab_HWC)
    known_HW = np.where(gap_HW, 0, 255).astype(np.uint8)
    cv2.xphoto.inpaint(lab_HWC, known_HW, made_HWC, cv2.xphoto.INPAINT_SHIFTMAP)
    made_HWC[~gap_HW] = lab_HWC[~gap_HW]
    shift_HW2 = _shifts(lab_HWC, made_HWC, gap_HW)
    rows_HW, columns_HW = np.indices(gap_HW.shape)
    filled_HWC = part_HWC[rows_HW + shift_HW2[..., 0], columns_HW + shift_HW2[..., 1]]
    # A few pixels have no shift: on seams. Those are taken as they were made.
    lost_HW = gap_HW[rows_HW + shift_HW2[..., 0], columns_HW + shift_HW2[..., 1]]
    filled_HWC[lost_HW] = cv2.cvtColor(made_HWC, cv2.COLOR_Lab2RGB)[lost_HW]
    return filled_HWC, shift_HW2


def _shifts(lab_HWC: np.ndarray, made_HWC: np.ndarray, gap_HW: np.ndarray) -> np.ndarray:
    """Where OpenCV copied each pixel of the gap from, which it does not tell; H x W x 2.

    It copies exactly, so that a pixel with its neighbours is found again by its bytes. On the
    seams between pieces, a pixel has its nearest neighbours' shift.
    """
    height, width = gap_HW.shape
    source_HW = ~grown(gap_HW, 1)
    keys_N, places_N = np.unique(_keys(lab_HWC)[source_HW], return_index=True)
    places_N = np.flatnonzero(source_HW)[places_N]
    shift_HW2 = np.zeros((height, width, 2), dtype=int)
    rows_N, columns_N = np.nonzero(gap_HW)
    if not len(keys_N) or not len(rows_N):
        return shift_HW2
    wanted_N = _keys(made_HWC)[gap_HW]
    index_N = np.searchsorted(keys_N, wanted_N).clip(0, len(keys_N) - 1)
    found_N = keys_N[index_N] == wanted_N
    place_N = places_N[index_N]
    shift_N2 = np.stack([place_N // width - rows_N, place_N % width - columns_N], axis=-1)
    shift_HW2[gap_HW] = np.where(found_N[:, None], shift_N2, 0)
    found_HW = np.zeros_like(gap_HW)
    found_HW[gap_HW] = found_N
    if not found_N.any():
        return shift_HW2
    # The nearest pixel with a shift, for those without.
    _, nearest_HW = cv2.distanceTransformWithLabels(
        np.where(found_HW, 0, 1).astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    shifts_by_label = np.zeros((int(nearest_HW.max()) + 1, 2), dtype=int)
    shifts_by_label[nearest_HW[found_HW]] = shift_HW2[found_HW]
    lost_HW = gap_HW & ~found_HW
    shift_HW2[lost_HW] = shifts_by_label[nearest_HW[lost_HW]]
    rows_HW, columns_HW = np.indices(gap_HW.shape)
    shift_HW2[..., 0] = (rows_HW + shift_HW2[..., 0]).clip(0, height - 1) - rows_HW
    shift_HW2[..., 1] = (columns_HW + shift_HW2[..., 1]).clip(0, width - 1) - columns_HW
    return shift_HW2


def _keys(lab_HWC: np.ndarray) -> np.ndarray:
    """A number for each pixel and its eight neighbours; H x W, uint64."""
    factors_N = np.random.default_rng(0).integers(1, 2**63, size=27, dtype=np.uint64) | 1
    padded_HWC = np.pad(lab_HWC, ((1, 1), (1, 1), (0, 0)), mode="edge").astype(np.uint64)
    height, width = lab_HWC.shape[:2]
    keys_HW = np.zeros((height, width), dtype=np.uint64)
    pieces = (
        padded_HWC[row : row + height, column : column + width, channel]
        for row in range(3)
        for column in range(3)
        for channel in range(3)
    )
    for factor, piece_HW in zip(factors_N, pieces, strict=True):
        keys_HW += piece_HW * factor
    return keys_HW


def _fitted(
    photo_HWC: np.ndarray, copied_HWC: np.ndarray, gap_HW: np.ndarray, width: int
) -> np.ndarray:
    """The copied pixels, as bright as what lies beyond the edge, with no step there; float32.

    Smooth ground (sky, fog, a wall) goes on smoothly, and has the copied pixels' grain alone.
    """
    outer_HW = grown(gap_HW, width) & ~gap_HW
    inner_HW = gap_HW & ~shrunk(gap_HW, width)
    if not outer_HW.any():
        return copied_HWC.astype(np.float32)
    edge_HW = gap_HW & ~shrunk(gap_HW, 1)
    beyond_HWC = _local_mean(photo_HWC, outer_HW, width)
    step_HWC = beyond_HWC - _local_mean(copied_HWC, inner_HW, width)
    step_HWC = step_HWC.clip(-_MOST_CORRECTION, _MOST_CORRECTION)
    copied_HWC = copied_HWC + blurred(spread(step_HWC, edge_HW, 2.0 * width), width)
    smooth_HWC = blurred(spread(beyond_HWC, edge_HW, 2.0 * width), 2 * width)
    grain_HWC = copied_HWC - _local_mean(copied_HWC, gap_HW, width)
    uneven_HW = np.abs(photo_HWC - _local_mean(photo_HWC, ~gap_HW, 2 * width)).mean(-1)
    around_HW = grown(gap_HW, 4 * width) & ~gap_HW
    uneven = float(np.quantile(uneven_HW[around_HW], 0.8))
    share = float(np.clip((_UNEVEN - uneven) / (_UNEVEN - _SMOOTH), 0, 1))
    return (copied_HWC * (1 - share) + (smooth_HWC + grain_HWC) * share).clip(0, 255)


def _local_mean(image_HWC: np.ndarray, where_HW: np.ndarray, sigma: float) -> np.ndarray:
    where_HW1 = where_HW.astype(np.float32)[..., None]
    weights_HW = blurred(where_HW1[..., 0], sigma)
    return blurred(image_HWC * where_HW1, sigma) / np.maximum(weights_HW, 1e-4)[..., None]
