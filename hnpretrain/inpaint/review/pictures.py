"""The pictures of a review, as bytes that a browser takes for what they are, and for nothing else.

All are opened first, and bounded (`hnpretrain.shards.images`); a kind that the shards do not hold
(GIF, BMP, TIFF) goes out as a PNG.
"""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image, ImageChops, ImageFilter

from hnpretrain.inpaint.folder import Folder
from hnpretrain.inpaint.review.shelf import Item
from hnpretrain.shards.images import BadImage, check_image, decode_image, png_of

KINDS = ("photo", "candidate", "outline")

_MEDIA_TYPES = {"jpg": "image/jpeg", "png": "image/png", "webp": "image/webp"}
# A line of the outline is so much of the longer side, and one pixel at least: seen on a screen of
# any size, and in the way of little.
_LINE_SHARE = 1 / 400
# The mask counts as the thing from here on; its edge may be soft.
_INSIDE = 128


@dataclass(frozen=True)
class Picture:
    """An encoded picture and its media type."""

    data: bytes
    media_type: str


def picture(folder: Folder, item: Item, candidate: str, kind: str, max_pixels: int) -> Picture:
    """One picture of an item.

    Args:
        folder: where the files are that the item's records name.
        item: of the proposal.
        candidate: its id, where the kind is `candidate`; of no meaning else.
        kind: `photo`; `candidate`; or `outline`, the mask's edge as two lines on nothing, white
            outside and black inside, which can be seen on any ground.
        max_pixels: largest width x height of a file's image.

    Raises:
        KeyError: there is no such candidate, or kind.
        ValueError: a record names a file outside of the folder, or the file is no usable image.
        OSError: the file cannot be read.
    """
    if kind == "photo":
        return _as_it_is(folder.path(item.proposal.photo).read_bytes(), max_pixels)
    if kind == "outline":
        return _outline(folder.path(item.proposal.mask).read_bytes(), max_pixels)
    found = item.candidate(candidate) if kind == "candidate" else None
    if found is None:
        raise KeyError(f"{item.proposal.id} has no {kind} {candidate}")
    return _as_it_is(folder.path(found.image).read_bytes(), max_pixels)


def _as_it_is(data: bytes, max_pixels: int) -> Picture:
    """The same bytes, once they were decoded, so that a review shows each seam as it is."""
    try:
        return Picture(data, _MEDIA_TYPES[check_image(data, max_pixels)])
    except BadImage as error:
        if error.reason != "unsupported_format":
            raise
    return _png(decode_image(data, max_pixels))


def _outline(data: bytes, max_pixels: int) -> Picture:
    mask = decode_image(data, max_pixels).convert("L").point(lambda v: 255 * (v >= _INSIDE))
    wide = mask
    # What lies beside the picture is not the thing, so that a mask up to its border is closed.
    narrow = Image.new("L", (mask.width + 2, mask.height + 2))
    narrow.paste(mask, (1, 1))
    for _ in range(max(1, round(max(mask.size) * _LINE_SHARE))):
        wide = wide.filter(ImageFilter.MaxFilter(3))
        narrow = narrow.filter(ImageFilter.MinFilter(3))
    narrow = narrow.crop((1, 1, mask.width + 1, mask.height + 1))
    line = ImageChops.subtract(wide, narrow)
    white = ImageChops.subtract(wide, mask)
    return _png(Image.merge("LA", (white, line)))


def _png(image: Image.Image) -> Picture:
    return Picture(png_of(image, level=1), "image/png")  # made for each look: fast, not small
