"""What a program can say of a picture before a person looks: by name, a number and a bound.

Colours are compared in CIE L*a*b* (D65), where a distance of about 2 can just be seen (CIE 1976
colour difference); L* runs from 0 to 100. The bounds were set on photos of 224 pixels with COCO's
polygons, each edited well and badly on purpose (docs/inpaint.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import cv2
import numpy as np

from hnpretrain.config import require_one_of
from hnpretrain.inpaint.editors.base import Edited, Task
from hnpretrain.inpaint.preference import DEVICES, Preference
from hnpretrain.inpaint.records import Check

# What stands for an infinite PSNR, and for the distance to the next candidate where there is none:
# JSON has no infinity.
PSNR_CAP = 100.0
DISTANCE_CAP = 100.0
# The most that `flat` tells: ground without any texture would divide by almost nothing.
_TEXTURE_CAP = 10.0
# Texture (mean difference of neighbours in L*) below which a ground counts as smooth.
_LEAST_TEXTURE = 0.2
# The ring around the change with which it is compared, and the tolerance of a border's place, as
# shares of the shorter side; at least so many pixels.
_RING, _LEAST_RING = 0.04, 8
_PLACE, _LEAST_PLACE = 0.01, 2
# A step (in L*a*b*, from pixel to pixel) that is an edge, and the largest one of a smooth ground.
_EDGE_STEP = 12.0
_SMOOTH_STEP = 8.0
_Test = Callable[[np.ndarray], np.ndarray]
# Of 255: what still counts as black, and as a channel at its end.
_BLACK = 4
_END = 2


@dataclass
class CheckSettings:
    """Bounds of the checks. A candidate that misses one is kept, and marked; see `Checks`.

    Attributes:
        change_inside: the least mean colour distance (L*a*b*) between photo and picture in what
            was changed. 0 lets everything pass.
        outside: the least PSNR in dB outside of it. Equal pixels are 100; what a latent diffusion
            model decodes without the photo put back is at 25 to 35.
        seam: the largest share of the change's border that is an edge on a ground that was smooth
            in the photo. 1 lets everything pass.
        not_black: the largest share of the changed pixels that became black.
        not_saturated: the largest share of them that came to lie at the ends of all channels.
        not_flat: the least texture in the change, as a share of the photo's there, or around it if
            that is less. 0 lets everything pass.
        duplicate: the least mean colour distance to each earlier candidate of the proposal.
        preference: by how much, in cosine, both pictures must prefer their caption; more than this.
        model: which is asked for `preference`, as `hnpretrain eval` takes it; empty for none.
        device: of the model: auto, cpu or cuda.
    """

    change_inside: float = 5.0
    outside: float = 40.0
    seam: float = 0.15
    not_black: float = 0.8
    not_saturated: float = 0.5
    not_flat: float = 0.1
    duplicate: float = 2.0
    preference: float = 0.0
    model: str = ""
    device: str = "auto"

    def __post_init__(self) -> None:
        for name in (f.name for f in fields(self) if f.name not in ("model", "device")):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"{name}={getattr(self, name)}: must be a finite number")
        for name in ("change_inside", "duplicate", "outside", "not_flat"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)}: 0 or more")
        if self.outside > PSNR_CAP:
            raise ValueError(f"outside={self.outside}: at most {PSNR_CAP:.0f}, of equal pixels")
        for name in ("seam", "not_black", "not_saturated"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)}: between 0 and 1")
        if not -2 <= self.preference <= 2:
            raise ValueError(f"preference={self.preference}: between -2 and 2")
        require_one_of("device", self.device, DEVICES)


class Checks:
    """Measures a picture. Takes milliseconds, but for `preference`.

    - `size`: 1 if picture and change are as large as the photo, else 0, and nothing else is told.
    - `change_inside`, `outside`, `seam`, `not_black`, `not_saturated`, `not_flat`, `duplicate`:
      what `CheckSettings` says of each.
    - `preference`, with a model: the smaller one of photo's and picture's margins.

    All values are finite.
    """

    def __init__(self, settings: CheckSettings, preference: Preference | None = None) -> None:
        self._settings = settings
        self._preference = preference

    @classmethod
    def of(cls, settings: CheckSettings) -> Checks:
        """With the model that the settings name, if they name one."""
        preference = Preference(settings.model, settings.device) if settings.model else None
        return cls(settings, preference)

    @property
    def settings(self) -> Mapping[str, Any]:
        """All that decides what is found beside photo and pictures; JSON values."""
        told = asdict(self._settings)
        del told["device"]
        if self._preference is None:
            del told["preference"]
        return told

    def verify(self) -> None:
        """Looks whether the model can be used, before any work is done; nothing stays loaded.

        Raises:
            ValueError: it cannot be loaded, or its device is not there.
        """
        if self._preference is not None:
            self._preference.verify()

    def __call__(self, task: Task, edited: Edited, earlier: Sequence[Edited]) -> dict[str, Check]:
        """The checks of one picture, by name.

        Args:
            task: what was to be made.
            edited: the picture.
            earlier: the proposal's candidates before this one.

        Raises:
            ValueError: the model fails.
        """
        bounds = self._settings
        image_HWC, changed_HW = edited.image_HWC, edited.changed_HW
        photo_HWC = task.photo_HWC
        if image_HWC.shape != photo_HWC.shape or changed_HW.shape != photo_HWC.shape[:2]:
            return {"size": Check(0.0, False)}
        checks = {"size": Check(1.0, True)}

        def at_least(name: str, value: float, bound: float) -> None:
            checks[name] = Check(float(value), bool(value >= bound))

        def at_most(name: str, value: float, bound: float) -> None:
            checks[name] = Check(float(value), bool(value <= bound))

        around = _Around(photo_HWC, image_HWC, changed_HW)
        at_least("change_inside", around.change(), bounds.change_inside)
        at_least("outside", outside_psnr(photo_HWC, image_HWC, changed_HW), bounds.outside)
        at_most("seam", around.seam(), bounds.seam)
        at_most("not_black", around.share_new(_is_black), bounds.not_black)
        at_most("not_saturated", around.share_new(_is_saturated), bounds.not_saturated)
        at_least("not_flat", around.texture(), bounds.not_flat)
        at_least("duplicate", distance_to_nearest(edited, earlier), bounds.duplicate)
        if self._preference is not None:
            proposal = task.proposal
            value = min(
                self._preference.margins(
                    photo_HWC, image_HWC, proposal.caption, proposal.new_caption
                )
            )
            checks["preference"] = Check(value, value > bounds.preference)
        return checks


def outside_psnr(photo_HWC: np.ndarray, image_HWC: np.ndarray, changed_HW: np.ndarray) -> float:
    """PSNR in dB where nothing was meant to change: 10 log10(255^2 / mean squared error).

    At most PSNR_CAP, which is also that of a change of the whole photo.
    """
    kept_HW = (~changed_HW).astype(np.uint8)
    kept = int(np.count_nonzero(kept_HW))
    squares = cv2.norm(photo_HWC, image_HWC, cv2.NORM_L2SQR, kept_HW)
    if not squares:
        return PSNR_CAP
    return min(PSNR_CAP, 10 * math.log10(255**2 * 3 * kept / squares))


def distance_to_nearest(edited: Edited, earlier: Sequence[Edited]) -> float:
    """The smallest mean L*a*b* distance to one of the earlier pictures, where either was changed.

    At most DISTANCE_CAP, which is also that of a first picture.
    """
    least = DISTANCE_CAP
    for other in earlier:
        if other.image_HWC.shape != edited.image_HWC.shape:
            continue
        either_HW = edited.changed_HW | other.changed_HW
        if not either_HW.any():
            return 0.0
        box = _box(either_HW, 0)
        distance_HW = _distance(_lab(edited.image_HWC[box]), _lab(other.image_HWC[box]))
        least = min(least, float(distance_HW[either_HW[box]].mean()))
    return least


class _Around:
    """Photo and picture, cut to the change and the ring around it."""

    def __init__(
        self, photo_HWC: np.ndarray, image_HWC: np.ndarray, changed_HW: np.ndarray
    ) -> None:
        shorter = min(changed_HW.shape)
        self._ring = max(_LEAST_RING, round(_RING * shorter))
        self._place = max(_LEAST_PLACE, round(_PLACE * shorter))
        self._is_empty = not changed_HW.any()
        box = _box(changed_HW, self._ring)
        self._photo_HWC, self._image_HWC = photo_HWC[box], image_HWC[box]
        self._changed_HW = changed_HW[box]
        self._photo_lab_CHW = _lab(self._photo_HWC)
        self._image_lab_CHW = _lab(self._image_HWC)

    def change(self) -> float:
        """The mean distance in the change; 0 of an empty one."""
        if self._is_empty:
            return 0.0
        distance_HW = _distance(self._photo_lab_CHW, self._image_lab_CHW)
        return float(distance_HW[self._changed_HW].mean())

    def seam(self) -> float:
        """The share of the border that is an edge where the photo had none nearby.

        A thing that gets another colour has an edge at its border, as before. One that is not a
        border of anything (the mask was too large, the ground does not go on) is new. The photo's
        largest step within some pixels tells them apart, since masks are never exact.
        """
        largest_HW: np.ndarray = np.zeros(self._changed_HW.shape, np.float32)
        steps = [_steps(self._photo_lab_CHW, axis) for axis in (0, 1)]
        for axis, step in enumerate(steps):
            for part in (_but_last(axis), _but_first(axis)):
                largest_HW[part] = np.maximum(largest_HW[part], step)
        side = 2 * self._place + 1
        largest_HW = cv2.dilate(largest_HW, np.ones((side, side), np.uint8))

        border = new = 0
        for axis in (0, 1):
            before, behind = _but_last(axis), _but_first(axis)
            is_border = self._changed_HW[before] ^ self._changed_HW[behind]
            was_smooth = np.maximum(largest_HW[before], largest_HW[behind]) < _SMOOTH_STEP
            is_edge = _steps(self._image_lab_CHW, axis) > _EDGE_STEP
            border += int(is_border.sum())
            new += int((is_border & was_smooth & is_edge).sum())
        return new / border if border else 0.0

    def share_new(self, is_so: _Test) -> float:
        """The share of the changed pixels that are so and were not in the photo."""
        if self._is_empty:
            return 0.0
        new_HW = is_so(self._image_HWC) & ~is_so(self._photo_HWC)
        return float(new_HW[self._changed_HW].mean())

    def texture(self) -> float:
        """Texture in the change, as a share of what the photo has there or around, if less.

        Behind a thing there may be sky; a thing may be smooth on rough ground: the smoother one
        is asked for. 1 where that is hardly any.
        """
        # The border's own steps are no texture.
        inner_HW = cv2.erode(self._changed_HW.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
        if not inner_HW.any():
            return 1.0
        side = 2 * self._ring + 1
        disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))
        ring_HW = (cv2.dilate(self._changed_HW.astype(np.uint8), disc) > 0) & ~self._changed_HW
        photo_HW = _roughness(self._photo_lab_CHW)
        wanted = float(photo_HW[inner_HW].mean())
        if ring_HW.any():
            wanted = min(wanted, float(photo_HW[ring_HW].mean()))
        if wanted < _LEAST_TEXTURE:
            return 1.0
        found = float(_roughness(self._image_lab_CHW)[inner_HW].mean())
        return min(_TEXTURE_CAP, found / wanted)


def _is_black(image_HWC: np.ndarray) -> np.ndarray:
    return np.max(_planes(image_HWC), axis=0) <= _BLACK


def _is_saturated(image_HWC: np.ndarray) -> np.ndarray:
    """At the ends of all channels, as white and pure red are; black has a check of its own."""
    image_CHW = _planes(image_HWC)
    is_high_CHW = image_CHW >= 255 - _END
    is_end_HW = np.all(is_high_CHW | (image_CHW <= _END), axis=0)
    return np.logical_and(is_end_HW, np.any(is_high_CHW, axis=0))


def _planes(image_HWC: np.ndarray) -> np.ndarray:
    """C x H x W; numpy sums over a last axis of three many times slower than over a first one."""
    return np.ascontiguousarray(np.moveaxis(image_HWC, -1, 0))


def _lab(image_HWC: np.ndarray) -> np.ndarray:
    return _planes(cv2.cvtColor(image_HWC.astype(np.float32) / 255, cv2.COLOR_RGB2LAB))


def _distance(first_CHW: np.ndarray, second_CHW: np.ndarray) -> np.ndarray:
    return np.sqrt(np.square(first_CHW - second_CHW).sum(axis=0))


def _steps(lab_CHW: np.ndarray, axis: int) -> np.ndarray:
    """Distances of neighbours along an axis of the picture; one fewer than pixels."""
    return _distance(lab_CHW[:, *_but_first(axis)], lab_CHW[:, *_but_last(axis)])


def _roughness(lab_CHW: np.ndarray) -> np.ndarray:
    """|dL*/dx| + |dL*/dy| of each pixel, by differences with the next one."""
    lightness_HW = lab_CHW[0]
    right_HW = np.diff(lightness_HW, axis=1, append=lightness_HW[:, -1:])
    below_HW = np.diff(lightness_HW, axis=0, append=lightness_HW[-1:])
    return np.abs(right_HW) + np.abs(below_HW)


def _but_first(axis: int) -> tuple[slice, ...]:
    return (slice(None),) * axis + (slice(1, None),)


def _but_last(axis: int) -> tuple[slice, ...]:
    return (slice(None),) * axis + (slice(None, -1),)


def _box(mask_HW: np.ndarray, margin: int) -> tuple[slice, slice]:
    """The rows and columns of a mask, and so many more; the first pixel's of an empty one."""
    slices = []
    for axis in (0, 1):
        found = np.flatnonzero(mask_HW.any(axis=1 - axis))
        first, last = (found[0], found[-1]) if len(found) else (0, 0)
        slices.append(slice(max(0, int(first) - margin), int(last) + 1 + margin))
    return slices[0], slices[1]
