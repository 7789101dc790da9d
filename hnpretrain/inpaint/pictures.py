"""The pictures of a pair: read from the folder, and checked before they go into a data set."""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
from PIL import ExifTags

from hnpretrain.inpaint.folder import Folder
from hnpretrain.inpaint.selection import Pair
from hnpretrain.shards.images import BadImage, check_header, decode_image, open_image, png_of


@dataclass(frozen=True)
class Pictures:
    """The encoded pictures of a pair.

    Attributes:
        photo: the source's bytes.
        image: of the candidate.
        changed: of mode L, white where pixels were meant to change.
    """

    photo: bytes
    image: bytes
    changed: bytes


def read_pictures(folder: Folder, pair: Pair) -> Pictures:
    """The files' bytes.

    Raises:
        ValueError: a record names a file outside of the folder.
        OSError: one cannot be read.
    """
    names = (pair.proposal.photo, pair.candidate.image, pair.candidate.changed)
    return Pictures(*(folder.path(name).read_bytes() for name in names))


def check_pictures(pictures: Pictures, max_pixels: int) -> None:
    """Decodes all three.

    Raises:
        ValueError: one is damaged or of another size than the photo, or nothing was to change.
    """
    size = _size("photo", pictures.photo, max_pixels)
    for name, data in (("picture", pictures.image), ("mask of changes", pictures.changed)):
        if (own := _size(name, data, max_pixels)) != size:
            raise ValueError(f"the {name} has {own} pixels, the photo {size}")
    if not np.asarray(decode_image(pictures.changed, max_pixels)).any():
        raise ValueError("the mask of changes is empty")


def _size(name: str, data: bytes, max_pixels: int) -> tuple[int, int]:
    try:
        check_header(data, max_pixels)
        return decode_image(data, max_pixels).size
    except BadImage as error:
        raise ValueError(f"the {name} cannot be used: {error}") from error


def as_it_lies(photo: bytes, max_pixels: int) -> bytes:
    """A photo whose pixels `datasets` gives as editors and masks took them.

    Nothing else asks for the EXIF data of what is in the folder. `datasets` does: it raises where
    they are broken, and turns a photo that they mark as turned, which `propose` leaves none of, but
    a folder made by other means may have. Such a photo becomes a PNG of its pixels; all others stay
    the same bytes.
    """
    if not _exif_matters(photo, max_pixels):
        return photo
    return png_of(decode_image(photo, max_pixels))


def _exif_matters(photo: bytes, max_pixels: int) -> bool:
    with open_image(photo, max_pixels) as image:
        try:
            return image.getexif().get(ExifTags.Base.Orientation, 1) != 1
        except (OSError, SyntaxError, ValueError, struct.error):
            return True  # what cannot be read here would not be by `datasets`
