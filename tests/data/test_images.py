"""Tensors of images: exact ones are what the transform gives, fast ones are near them."""

import io
import json
import math
import random

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from torchvision.transforms import RandomResizedCrop

from hnpretrain.data.images import ImageReader, Normalization, draws_from
from hnpretrain.data.loader import DataSettings
from hnpretrain.shards.images import BadImage
from tests.support.datasets import PHOTOS

MAX_PIXELS = 10**8
STD = torch.tensor(open_clip.OPENAI_DATASET_STD).view(3, 1, 1)
COLORS = {"color_jitter": (0.4, 0.4, 0.4, 0.1), "color_jitter_prob": 0.8, "gray_scale_prob": 0.3}


def transform_of(size, **augmentation):
    return open_clip.image_transform(size, is_train=True, aug_cfg=augmentation)


@pytest.fixture(scope="module")
def photos():
    lines = (PHOTOS / "data.jsonl").read_text().splitlines()
    return [(PHOTOS / json.loads(line)["image"]).read_bytes() for line in lines]


def as_kind(data, kind, mode="RGB", size=None, **options):
    image = Image.open(io.BytesIO(data)).convert(mode)
    buffer = io.BytesIO()
    (image.resize(size) if size else image).save(buffer, kind, **options)
    return buffer.getvalue()


def by_hand(transform, data, seed):
    image = Image.open(io.BytesIO(data)).convert("RGB")
    with draws_from(seed):
        return transform(image)


def reader_of(transform, mode):
    """Reads images as the model takes them."""
    read = ImageReader(transform, mode, MAX_PIXELS)
    assert isinstance(read.normalization, Normalization)

    def to_image(data, seed):
        pixel_CHW = read(data, seed)
        assert pixel_CHW.dtype == torch.uint8
        (image_CHW,) = read.normalization(pixel_CHW[None])
        return image_CHW

    return to_image


@pytest.mark.parametrize("augmentation", [{}, {"scale": (0.08, 1.0)}, COLORS])
def test_exact_is_the_transform_itself(photos, augmentation):
    for size in (224, 64, (48, 96)):
        transform = transform_of(size, **augmentation)
        read = reader_of(transform, "exact")
        for seed, data in enumerate(photos[:12]):
            assert torch.equal(read(data, seed), by_hand(transform, data, seed))


@pytest.mark.parametrize(
    "kind, mode",
    [("JPEG", "L"), ("JPEG", "CMYK"), ("PNG", "RGBA"), ("PNG", "P"), ("WEBP", "RGB"), ("GIF", "P")],
)
def test_other_kinds(photos, kind, mode):
    data = as_kind(photos[0], kind, mode)
    transform = transform_of(64)
    expected = by_hand(transform, data, 3)
    assert torch.equal(reader_of(transform, "exact")(data, 3), expected)
    fast = reader_of(transform, "fast")(data, 3)
    assert fast.shape == expected.shape
    if kind != "JPEG":  # as large as it is: off by rounding alone
        assert ((fast - expected) * STD * 255).abs().max() < 1.01


def test_exact_takes_any_transform(photos):
    read = ImageReader(lambda image: torch.tensor(image.size) * torch.rand(()), "exact", MAX_PIXELS)
    assert read.normalization is None
    assert torch.equal(read(photos[0], 5), read(photos[0], 5))
    assert not torch.equal(read(photos[0], 5), read(photos[0], 6))


def test_draws_leave_no_trace(photos):
    read = ImageReader(transform_of(64, **COLORS), "fast", MAX_PIXELS)
    torch.manual_seed(1)
    random.seed(1)
    expected = torch.rand(3), random.random()
    torch.manual_seed(1)
    random.seed(1)
    read(photos[0], 7)
    with pytest.raises(BadImage):
        read(b"no image", 7)
    assert torch.equal(torch.rand(3), expected[0])
    assert random.random() == expected[1]


# Of the transformed images, in steps of 8 bits: docs/training.md states these.
@pytest.mark.parametrize(
    "size, augmentation, shrinks, mean, largest, psnr",
    [
        (224, {}, False, 0.01, 10, 54),
        (64, {}, True, 1, 30, 39),
        (48, {"scale": (0.3, 1.0)}, True, 1, 30, 39),
        (24, {}, True, 1, 30, 39),
        (20, {}, True, 1, 30, 39),
    ],
)
def test_fast_is_near_exact(photos, monkeypatch, size, augmentation, shrinks, mean, largest, psnr):
    boxes = []
    draw = RandomResizedCrop.get_params

    def drawn(image, *bounds):
        boxes.append((image.size, draw(image, *bounds)))
        return boxes[-1][1]

    monkeypatch.setattr(RandomResizedCrop, "get_params", staticmethod(drawn))
    transform = transform_of(size, **augmentation)
    exact, fast = (reader_of(transform, mode) for mode in ("exact", "fast"))
    apart = []
    for seed, data in enumerate(photos):
        boxes.clear()
        apart.append((exact(data, seed) - fast(data, seed)) * STD * 255)
        assert boxes[0] == boxes[1]  # drawn in the whole image, whatever was decoded
    apart = torch.stack(apart)
    worst = min(20 * math.log10(255 / image.square().mean().sqrt()) for image in apart)
    print(size, augmentation, apart.abs().mean(), apart.abs().max(), worst)
    assert apart.abs().mean() < mean
    assert apart.abs().max() < largest
    assert worst > psnr
    assert (apart.abs().mean() > 0.1) == shrinks


def test_colors_are_drawn_alike(photos):
    transform = transform_of(64, **COLORS)
    exact, fast = (reader_of(transform, mode) for mode in ("exact", "fast"))
    for seed, data in enumerate(photos[:20]):
        apart = (exact(data, seed) - fast(data, seed)) * STD * 255
        assert apart.abs().mean() < 6  # another jitter would be tens away


@pytest.mark.parametrize(
    "size, decoded",
    [
        ((800, 670), (800, 670)),  # 3 * 224 are 672
        ((901, 800), (451, 400)),
        ((2000, 1800), (500, 450)),
        ((3201, 3000), (401, 375)),
        ((4000, 300), (4000, 300)),
        ((100, 80), (100, 80)),
    ],
)
def test_the_smallest_scale_that_is_large_enough(photos, monkeypatch, size, decoded):
    data = as_kind(photos[0], "JPEG", size=size)
    seen = []
    for name in ("crop", "resize"):
        method = getattr(Image.Image, name)
        monkeypatch.setattr(
            Image.Image,
            name,
            lambda image, *arguments, method=method: (
                seen.append(image.size) or method(image, *arguments)
            ),
        )
    ImageReader(transform_of(224), "fast", MAX_PIXELS)(data, 0)
    assert seen[0] == decoded


def test_nothing_moves():
    """An edge stays where it is to a fraction of a pixel, at each scale."""
    pixels = np.zeros((1601, 1601, 3), np.uint8)
    pixels[:, 803:] = 255
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=95)
    for size in (1600, 700, 350, 170):
        transform = transform_of(size, scale=(0.9, 1.0))
        exact, fast = (reader_of(transform, mode) for mode in ("exact", "fast"))
        for seed in range(4):
            # Where white begins, in pixels: what is white in a row.
            ends = [read(buffer.getvalue(), seed).mean((0, 1)) for read in (exact, fast)]
            white = [(x - x.min()).sum() / (x.max() - x.min()) for x in ends]
            assert abs(white[0] - white[1]) < 0.1


@pytest.mark.parametrize("mode", ["exact", "fast"])
def test_broken_images(photos, mode):
    read = ImageReader(transform_of(32), mode, 10**5)
    with pytest.raises(BadImage, match="broken_image"):
        read(photos[0][: len(photos[0]) // 2], 0)
    with pytest.raises(BadImage, match="too_many_pixels"):
        read(as_kind(photos[0], "JPEG", size=(400, 300)), 0)


def test_settings():
    with pytest.raises(ValueError, match=r"data.decode='quick' is not one of exact, fast"):
        DataSettings(decode="quick")
    val = open_clip.image_transform(224, is_train=False)
    with pytest.raises(ValueError, match=r"data.decode=fast knows.*Resize, CenterCrop"):
        ImageReader(val, "fast", MAX_PIXELS)
    ImageReader(val, "exact", MAX_PIXELS)


def test_whole_batches_are_normalized_as_single_images(photos):
    transform = transform_of(32)
    read = ImageReader(transform, "exact", MAX_PIXELS)
    pixel_BCHW = torch.stack([read(data, 1) for data in photos[:5]])
    expected = torch.stack([by_hand(transform, data, 1) for data in photos[:5]])
    assert torch.equal(read.normalization(pixel_BCHW), expected)
    assert torch.equal(read.normalization(pixel_BCHW[1:4]), expected[1:4])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_normalizes_to_the_same_bits():
    steps = transform_of(32).transforms
    normalization = ImageReader(transform_of(32), "exact", MAX_PIXELS).normalization
    pixel_BCHW = torch.arange(256, dtype=torch.uint8).repeat(2, 3, 1, 1)
    image_BCHW = normalization(pixel_BCHW.cuda())
    assert image_BCHW.is_cuda
    assert torch.equal(image_BCHW.cpu(), steps[-1](pixel_BCHW.float() / 255))
