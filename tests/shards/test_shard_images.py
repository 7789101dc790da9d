"""What counts as an image."""

from __future__ import annotations

import io
import subprocess
import sys

import pytest
from PIL import Image

from hnpretrain.shards.images import MAX_ASPECT_RATIO, BadImage, check_image, decode_image
from tests.shards.conftest import png_bomb

MAX_PIXELS = 10**8


def converted(photo: bytes, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.open(io.BytesIO(photo)).save(buffer, form, **options)
    return buffer.getvalue()


def reason(data: bytes, max_pixels: int = MAX_PIXELS) -> str:
    with pytest.raises(BadImage) as caught:
        check_image(data, max_pixels)
    assert caught.value.detail
    return caught.value.reason


@pytest.mark.parametrize("form, extension", [("JPEG", "jpg"), ("PNG", "png"), ("WEBP", "webp")])
def test_the_format_tells_the_extension(photo: bytes, form: str, extension: str) -> None:
    assert check_image(converted(photo, form), MAX_PIXELS) == extension


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("kept", [0.5, 0.9, 0.99])
def test_a_cut_image_is_broken(photo: bytes, form: str, kept: float) -> None:
    data = converted(photo, form)
    assert reason(data[: int(len(data) * kept)]) == "broken_image"


def test_a_cut_progressive_jpeg_is_broken(photo: bytes) -> None:
    data = converted(photo, "JPEG", progressive=True)
    assert check_image(data, MAX_PIXELS) == "jpg"
    assert reason(data[:-300]) == "broken_image"


def test_what_is_no_image(photo: bytes) -> None:
    assert reason(b"") == "empty_image"
    assert reason(b"just some text" * 50) == "not_an_image"
    assert reason(converted(photo, "GIF")) == "unsupported_format"


@pytest.mark.parametrize("side", [60_000, 11_000])  # beyond Pillow's own bound, and within it
@pytest.mark.filterwarnings("error")
def test_a_bomb_is_refused_by_its_header(side: int) -> None:
    assert reason(png_bomb(side, side)) == "too_many_pixels"


def test_an_image_beyond_pillow_s_bound_is_the_caller_s_to_allow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # 89,478,485 take a while
    data = plain(60, 50)
    assert reason(data, 2999) == "too_many_pixels"
    assert decode_image(data, 3000).size == (60, 50)
    assert Image.MAX_IMAGE_PIXELS == 3000
    assert decode_image(plain(6, 5), 1000).size == (6, 5)
    # As much as Pillow's stays in the way of larger ones.
    assert "3000 pixels are allowed" in str(
        pytest.raises(BadImage, check_image, plain(90, 90), 3000).value
    )


def test_what_pillow_warns_of_is_said_once() -> None:
    """Not for each of millions of palette images."""
    shown = subprocess.run(
        [sys.executable, "-c", PALETTES], capture_output=True, text=True, check=True
    ).stderr
    assert shown.count("UserWarning: Palette images with Transparency") == 1
    assert "DecompressionBombWarning" not in shown


PALETTES = """
import io
from PIL import Image
from hnpretrain.shards.images import BadImage, decode_image
from tests.shards.conftest import png_bomb

buffer = io.BytesIO()
image = Image.new("P", (8, 8))
image.putpalette(bytes(768))
image.save(buffer, "PNG", transparency=b"\\x00\\x80")
for _ in range(50):
    decode_image(buffer.getvalue(), 10**6)
try:
    decode_image(png_bomb(11_000, 11_000), 10**6)
except BadImage:
    pass
"""


def test_the_bound_is_the_caller_s(photo: bytes) -> None:
    width, height = Image.open(io.BytesIO(photo)).size
    assert check_image(photo, width * height) == "jpg"
    assert reason(photo, width * height - 1) == "too_many_pixels"


def plain(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("turn", [1, -1])
def test_a_strip_is_refused(turn: int) -> None:
    """Its shorter side brought to 224 pixels, 1 x 8000 would be 224 x 1,792,000."""
    assert reason(plain(*(1, 8000)[::turn])) == "too_elongated"
    assert reason(plain(*(2, 2 * MAX_ASPECT_RATIO + 1)[::turn])) == "too_elongated"
    assert check_image(plain(*(2, 2 * MAX_ASPECT_RATIO)[::turn]), MAX_PIXELS) == "png"


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
def test_decoding_gives_rgb(photo: bytes, form: str) -> None:
    size = Image.open(io.BytesIO(photo)).size
    image = decode_image(converted(photo, form), size[0] * size[1])
    assert (image.mode, image.size) == ("RGB", size)


def test_decoding_is_bounded_and_names_the_reason(photo: bytes) -> None:
    for data, expected in (
        (b"", "empty_image"),
        (b"text", "not_an_image"),
        (photo[:-500], "broken_image"),
        (photo, "too_many_pixels"),
        (png_bomb(60_000, 60_000), "too_many_pixels"),
        (plain(1, 8000), "too_elongated"),
    ):
        with pytest.raises(BadImage) as caught:
            decode_image(data, 224 * 224 if expected == "too_many_pixels" else MAX_PIXELS)
        assert caught.value.reason == expected


def test_nothing_is_started_for_a_picture_in_a_language() -> None:
    """Pillow would hand EPS to Ghostscript."""
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"
    for read in (check_image, decode_image):
        with pytest.raises(BadImage) as caught:
            read(eps, MAX_PIXELS)
        assert caught.value.reason == "not_an_image"
