"""Takes a thing out of the photo, and puts another one, from another photo, in its place."""

from __future__ import annotations

import hashlib
import json
import math
import random
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from hnpretrain.inpaint.editors.base import CannotEdit, Edited, Task
from hnpretrain.inpaint.editors.donors import Donor, read_cut_out, read_donors
from hnpretrain.inpaint.editors.paste import CutOut, pasted
from hnpretrain.inpaint.editors.perceptual import oklab_to_srgb, srgb_to_oklab
from hnpretrain.inpaint.editors.remove import check_hole, without
from hnpretrain.inpaint.editors.weightless import WeightlessEditor, box_of, touched_borders
from hnpretrain.inpaint.folder import Folder
from hnpretrain.inpaint.records import Proposal
from hnpretrain.shards.images import DEFAULT_MAX_PIXELS

# Donors of a category, drawn for each proposal.
_MOST_LOOKED_AT = 40
# How much of the difference in light between the photos is made up for, in L and in a, b; and the
# most, in OKLab.
_MATCHED, _MATCHED_CAST = 0.5, 0.6
_MOST_SHIFT, _MOST_CAST = 0.10, 0.03


@dataclass
class ReplaceSettings:
    """Settings of `replace`.

    Attributes:
        most_area: of the photo, of what the old thing leaves uncovered; more is not filled
            believably.
        least_area: of the photo, of the new thing; a smaller one is hardly seen.
        most_scale: by which a donor is enlarged; more would look blurred.
        most_stretch: by how much a donor's width over height may differ from the old thing's.
    """

    most_area: float = 0.06
    least_area: float = 0.02
    most_scale: float = 1.3
    most_stretch: float = 2.5

    def __post_init__(self) -> None:
        if not 0 < self.most_area < 0.5:
            raise ValueError(f"most_area={self.most_area}: above 0, below 0.5")
        if not 0.1 <= self.most_scale <= 4:
            raise ValueError(f"most_scale={self.most_scale}: between 0.1 and 4")
        if not 0 <= self.least_area < 0.5:
            raise ValueError(f"least_area={self.least_area}: between 0 and 0.5")
        if self.most_stretch < 1:
            raise ValueError(f"most_stretch={self.most_stretch}: at least 1")


class ReplaceEditor(WeightlessEditor):
    """Pastes a donor where a thing was: for each of a proposal's candidates another one.

    The donors are drawn by the proposal's id, and taken in turn; the seed has no part in it.

    Args:
        folder: with donors.

    Raises:
        ValueError: the list of donors is damaged.
    """

    name = "replace"
    edits = ("replace",)

    def __init__(self, folder: Folder, settings: ReplaceSettings | None = None) -> None:
        self._chosen = settings or ReplaceSettings()
        super().__init__(self._chosen)
        self._folder = folder
        self._donors: dict[str, list[Donor]] = defaultdict(list)
        for donor in read_donors(folder):
            self._donors[donor.category.lower()].append(donor)
        self._digests = {name: _digest(donors) for name, donors in self._donors.items()}

    def settings_for(self, proposal: Proposal) -> Mapping[str, Any]:
        """With a digest of all donors of the category."""
        category = self._category(proposal.target)
        return {**self.settings, "donors": self._digests.get(category, "")}

    def _edit(self, task: Task) -> Edited:
        donors = self._donors.get(self._category(task.proposal.target), [])
        others = [donor for donor in donors if donor.key != task.proposal.key]
        if not others:
            raise CannotEdit(f"no other photo has a whole {task.proposal.target!r} to paste")
        photo_HWC, mask_HW = task.photo_HWC, task.mask_HW
        if len(borders := touched_borders(mask_HW)) > 1:
            raise CannotEdit(f"the photo's border cuts it ({', '.join(borders)})")
        fitting = self._fitting(others, mask_HW, task.proposal)
        if task.number >= len(fitting):
            raise CannotEdit("there is no further donor")
        donor, picture_HWC, factor = fitting[task.number]
        thing = _lit(picture_HWC, donor, photo_HWC)
        height, width = thing.alpha_HW.shape
        # The donor's foot is put on that of the old thing, and all of it into the photo.
        box = box_of(mask_HW)
        half = width * factor / 2
        column = float(np.clip((box.left + box.right) / 2, half, mask_HW.shape[1] - half))
        anchor = _fixed_point((float(box.bottom), column), (float(height), width / 2), factor)
        _, covered_HW = pasted(photo_HWC, thing, factor, anchor)
        if (area := float(covered_HW.mean())) < self._chosen.least_area:
            raise CannotEdit(f"it would take {area:.1%} of the photo, too little to be seen")
        check_hole(mask_HW & ~covered_HW, self._chosen.most_area)
        ground_HWC, hole_HW = without(photo_HWC, mask_HW)
        image_HWC, covered_HW = pasted(ground_HWC, thing, factor, anchor)
        details = {"donor": donor.id, "donor_key": donor.key, "factor": round(factor, 3)}
        return Edited(image_HWC, hole_HW | covered_HW | mask_HW, details)

    def _category(self, target: str) -> str:
        """The donors' category that words name, "a cat", "cats", "Stop signs"; or empty."""
        name = re.sub(r"^(an?|the|some|one|two)\s+", "", target.strip().lower())
        forms = [name, name.removesuffix("s"), name.removesuffix("es")]
        forms += [name.removesuffix("ies") + "y", name.removesuffix("ves") + "fe"]
        return next((form for form in forms if form in self._donors), "")

    def _fitting(
        self, donors: Sequence[Donor], mask_HW: np.ndarray, proposal: Proposal
    ) -> list[tuple[Donor, np.ndarray, float]]:
        """Donors that fit, in the order in which candidates take them; at least one.

        With each come its picture, and what makes that as large as the old thing.
        """
        box = box_of(mask_HW)
        draw = random.Random(proposal.id)
        donors = sorted(donors, key=lambda donor: donor.id)
        fitting = []
        for donor in draw.sample(donors, min(_MOST_LOOKED_AT, len(donors))):
            picture_HWC = read_cut_out(self._folder, donor, DEFAULT_MAX_PIXELS)
            height, width = picture_HWC.shape[:2]
            stretch = math.log((width / height) / (box.width / box.height))
            factor = math.sqrt(box.width * box.height / (width * height))
            # Not out of the photo.
            factor = min(factor, box.bottom / height, 0.95 * mask_HW.shape[1] / width)
            if abs(stretch) <= math.log(self._chosen.most_stretch) and (
                factor <= self._chosen.most_scale
            ):
                fitting.append((abs(stretch), donor, picture_HWC, factor))
        if not fitting:
            raise CannotEdit("no donor has its shape and is large enough")
        # The half that fits best comes first, as drawn; at least two.
        fitting.sort(key=lambda entry: (entry[0], entry[1].id))
        half = max(2, len(fitting) // 2)
        best = fitting[:half]
        draw.shuffle(best)
        return [entry[1:] for entry in best + fitting[half:]]


def _digest(donors: Sequence[Donor]) -> str:
    """Of all that is known of donors; their ids tell of their pictures."""
    told = sorted(json.dumps(asdict(donor)) for donor in donors)
    return hashlib.sha256("\n".join(told).encode()).hexdigest()[:32]


def _fixed_point(
    target: tuple[float, float], source: tuple[float, float], factor: float
) -> tuple[float, float]:
    """The point that stays in place where scaling by a factor moves source to target."""
    if abs(1 - factor) < 1e-6:
        factor += 1e-5
    return (
        (target[0] - factor * source[0]) / (1 - factor),
        (target[1] - factor * source[1]) / (1 - factor),
    )


def _lit(picture_HWC: np.ndarray, donor: Donor, photo_HWC: np.ndarray) -> CutOut:
    """The donor, in about the photo's light."""
    lab_HWC = srgb_to_oklab(np.ascontiguousarray(picture_HWC[..., :3]))
    shift = srgb_to_oklab(photo_HWC).reshape(-1, 3).mean(0) - np.array(donor.light, np.float32)
    bright = float(np.clip(_MATCHED * shift[0], -_MOST_SHIFT, _MOST_SHIFT))
    lab_HWC[..., 0] = lab_HWC[..., 0] * (1 + bright / 0.6)
    lab_HWC[..., 1:] += np.clip(_MATCHED_CAST * shift[1:], -_MOST_CAST, _MOST_CAST)
    alpha_HW = picture_HWC[..., 3].astype(np.float32) / 255
    return CutOut(oklab_to_srgb(lab_HWC), alpha_HW, 0, 0)
