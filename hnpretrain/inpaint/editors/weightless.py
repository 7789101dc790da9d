"""What the editors without a model share: one task at a time, and things fit to be edited."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np

from hnpretrain.inpaint.editors.base import CannotEdit, Edited, Editor, Task

# Of a thing's pixels: fewer show nothing.
_LEAST_PIXELS = 64


class WeightlessEditor(Editor):
    """Edits task by task.

    Args:
        chosen: its settings, a dataclass.
    """

    def __init__(self, chosen: Any) -> None:
        self._settings = dataclasses.asdict(chosen)

    @property
    def settings(self) -> Mapping[str, Any]:
        return self._settings

    def edit(self, tasks: Sequence[Task]) -> list[Edited | CannotEdit]:
        results: list[Edited | CannotEdit] = []
        for task in tasks:
            try:
                _check(task)
                results.append(self._edit(task))
            except CannotEdit as reason:
                results.append(reason)
        return results

    @abstractmethod
    def _edit(self, task: Task) -> Edited:
        """The picture; raises CannotEdit."""


def _check(task: Task) -> None:
    if task.photo_HWC.shape != (*task.mask_HW.shape, 3) or task.photo_HWC.dtype != np.uint8:
        raise ValueError(
            f"proposal {task.proposal.id}: a mask of {task.mask_HW.shape} needs a photo of "
            f"{(*task.mask_HW.shape, 3)}, uint8; got {task.photo_HWC.shape}, {task.photo_HWC.dtype}"
        )
    if (pixels := int(task.mask_HW.sum())) < _LEAST_PIXELS:
        raise CannotEdit(f"the mask has {pixels} pixels, too few to show anything")
    if task.mask_HW.all():
        raise CannotEdit("the mask is all of the photo")


@dataclasses.dataclass(frozen=True)
class Box:
    """Where a mask is: rows [top, bottom), columns [left, right)."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def height(self) -> int:
        return self.bottom - self.top

    @property
    def width(self) -> int:
        return self.right - self.left

    def of(self, array: np.ndarray) -> np.ndarray:
        return array[self.top : self.bottom, self.left : self.right]


def box_of(mask_HW: np.ndarray) -> Box:
    """The smallest box around what is true; there must be some."""
    rows, columns = (np.flatnonzero(mask_HW.any(axis)) for axis in (1, 0))
    return Box(int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1)


def touched_borders(mask_HW: np.ndarray) -> list[str]:
    """Which borders of its photo a thing reaches, within a pixel that polygons often leave."""
    box = box_of(mask_HW)
    height, width = mask_HW.shape
    reached = {
        "left": box.left <= 1,
        "right": box.right >= width - 1,
        "top": box.top <= 1,
        "bottom": box.bottom >= height - 1,
    }
    return [name for name, is_reached in reached.items() if is_reached]


def main_piece_share(mask_HW: np.ndarray) -> float:
    """How much of the mask its largest connected piece has."""
    _, _, stats, _ = cv2.connectedComponentsWithStats(mask_HW.astype(np.uint8), connectivity=8)
    return float(stats[1:, cv2.CC_STAT_AREA].max() / max(1, mask_HW.sum()))


def thickness(mask_HW: np.ndarray) -> float:
    """Pixels across the mask where it is thickest."""
    padded_HW = np.pad(mask_HW.astype(np.uint8), 1)
    return 2 * float(cv2.distanceTransform(padded_HW, cv2.DIST_L2, cv2.DIST_MASK_PRECISE).max())
