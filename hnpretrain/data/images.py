"""From an image's bytes to the tensor that the model's training transform makes of it.

Images stay 8-bit pixels until they are on the model's device, a quarter of the bytes to copy; what
normalizes them there (`Normalization`) gives the transform's own values, bit for bit.

`exact` gives what the transform gives of the whole decoded image, value for value. `fast` draws the
same crop, then

1. decodes a JPEG at a half, a quarter or an eighth of its sides where the crop is still half as
   large again as the tensor: libjpeg leaves high frequencies out that resizing would take away;
2. else resizes with torch's vectorized kernel, which rounds otherwise than Pillow's.

docs/training.md tells how far that is apart.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import interpolate
from torchvision.transforms import (
    Compose,
    InterpolationMode,
    Normalize,
    RandomResizedCrop,
    ToTensor,
)
from torchvision.transforms import functional as F

from hnpretrain.shards.images import decode_opened, open_image

Transform = Callable[[Image.Image], torch.Tensor]

DECODE_MODES = ("exact", "fast")
_SHRINKS = (8, 4, 2)
# What is left to resizing. With less, its filter is no longer what decides: PSNR against the exact
# image falls from at least 39 to 30 dB.
_LEFT_TO_RESIZE = 1.5


class ImageReader:
    """Makes tensors of images.

    Args:
        transform: the model's own image transform (PIL image -> C x H x W).
        mode: of DECODE_MODES.
        max_pixels: larger images are refused before they are decoded.

    Attributes:
        normalization: what is still to be done with the tensors; None if nothing is.

    Raises:
        ValueError: fast, but the transform is not open_clip's.
    """

    def __init__(self, transform: Transform, mode: str, max_pixels: int) -> None:
        self._transform = transform
        self._max_pixels = max_pixels
        self._steps = _Steps.of(transform)
        self.normalization = self._steps.normalization if self._steps else None
        self._fast = mode == "fast"
        if self._fast and self._steps is None:
            steps = transform.transforms if isinstance(transform, Compose) else [transform]
            raise ValueError(
                "data.decode=fast knows transforms that begin with a bicubic RandomResizedCrop and "
                "end with ToTensor and Normalize; this model's is "
                f"{', '.join(type(step).__name__ for step in steps)}: set data.decode=exact"
            )

    def __call__(self, data: bytes, seed: int) -> torch.Tensor:
        """The transformed image, all of whose draws come from the seed.

        Returns:
            Pixels, (C, H, W) uint8, if there is a normalization; else what the transform gives.

        Raises:
            BadImage: the image cannot be decoded, or is too large.
        """
        with open_image(data, self._max_pixels) as image, draws_from(seed):
            if self._steps is None:
                return self._transform(decode_opened(image)[0])
            return self._steps.apply(image, self._fast)


class Normalization:
    """ToTensor and Normalize of whole batches, operation by operation.

    Args:
        mean, std: of Normalize, for each channel.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        # A tensor: CUDA multiplies by the reciprocal of a number, which rounds otherwise.
        constants = torch.tensor(255.0), torch.as_tensor(mean), torch.as_tensor(std)
        self._on = {torch.device("cpu"): tuple(x.view(-1, 1, 1) for x in constants)}

    def __call__(self, pixel_BCHW: torch.Tensor) -> torch.Tensor:
        """float32 images of uint8 pixels, on their device."""
        device = pixel_BCHW.device
        if device not in self._on:
            self._on[device] = tuple(x.to(device) for x in self._on[torch.device("cpu")])
        full, mean_C11, std_C11 = self._on[device]
        image_BCHW = torch.empty_like(pixel_BCHW, dtype=torch.float32)
        # On a CPU one image at a time, which then stays in its cache.
        parts = [(pixel_BCHW, image_BCHW)]
        for pixels, out in (
            zip(pixel_BCHW, image_BCHW, strict=True) if device.type == "cpu" else parts
        ):
            torch.div(pixels, full, out=out).sub_(mean_C11).div_(std_C11)
        return image_BCHW


@dataclass(frozen=True)
class _Steps:
    """open_clip's transform of training in its parts.

    Attributes:
        crop: the first step.
        between: what changes colors.
        normalization: the last two, ToTensor and Normalize.
    """

    crop: RandomResizedCrop
    between: Sequence[Callable[[Image.Image], Image.Image]]
    normalization: Normalization

    @classmethod
    def of(cls, transform: Transform) -> _Steps | None:
        """None if the transform is of another form."""
        if not isinstance(transform, Compose) or len(transform.transforms) < 3:
            return None
        crop, *between, to_tensor, normalize = transform.transforms
        if (
            type(crop) is not RandomResizedCrop
            or crop.interpolation != InterpolationMode.BICUBIC
            or not isinstance(to_tensor, ToTensor)
            or type(normalize) is not Normalize
        ):
            return None
        return cls(crop, between, Normalization(normalize.mean, normalize.std))

    def apply(self, image: Image.Image, fast: bool) -> torch.Tensor:
        """The pixels of an opened image, which is decoded only once its crop is drawn."""
        box = self.crop.get_params(image, self.crop.scale, self.crop.ratio)
        resized = (_fast_crop if fast else _exact_crop)(image, box, tuple(self.crop.size))
        for step in self.between:
            resized = step(resized)
        # Pillow gives all red of a row, then all green: whole rows are copied to where they belong.
        rows = np.frombuffer(resized.tobytes("raw", "RGB;L"), np.uint8)
        pixel_HCW = rows.reshape(resized.height, 3, resized.width)
        return torch.from_numpy(np.ascontiguousarray(pixel_HCW.swapaxes(0, 1)))


Box = tuple[int, int, int, int]
"""Top, left, height and width of a crop in the whole image."""


def _exact_crop(image: Image.Image, box: Box, size: tuple[int, int]) -> Image.Image:
    """The crop at a size (height, width), as RandomResizedCrop makes it."""
    whole, _ = decode_opened(image)
    return F.resized_crop(whole, *box, size, InterpolationMode.BICUBIC)


def _fast_crop(image: Image.Image, box: Box, size: tuple[int, int]) -> Image.Image:
    """The crop at a size (height, width), nearly as RandomResizedCrop makes it."""
    top, left, height, width = box
    fits = min(height / size[0], width / size[1]) / _LEFT_TO_RESIZE
    whole, shrink = decode_opened(image, next((x for x in _SHRINKS if x <= fits), 1))
    if shrink > 1:
        # In fractions of pixels, so that nothing moves.
        edges = left / shrink, top / shrink, (left + width) / shrink, (top + height) / shrink
        return whole.resize((size[1], size[0]), Image.Resampling.BICUBIC, edges)
    pixel_NHWC = _pixels(whole.crop((left, top, left + width, top + height)))
    # Strides as of channels last: else the kernel takes longer, and gives another layout.
    pixel_NCHW = pixel_NHWC.permute(0, 3, 1, 2)
    resized_NCHW = interpolate(pixel_NCHW, size, mode="bicubic", antialias=True)
    data = resized_NCHW.permute(0, 2, 3, 1).numpy()
    kind = "RGBX" if data.shape[-1] == 4 else "RGB"
    return Image.frombuffer("RGB", (size[1], size[0]), data, "raw", kind, 0, 1)


def _pixels(image: Image.Image) -> torch.Tensor:
    """(1, H, W, 4) of an RGB image: Pillow's own memory, where it is in one piece, so that nothing
    is copied; else (1, H, W, 3).
    """
    import pyarrow  # tenths of a second, for `fast` alone

    try:
        pixels = pyarrow.array(image).values
    except ValueError:  # Pillow's, of images that it holds in several pieces
        return torch.from_numpy(np.array(image))[None]
    return torch.from_dlpack(pixels).view(1, image.height, image.width, 4)


@contextlib.contextmanager
def draws_from(seed: int) -> Iterator[None]:
    """Inside, what transforms draw comes from a seed; outside, nothing has happened.

    torchvision draws from torch's generator, open_clip's color jitter from Python's; both are
    restored, so that decoding in the training process (workers=0) leaves training's draws alone.
    """
    python_state, torch_state = random.getstate(), torch.get_rng_state()
    try:
        random.seed(seed)
        # The CPU's generator alone: torch.manual_seed would also queue a call, with its stack, for
        # each CUDA device, in a worker that never uses one.
        torch.default_generator.manual_seed(seed)
        yield
    finally:
        random.setstate(python_state)
        torch.set_rng_state(torch_state)
