"""Whether bytes are a whole image of a kind that we store, without trusting its name.

Everything is decoded once: a photo that breaks in the middle of training costs more than the
decoding here. JPEGs are decoded at an eighth of their size, which still reads all their data.
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib

from PIL import Image, UnidentifiedImageError

# Pillow's name of a format to our extension. MPO is a JPEG with more pictures behind the first.
_EXTENSIONS = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp"}
# What Pillow's decoders raise on broken data; they have no common base.
_DECODING_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    struct.error,
    zlib.error,
)


class BadImage(ValueError):
    """The bytes can't be stored as an image.

    Attributes:
        reason: one of empty_image, not_an_image, unsupported_format, too_many_pixels, broken_image.
        detail: what was found.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


def check_image(data: bytes, max_pixels: int) -> str:
    """Decodes an image, and returns the extension of its actual format.

    Args:
        data: the file's bytes.
        max_pixels: largest width x height; checked in the header, before anything is decoded.

    Raises:
        BadImage: says why the bytes can't be used.
    """
    if not data:
        raise BadImage("empty_image", "0 bytes")
    with warnings.catch_warnings():
        # Pillow's own limit warns; ours refuses.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            image = Image.open(io.BytesIO(data), formats=("JPEG", "PNG", "WEBP"))
        except Image.DecompressionBombError as error:
            raise BadImage("too_many_pixels", f"{error}; max_pixels is {max_pixels}") from error
        except UnidentifiedImageError as error:
            raise _unknown(data) from error
        except _DECODING_ERRORS as error:
            raise BadImage("broken_image", _say(error)) from error
    with image:
        width, height = image.size
        if width * height > max_pixels:
            raise BadImage("too_many_pixels", f"{width} x {height}; max_pixels is {max_pixels}")
        try:
            image.draft(None, (max(1, width // 8), max(1, height // 8)))
            image.load()
        except _DECODING_ERRORS as error:
            raise BadImage("broken_image", _say(error)) from error
        assert image.format is not None
        return _EXTENSIONS[image.format]


def _unknown(data: bytes) -> BadImage:
    """Tells an image of another format from what is no image."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            return BadImage("unsupported_format", f"{image.format}; JPEG, PNG and WebP are stored")
    except (*_DECODING_ERRORS, Image.DecompressionBombError):
        return BadImage("not_an_image", f"begins with {data[:16]!r}")


def _say(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
