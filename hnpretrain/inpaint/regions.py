"""Regions of a picture as COCO writes them, polygons and run lengths, as masks.

Both may be of another size than the picture they are wanted for: a pixel belongs to a region if its
center does, once it is scaled. Memory is bounded by the picture, whatever a region claims.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Size = tuple[int, int]
"""Width and height in pixels."""

# Coordinates further away are no picture's, and would make inexact sums.
_FARTHEST = 1e9
# Of run lengths' sizes: Pillow knows no larger side.
_LONGEST_SIDE = 2**31
# 5 bits a letter: more letters than this make a number that is no run's length.
_LETTERS_A_RUN = 13


class BadMask(ValueError):
    """A mask, or what it would be made of, that cannot be used.

    Attributes:
        reason: short, to count by: one of no_instances, broken_instances, crowd, no_mask,
            broken_mask, outside, mask_size, empty_mask, full_mask.
        detail: what was found.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type[BadMask], tuple[str, str]]:
        return BadMask, (self.reason, self.detail)  # to cross processes


def region_mask(region: object, annotated: Size, size: Size) -> np.ndarray:
    """The mask of a COCO `segmentation`: a list of polygons, or an object with run lengths.

    Args:
        region: as JSON has it.
        annotated: the size of the picture that it was made for.
        size: of the mask.

    Returns:
        mask_HW, bool. It may be empty, or all true.

    Raises:
        BadMask: no_mask, broken_mask, outside, mask_size.
    """
    if isinstance(region, list):
        return _polygons_mask(region, annotated, size)
    if isinstance(region, Mapping):
        return _runs_mask(region, annotated, size)
    raise BadMask("no_mask", f"neither polygons nor run lengths, but {region!r:.80}")


def _polygons_mask(polygons: Sequence[object], annotated: Size, size: Size) -> np.ndarray:
    width, height = size
    mask_HW = np.zeros((height, width), bool)
    scale_2 = np.array(size, float) / annotated
    for polygon in polygons:
        points_N2 = _points(polygon)
        low_2, high_2 = points_N2.min(0), points_N2.max(0)
        if (high_2 <= 0).any() or (low_2 >= annotated).any():
            raise BadMask(
                "outside",
                f"a polygon lies at x {low_2[0]:g} to {high_2[0]:g}, y {low_2[1]:g} to "
                f"{high_2[1]:g}, outside the {annotated[0]} x {annotated[1]} pixels",
            )
        _fill(mask_HW, points_N2 * scale_2)
    return mask_HW


def _points(polygon: object) -> np.ndarray:
    """points_N2 of [x, y, x, y, ...], float64."""
    if not isinstance(polygon, list):
        raise BadMask("broken_mask", f"a polygon must be a list of numbers, got {polygon!r:.80}")
    if len(polygon) % 2 or len(polygon) < 6:
        raise BadMask(
            "broken_mask", f"a polygon of {len(polygon)} numbers: two for each of 3 points or more"
        )
    # The bounds also hold off NaN, infinity and integers too large for a float.
    wrong = [v for v in polygon if type(v) not in (int, float) or not abs(v) <= _FARTHEST]
    if wrong:
        raise BadMask("broken_mask", f"a polygon holds {wrong[0]!r:.80}, no coordinate in pixels")
    return np.array(polygon, np.float64).reshape(-1, 2)


def _fill(mask_HW: np.ndarray, points_N2: np.ndarray) -> None:
    """Sets the pixels whose centers lie in a polygon, by the even-odd rule.

    OpenCV and Pillow fill the polygon's rim too, which makes things of 100 to 1000 pixels 16%
    larger (median of COCO's); filled so, they are as large as the masks of COCO's own code.
    """
    height, width = mask_HW.shape
    first = max(0, math.ceil(points_N2[:, 1].min() - 0.5))
    last = min(height, math.ceil(points_N2[:, 1].max() - 0.5))
    # Crossings of the rows' center lines with the edges: from there on, inside turns to outside.
    turns_HW = np.zeros((max(0, last - first), width + 1), np.int32)
    for (x0, y0), (x1, y1) in zip(points_N2, np.roll(points_N2, -1, axis=0), strict=True):
        start = max(first, math.ceil(min(y0, y1) - 0.5))
        stop = min(last, math.ceil(max(y0, y1) - 0.5))
        if start < stop:
            rows = np.arange(start, stop)
            x = x0 + (rows + 0.5 - y0) * ((x1 - x0) / (y1 - y0))
            columns = np.clip(np.ceil(x - 0.5), 0, width).astype(np.intp)
            turns_HW[rows - first, columns] += 1
    mask_HW[first:last] |= np.cumsum(turns_HW[:, :width], axis=1) % 2 == 1


def _runs_mask(region: Mapping[str, Any], annotated: Size, size: Size) -> np.ndarray:
    runs_height, runs_width = _runs_size(region.get("size"))
    if (runs_width, runs_height) != annotated:
        raise BadMask(
            "mask_size",
            f"run lengths of {runs_width} x {runs_height} pixels for a photo annotated at "
            f"{annotated[0]} x {annotated[1]}",
        )
    counts = region.get("counts")
    runs = _letters_to_runs(counts) if isinstance(counts, str) else counts
    pixels = runs_width * runs_height
    if not isinstance(runs, list) or not all(type(n) is int and 0 <= n <= pixels for n in runs):
        raise BadMask("broken_mask", f"run lengths must be counts of pixels, got {counts!r:.80}")
    if (total := sum(runs)) != pixels:
        what = "cut short" if total < pixels else "too long"
        raise BadMask("broken_mask", f"run lengths are {what}: {total} of {pixels} pixels")
    ends = np.cumsum(np.array(runs, np.int64))
    width, height = size
    rows_H = ((np.arange(height) + 0.5) * runs_height / height).astype(np.int64)
    columns_W = ((np.arange(width) + 0.5) * runs_width / width).astype(np.int64)
    mask_HW = np.empty((height, width), bool)
    for column, runs_column in enumerate(columns_W):  # the runs go down the columns
        places_H = runs_column * runs_height + rows_H
        # The runs at odd places are the region's.
        mask_HW[:, column] = np.searchsorted(ends, places_H, side="right") % 2 == 1
    return mask_HW


def _runs_size(value: object) -> tuple[int, int]:
    if (
        not isinstance(value, list)
        or len(value) != 2
        or not all(type(side) is int and 0 < side < _LONGEST_SIDE for side in value)
    ):
        raise BadMask("broken_mask", f"run lengths need 'size': [height, width], got {value!r:.80}")
    return value[0], value[1]


def _letters_to_runs(letters: str) -> list[int]:
    """Run lengths from COCO's compressed form (`rleFrString` in maskApi.c of the COCO API).

    A number is written in groups of 5 bits, the lowest first, 32 added where more follow, each as
    the character 48 higher; the last group's highest bit is the sign. From the fourth on, a number
    is the difference to the one two places before.
    """
    runs: list[int] = []
    number = shift = 0
    for letter in letters:
        group = ord(letter) - 48
        if not 0 <= group < 64 or shift == 5 * _LETTERS_A_RUN:
            raise BadMask("broken_mask", f"{letters!r:.80} are no compressed run lengths")
        number |= (group & 31) << shift
        shift += 5
        if not group & 32:
            if group & 16:
                number -= 1 << shift
            runs.append(number + runs[-2] if len(runs) > 2 else number)
            number = shift = 0
    if shift:
        raise BadMask("broken_mask", f"compressed run lengths are cut short: ...{letters[-40:]!r}")
    return runs
