"""The encoder: one pass over distinct inputs, the model left as it was, bad images named."""

import io
import struct
import zlib
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from hnpretrain.eval import images as images_module
from hnpretrain.eval.encode import Encoder
from hnpretrain.eval.images import ImageSource


def test_distinct_inputs_are_encoded_once_and_laid_out_in_order(color_encoder, paint, tmp_path):
    (tmp_path / "blue.png").write_bytes(paint("blue"))
    blue = ImageSource.file(tmp_path / "blue.png")
    red, green = (ImageSource(color, paint(color)) for color in ("red", "green"))
    again = ImageSource("another row with the same photo", paint("red"))
    order = [red, blue, red, green, again, blue, red]
    got = color_encoder.encode_images(iter(order))
    assert color_encoder.model.images_seen == 3
    assert got.shape == (7, 3)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.norm(dim=-1), torch.ones(7))
    for row, source in zip(got, order, strict=True):
        torch.testing.assert_close(row, color_encoder.encode_images([source])[0])

    texts = ["a red car", "a blue car", "a red car", "a tree", "a red car"]
    seen = color_encoder.model.texts_seen
    got = color_encoder.encode_texts(texts)
    assert color_encoder.model.texts_seen == seen + 3
    assert torch.equal(got[0], got[2])
    assert torch.equal(got[0], got[4])
    assert not torch.equal(got[0], got[1])


class RoundingClip(nn.Module):
    """The last bits of its features depend on the batch's size, as those of real towers do."""

    def encode_text(self, tokens_BL: torch.Tensor) -> torch.Tensor:
        return tokens_BL.float() + torch.tensor([1e-6, 0]) * len(tokens_BL)


def cut(texts: list[str]) -> torch.Tensor:
    """Reads two words."""
    return torch.tensor([[len(word) for word in text.split()[:2]] for text in texts])


def test_captions_of_equal_tokens_tie_to_the_last_bit():
    encoder = Encoder(RoundingClip(), lambda image: image, cut, batch_size=4)
    texts = ["a car", "big cars", "the car", "an owl", "a car that is red"]
    features = encoder.encode_texts(texts)
    assert torch.equal(features[0], features[4])
    assert not torch.equal(features[0], features[2])
    assert encoder.equal_tokens(texts, ["a dog", "big dogs", "big dogs", "a dog", "a dog"]) == [
        *(0, 1, 4)
    ]


@pytest.mark.parametrize("batch_size", [1, 2, 5, 100])
def test_batch_size_changes_nothing(color_encoder, paint, batch_size):
    sources = [ImageSource(str(number), paint(number * 4001)) for number in range(5)]
    want = color_encoder.encode_images(sources)
    color_encoder.batch_size = batch_size
    assert torch.equal(color_encoder.encode_images(sources), want)


def test_each_module_gets_its_own_mode_back(color_encoder, paint):
    model = color_encoder.model
    model.train()
    model.visual.eval()  # a locked tower
    color_encoder.encode_images([ImageSource("red", paint("red"))])
    assert model.training
    assert not model.visual.training
    with pytest.raises(ValueError, match="cannot be read"):
        color_encoder.encode_images([ImageSource("x", b"not an image")])
    assert model.training
    assert not model.visual.training
    assert torch.is_grad_enabled()


def test_pixels_come_in_the_tower_s_precision(color_encoder, paint):
    color_encoder.model.bfloat16()
    got = color_encoder.encode_images([ImageSource("red", paint("red"))])
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.norm(dim=-1), torch.ones(1))


def test_features_that_are_not_finite_are_refused(color_encoder, paint):
    with torch.no_grad():
        color_encoder.model.visual.weight.fill_(float("nan"))
        color_encoder.model.words.fill_(float("inf"))
    with pytest.raises(ValueError, match="features of images hold NaN"):
        color_encoder.encode_images([ImageSource("red", paint("red"))])
    with pytest.raises(ValueError, match="features of captions hold NaN"):
        color_encoder.encode_texts(["a red car"])


def test_nothing_to_encode_is_refused(color_encoder):
    with pytest.raises(ValueError, match="no images"):
        color_encoder.encode_images([])
    with pytest.raises(ValueError, match="no captions"):
        color_encoder.encode_texts([])
    with pytest.raises(ValueError, match="batch_size=0"):
        Encoder(nn.Identity(), lambda image: image, lambda texts: texts, batch_size=0)


def test_images_are_decoded_as_they_are_needed(color_encoder, paint):
    """Pixels of no more than two batches and the threads' own are there at a time."""
    decoded = 0
    ahead = []

    def slowly(image, transform=color_encoder.preprocess):
        nonlocal decoded
        decoded += 1
        ahead.append(decoded - color_encoder.model.images_seen)
        return transform(image)

    color_encoder.preprocess = slowly
    color_encoder.threads = 1
    color_encoder.encode_images(
        ImageSource(str(number), paint(number * 4001)) for number in range(30)
    )
    assert color_encoder.model.images_seen == 30
    assert max(ahead) <= 3 * color_encoder.batch_size


def bomb() -> bytes:
    """A valid PNG header that promises 60,000 x 60,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"0" * 999))


def truncated_jpeg() -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(buffer, "JPEG")
    return buffer.getvalue()[:600]


def strip() -> bytes:
    """110 bytes that the transform would enlarge to 224 x 1,792,000 pixels."""
    buffer = io.BytesIO()
    Image.new("1", (8000, 1)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("content", [b"", b"GIF89a", b"<html>", truncated_jpeg(), bomb(), strip()])
def test_a_bad_image_is_named(color_encoder, paint, content):
    good = [ImageSource(str(number), paint(number)) for number in range(4)]
    with pytest.raises(ValueError, match=r"image rows\.parquet row 7 cannot be read"):
        color_encoder.encode_images([*good, ImageSource("rows.parquet row 7", content), *good])


def test_a_missing_image_is_named(color_encoder):
    with pytest.raises(ValueError, match=r"gone\.jpg: no such file"):
        color_encoder.encode_images([ImageSource.file(Path("gone.jpg"))])


def test_an_image_above_the_limit_is_refused(monkeypatch, paint):
    monkeypatch.setattr(images_module, "MAX_PIXELS", 63)
    with pytest.raises(ValueError, match=r"8 x 8 pixels, more than the 63 allowed"):
        ImageSource("big.png", paint("red", 8)).open()
    assert ImageSource("small.png", paint("red", 7)).open().mode == "RGB"
