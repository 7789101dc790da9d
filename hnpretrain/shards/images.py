"""Images from bytes, bounded and without trust: storing and reading go through the same checks.

Pillow raises many kinds of errors on broken data; here there is one, `BadImage`, with a reason to
count by.
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Callable
from typing import TypeVar

from PIL import Image, UnidentifiedImageError

T = TypeVar("T")

# Longer side to shorter. Transforms bring the shorter side to the model's size, so that a strip of
# a few pixels, far below any bound of width x height, would grow to gigabytes.
MAX_ASPECT_RATIO = 50
# Width x height of what is decoded, unless a setting says otherwise; and the most that it may say,
# since Pillow refuses larger images whatever it is told.
DEFAULT_MAX_PIXELS = 100_000_000
LARGEST_MAX_PIXELS = 178_956_970
# Pillow's name of a format to our extension. MPO is a JPEG with more pictures behind the first.
_EXTENSIONS = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp"}
# What is read at all. Pillow knows more, some of which start other programs (EPS: Ghostscript).
_READ_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
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


# Between its limit and twice that Pillow warns; ours refuses. Once for the process, since
# `catch_warnings` makes Python forget which other warnings were shown, and so show them again for
# each image. Behind all filters that somebody else has set.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning, append=True)


class BadImage(ValueError):
    """The bytes can't be used as an image.

    Attributes:
        reason: one of empty_image, not_an_image, unsupported_format, too_many_pixels,
            too_elongated, broken_image.
        detail: what was found.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type[BadImage], tuple[str, str]]:
        return BadImage, (self.reason, self.detail)  # to cross processes


def check_image(data: bytes, max_pixels: int) -> str:
    """Whether bytes are a whole image of a kind that shards hold; everything is decoded once.

    A photo that breaks in the middle of training costs more than the decoding here. JPEGs are
    decoded at an eighth of their size, which still reads all their data.

    Args:
        data: the file's bytes.
        max_pixels: largest width x height; checked in the header, before anything is decoded.

    Returns:
        The extension of the actual format, whatever the file is called.

    Raises:
        BadImage: says why the bytes can't be used.
    """
    with open_image(data, max_pixels) as image:
        extension = _extension(image)
        image.draft(None, (max(1, image.width // 8), max(1, image.height // 8)))
        _decode(image.load)
        return extension


def check_header(data: bytes, max_pixels: int) -> str:
    """Whether bytes begin as an image of a kind that shards hold; nothing is decoded, so that what
    is cut short or damaged behind its header passes.

    Args, result and errors are those of `check_image`.
    """
    with open_image(data, max_pixels) as image:
        return _extension(image)


def _extension(image: Image.Image) -> str:
    if image.format not in _EXTENSIONS:
        raise BadImage("unsupported_format", f"{image.format}; JPEG, PNG and WebP are stored")
    return _EXTENSIONS[image.format]


def require_max_pixels(max_pixels: int) -> None:
    """Raises ValueError for a setting `max_pixels` that nothing could be held to."""
    if not 1 <= max_pixels <= LARGEST_MAX_PIXELS:
        raise ValueError(f"max_pixels={max_pixels}: between 1 and {LARGEST_MAX_PIXELS}")


def png_of(image: Image.Image, level: int = 6) -> bytes:
    """An image as a PNG; the same bytes with the same version of Pillow.

    Args:
        level: of compression: 0 is none, 9 is slow.
    """
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=level)
    return buffer.getvalue()


def decode_image(data: bytes, max_pixels: int) -> Image.Image:
    """The whole image as RGB.

    Args:
        data: the file's bytes: JPEG, PNG, WebP, BMP, GIF or TIFF.
        max_pixels: largest width x height; checked in the header, before anything is decoded.

    Raises:
        BadImage: says why the bytes can't be used.
    """
    with open_image(data, max_pixels) as image:
        return decode_opened(image)[0]


def decode_opened(image: Image.Image, shrink: int = 1) -> tuple[Image.Image, int]:
    """An opened image as RGB, and how many times smaller it is than it was.

    Args:
        image: of `open_image`.
        shrink: 1, 2, 4 or 8, at most the shorter side. A JPEG is decoded at so many times smaller
            sides, rounded up, by leaving out high frequencies; other kinds stay as large as they
            are.

    Raises:
        BadImage: says why it can't be decoded.
    """
    width, height = image.size
    # Pillow takes the largest factor that leaves at least this size.
    if shrink == 1 or image.draft(None, (width // shrink, height // shrink)) is None:
        shrink = 1
    return _decode(lambda: image if _load(image).mode == "RGB" else image.convert("RGB")), shrink


def _load(image: Image.Image) -> Image.Image:
    image.load()
    return image


def open_image(data: bytes, max_pixels: int) -> Image.Image:
    """Reads the header, and checks the size in it; arguments and errors as `decode_image`."""
    if not data:
        raise BadImage("empty_image", "0 bytes")
    # Pillow's own limit is raised to ours, not set aside: it checks a WebP before it allocates its
    # canvas, and a TIFF's tiles, which may be larger than the image. With up to 89 million pixels
    # it stays as others in this process know it.
    if Image.MAX_IMAGE_PIXELS is not None and max_pixels > Image.MAX_IMAGE_PIXELS:
        Image.MAX_IMAGE_PIXELS = max_pixels
    try:
        image = Image.open(io.BytesIO(data), formats=_READ_FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadImage("too_many_pixels", f"{error}; {max_pixels} pixels are allowed") from error
    except UnidentifiedImageError as error:
        raise BadImage("not_an_image", f"begins with {data[:16]!r}") from error
    except _DECODING_ERRORS as error:
        raise BadImage("broken_image", _say(error)) from error
    size = f"{image.width} x {image.height}"
    if image.width * image.height > max_pixels:
        image.close()
        raise BadImage("too_many_pixels", f"{size} pixels, more than the {max_pixels} allowed")
    if max(image.size) > MAX_ASPECT_RATIO * min(image.size):
        image.close()
        raise BadImage(
            "too_elongated", f"{size} pixels, more than the 1:{MAX_ASPECT_RATIO} allowed"
        )
    return image


def _decode(decode: Callable[[], T]) -> T:
    try:
        return decode()
    except _DECODING_ERRORS as error:
        raise BadImage("broken_image", _say(error)) from error


def _say(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
