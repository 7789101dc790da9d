"""Makes a thing larger or smaller where it stands."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hnpretrain.inpaint.editors.base import CannotEdit, Edited, Task
from hnpretrain.inpaint.editors.blend import grown, reach_of
from hnpretrain.inpaint.editors.paste import cut_out, pasted
from hnpretrain.inpaint.editors.remove import check_hole, without
from hnpretrain.inpaint.editors.weightless import (
    WeightlessEditor,
    box_of,
    main_piece_share,
    thickness,
    touched_borders,
)

# Of the mask: less in one piece means that something stands before the thing.
_LEAST_MAIN_PIECE = 0.9
# In units of `reach_of`: thinner things are mostly edge.
_LEAST_THICKNESS = 4


@dataclass
class ResizeSettings:
    """Settings of `resize`.

    Attributes:
        shrink: the smaller thing's height over the old one's.
        enlarge: the larger thing's, where there is room.
        least_enlarge: and where there is less room, at least.
        most_area: of the photo, of a thing that is made smaller: the ground that it uncovers.
        most_covered: of the photo, of a thing that was made larger.
    """

    shrink: float = 0.6
    enlarge: float = 1.5
    least_enlarge: float = 1.35
    most_area: float = 0.12
    most_covered: float = 0.6

    def __post_init__(self) -> None:
        if not 0.2 <= self.shrink <= 0.9:
            raise ValueError(f"shrink={self.shrink}: between 0.2 and 0.9")
        if not 1.1 <= self.least_enlarge <= self.enlarge <= 4:
            raise ValueError(
                f"least_enlarge={self.least_enlarge}, enlarge={self.enlarge}: between 1.1 and 4, "
                "the first not above the second"
            )
        for name in ("most_area", "most_covered"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: between 0 and 1")


class ResizeEditor(WeightlessEditor):
    """Scales the thing about the middle of its foot; seeds change nothing.

    A thing that one border of the photo cuts is scaled about that border, and stays cut. Enlarged,
    one that is cut at its side would need what the photo does not show around it, so it is refused.
    """

    name = "resize"
    edits = ("enlarge", "shrink")
    is_seeded = False

    def __init__(self, settings: ResizeSettings | None = None) -> None:
        self._chosen = settings or ResizeSettings()
        super().__init__(self._chosen)

    def _edit(self, task: Task) -> Edited:
        photo_HWC, mask_HW = task.photo_HWC, task.mask_HW
        if (share := main_piece_share(mask_HW)) < _LEAST_MAIN_PIECE:
            raise CannotEdit(f"it is in pieces (the largest has {share:.0%}), so partly hidden")
        if thickness(mask_HW) < _LEAST_THICKNESS * reach_of(photo_HWC):
            raise CannotEdit("it is too thin to be cut out")
        borders = touched_borders(mask_HW)
        kept = {"bottom"} if task.proposal.edit == "enlarge" else {"left", "right", "bottom"}
        if len(borders) > 1 or not kept.issuperset(borders):
            raise CannotEdit(f"the photo's border cuts it ({', '.join(borders)})")
        anchor = _anchor(mask_HW, borders)
        thing = cut_out(photo_HWC, mask_HW)
        if task.proposal.edit == "shrink":
            factor = self._chosen.shrink
            check_hole(mask_HW, self._chosen.most_area)
            ground_HWC, hole_HW = without(photo_HWC, mask_HW)
        else:
            factor = self._enlargement(mask_HW, anchor, borders)
            ground_HWC, hole_HW = photo_HWC, np.zeros_like(mask_HW)
        image_HWC, covered_HW = pasted(ground_HWC, thing, factor, anchor)
        if task.proposal.edit == "enlarge" and (grown(mask_HW, 1) & ~covered_HW).any():
            # Between the larger legs, the old ones would be seen.
            ground_HWC, hole_HW = without(photo_HWC, mask_HW)
            image_HWC, covered_HW = pasted(ground_HWC, thing, factor, anchor)
        return Edited(image_HWC, hole_HW | covered_HW | mask_HW, {"factor": round(factor, 3)})

    def _enlargement(
        self, mask_HW: np.ndarray, anchor: tuple[float, float], borders: list[str]
    ) -> float:
        """The largest factor up to the wanted one with which the thing stays in the photo."""
        box = box_of(mask_HW)
        height, width = mask_HW.shape
        row, column = anchor
        room = {
            "top": row / max(1, row - box.top),
            "left": column / max(1, column - box.left),
            "right": (width - column) / max(1, box.right - column),
            "bottom": (height - row) / (box.bottom - row) if box.bottom > row else np.inf,
        }
        fits = min(limit for border, limit in room.items() if border not in borders)
        fits = min(fits, (self._chosen.most_covered / float(mask_HW.mean())) ** 0.5)
        factor = min(self._chosen.enlarge, fits)
        if factor < self._chosen.least_enlarge:
            raise CannotEdit(
                f"there is room to enlarge it {factor:.2f} times, {self._chosen.least_enlarge} "
                "are wanted"
            )
        return float(factor)


def _anchor(mask_HW: np.ndarray, borders: list[str]) -> tuple[float, float]:
    """Row and column that stay: the middle of the thing's foot, or of the border's cut."""
    box = box_of(mask_HW)
    height, width = mask_HW.shape
    foot_W = mask_HW[max(box.top, box.bottom - max(2, box.height // 12)) : box.bottom].any(0)
    column = float(np.flatnonzero(foot_W).mean()) + 0.5
    # A pole or a leg at one side is no middle.
    column = float(np.clip(column, box.left + box.width / 3, box.right - box.width / 3))
    if "left" in borders:
        column = 0.0
    if "right" in borders:
        column = float(width)
    row = float(height if "bottom" in borders else box.bottom)
    return row, column
