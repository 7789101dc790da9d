"""Takes a thing out of the photo: what was behind it is copied from around it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hnpretrain.inpaint.editors.base import CannotEdit, Edited, Task
from hnpretrain.inpaint.editors.blend import grown, mixed, ramp, reach_of
from hnpretrain.inpaint.editors.ground import fill
from hnpretrain.inpaint.editors.perceptual import srgb_to_oklab
from hnpretrain.inpaint.editors.weightless import WeightlessEditor, box_of

# Of a thing's height: how far under it its shadow is looked for.
_SHADOW = 0.16
# In OKLab's L: how much darker than the ground beside it a shadow is, at least.
_DARKER = 0.06


@dataclass
class RemoveSettings:
    """Settings of `remove`.

    Attributes:
        most_area: of the photo; a larger hole is not filled believably.
    """

    most_area: float = 0.08

    def __post_init__(self) -> None:
        if not 0 < self.most_area < 0.5:
            raise ValueError(f"most_area={self.most_area}: above 0, below 0.5")


class RemoveEditor(WeightlessEditor):
    """Removes the thing; seeds change nothing."""

    name = "remove"
    edits = ("remove",)
    is_seeded = False

    def __init__(self, settings: RemoveSettings | None = None) -> None:
        self._chosen = settings or RemoveSettings()
        super().__init__(self._chosen)

    def _edit(self, task: Task) -> Edited:
        check_hole(task.mask_HW, self._chosen.most_area)
        ground_HWC, hole_HW = without(task.photo_HWC, task.mask_HW)
        return Edited(ground_HWC, hole_HW)


def check_hole(mask_HW: np.ndarray, most_area: float) -> None:
    """Raises CannotEdit if a thing takes more of the photo than can be filled believably."""
    if (area := float(mask_HW.mean())) > most_area:
        raise CannotEdit(f"{area:.0%} of the photo is too much to fill ({most_area:.0%} at most)")


def without(photo_HWC: np.ndarray, mask_HW: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The photo without the thing, and the hole that was filled: H x W x 3, uint8; H x W, bool.

    Raises:
        CannotEdit: too little is left to copy from.
    """
    reach = reach_of(photo_HWC)
    gone_HW = grown(mask_HW | _shadow(photo_HWC, mask_HW, reach), reach)
    hole_HW = grown(gone_HW, reach)
    filled_HWC = fill(photo_HWC, hole_HW)
    soft_HW = ramp(gone_HW, reach) * hole_HW
    return mixed(photo_HWC, filled_HWC, soft_HW), hole_HW


def _shadow(photo_HWC: np.ndarray, mask_HW: np.ndarray, reach: int) -> np.ndarray:
    """The dark ground right under the thing; H x W, bool."""
    box = box_of(mask_HW)
    depth = max(reach, round(_SHADOW * box.height))
    rows = np.arange(len(mask_HW))[:, None]
    # From the thing's lowest third down: where it stands, or nearly.
    low_HW = (rows >= box.bottom - box.height / 3) & (rows < box.bottom + depth)
    near_HW = grown(mask_HW & low_HW, depth) & low_HW & ~mask_HW
    around_HW = grown(mask_HW & low_HW, 3 * depth) & low_HW & ~near_HW & ~mask_HW
    if not near_HW.any() or not around_HW.any():
        return np.zeros_like(mask_HW)
    lightness_HW = srgb_to_oklab(photo_HWC)[..., 0]
    usual = float(np.median(lightness_HW[around_HW]))
    return near_HW & (lightness_HW < usual - _DARKER)
