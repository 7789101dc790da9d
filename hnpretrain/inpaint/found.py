"""A photo, and what `inpaint propose` has found in it so far."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import ExifTags, Image

from hnpretrain.inpaint.masks import Thing
from hnpretrain.inpaint.photos import Photo, upright
from hnpretrain.inpaint.wording import Change, LeftOut
from hnpretrain.shards.images import BadImage, decode_image, open_image, png_of
from hnpretrain.shards.marker import Reject
from hnpretrain.shards.schema import Negative


@dataclass
class Mask:
    """The mask of all things that a noun means.

    Attributes:
        png: of mode L, 255 on them; empty once it is written.
        digest: of the png.
        area: as a share of the photo.
        category: of the things.
        things: how many it joins.
    """

    png: bytes
    digest: str
    area: float
    category: str
    things: int

    @property
    def name(self) -> str:
        """Path in the folder."""
        return f"masks/{self.digest[:20]}.png"

    @classmethod
    def of(cls, things: Sequence[Thing]) -> Mask:
        """The union of masks; at least one, all of one size."""
        joined_HW = np.logical_or.reduce([thing.mask_HW for thing in things])
        png = png_of(Image.fromarray(np.where(joined_HW, 255, 0).astype(np.uint8)))
        digest = hashlib.sha256(png).hexdigest()
        return cls(png, digest, float(joined_HW.mean()), things[0].category, len(things))

    @property
    def mask_HW(self) -> np.ndarray:
        """bool, true on the things."""
        with Image.open(io.BytesIO(self.png)) as image:
            return np.asarray(image) > 0

    @property
    def hull_HW(self) -> np.ndarray:
        """bool, true inside the convex hull of the things."""
        import cv2

        mask_HW = self.mask_HW.astype(np.uint8)
        cv2.fillConvexPoly(mask_HW, cv2.convexHull(cv2.findNonZero(mask_HW)), 1)
        return mask_HW > 0


@dataclass(frozen=True)
class Option:
    """A proposal that may be kept.

    Attributes:
        source_caption: see Proposal.
        caption: likewise; the negative was made of it.
        negative: the new caption.
        change: what that changes.
        mask: of the thing.
    """

    source_caption: str
    caption: str
    negative: Negative
    change: Change
    mask: Mask


@dataclass
class Found:
    """A photo, upright, and what was found in it.

    Attributes:
        photo: the photo.
        image_HWC: RGB, uint8; None once all is found, since many photos wait for the end.
        digest: of the photo's bytes.
        options: in the order in which they were found.
        covered: digest of a mask to how much of its hull belongs to other things.
        masks: of nouns, by text and what they may name; or why there is none. Captions name the
            same few things again and again.
    """

    photo: Photo
    image_HWC: np.ndarray | None
    digest: str
    options: list[Option] = field(default_factory=list)
    covered: dict[str, float] = field(default_factory=dict)
    masks: dict[tuple[str, str, int], Mask | LeftOut] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Path of the photo in the folder; another for another photo of the same key."""
        return f"photos/{self.photo.key}-{self.digest[:10]}.{self.photo.extension}"

    def files(self) -> Iterator[tuple[str, bytes]]:
        """What must be written for the options: paths in the folder, and bytes; each once."""
        if self.options:
            yield self.name, self.photo.image
        yield from {option.mask.name: option.mask.png for option in self.options}.items()

    def forget(self) -> None:
        """Lets go of all bytes: many photos wait until the last one is read."""
        self.image_HWC = None
        self.photo = dataclasses.replace(self.photo, image=b"")
        self.masks.clear()
        for option in self.options:
            option.mask.png = b""


def _orientation(image: Image.Image) -> int:
    """EXIF's, or 1 where there is none that can be read."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except (SyntaxError, ValueError, KeyError, TypeError, struct.error):  # as Pillow does
        return 1


def opened(photo: Photo, max_pixels: int) -> Found | Reject:
    """A photo, decoded; one that its camera has marked as turned is turned, and kept as a PNG.

    Viewers turn such a photo, and decoders for training don't, so that it would not lie on the
    pictures that are made of it.
    """
    try:
        image = decode_image(photo.image, max_pixels)
        with open_image(photo.image, max_pixels) as marked:
            orientation = _orientation(marked)
    except BadImage as error:
        return Reject(photo.key, error.reason, error.detail)
    if orientation in range(2, 9):
        image = upright(image, orientation)
        photo = dataclasses.replace(
            photo, image=png_of(image), extension="png", orientation=orientation
        )
    digest = hashlib.sha256(photo.image).hexdigest()
    return Found(photo, np.asarray(image), digest)
