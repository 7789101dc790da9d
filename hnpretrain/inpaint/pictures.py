"""The pictures of a pair: read from the folder, and checked before they go into a data set."""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass

import numpy as np
from PIL import ExifTags, Image

from hnpretrain.inpaint.folder import Folder
from hnpretrain.inpaint.selection import Pair
from hnpretrain.shards.images import BadImage, check_header, decode_image, open_image


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
    """A photo that `datasets` shows as all else in this project sees it.

    `datasets` turns a picture as its EXIF orientation says; editors and masks took its pixels as
    they lie. Such a photo becomes a PNG of these pixels; all others stay as they are.
    """
    if not _is_turned(photo, max_pixels):
        return photo
    return png(decode_image(photo, max_pixels))


def _is_turned(photo: bytes, max_pixels: int) -> bool:
    with open_image(photo, max_pixels) as image:
        try:
            return image.getexif().get(ExifTags.Base.Orientation, 1) != 1
        except (OSError, SyntaxError, ValueError, struct.error):
            return True  # what cannot be read here would not be by `datasets`


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
