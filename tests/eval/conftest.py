"""Models whose right answers are known: one that sees colours, one that draws at random."""

import hashlib
import io
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from hnpretrain.eval.encode import Encoder

ASSETS = Path(__file__).parents[1] / "assets"

COLORS = {
    "red": (230, 20, 20),
    "green": (20, 160, 40),
    "blue": (20, 40, 230),
    "yellow": (240, 220, 20),
}


def to_tensor(image: Image.Image) -> Tensor:
    pixels = torch.frombuffer(bytearray(image.resize((4, 4)).tobytes()), dtype=torch.uint8)
    return pixels.view(4, 4, 3).permute(2, 0, 1).float() / 255


class ColorClip(nn.Module):
    """Embeds an image by its mean colour and a caption by the first colour word in it."""

    def __init__(self) -> None:
        super().__init__()
        table = torch.tensor([(1, 1, 1), *COLORS.values()]).float()
        self.words = nn.Parameter(table / 255)
        self.visual = nn.Conv2d(3, 3, 1, bias=False)
        with torch.no_grad():
            self.visual.weight.copy_(torch.eye(3)[:, :, None, None])
        self.images_seen = 0
        self.texts_seen = 0

    def encode_image(self, pixels_BCHW: Tensor) -> Tensor:
        assert not self.training
        assert not torch.is_grad_enabled()
        self.images_seen += len(pixels_BCHW)
        return self.visual(pixels_BCHW).mean((2, 3))

    def encode_text(self, tokens_BL: Tensor) -> Tensor:
        assert not self.training
        assert not torch.is_grad_enabled()
        self.texts_seen += len(tokens_BL)
        return self.words[tokens_BL[:, 0]]


def tokenize_colors(texts: list[str]) -> Tensor:
    names = list(COLORS)
    found = [[names.index(word) + 1 for word in text.split() if word in COLORS] for text in texts]
    return torch.tensor([[numbers[0] if numbers else 0] for numbers in found])


class RandomClip(nn.Module):
    """Draws a feature for each distinct input, always the same one for the same input."""

    def encode_image(self, pixels_BCHW: Tensor) -> Tensor:
        return torch.stack([self._draw(pixels.numpy().tobytes()) for pixels in pixels_BCHW])

    def encode_text(self, tokens_BL: Tensor) -> Tensor:
        return torch.stack([self._draw(tokens.numpy().tobytes()) for tokens in tokens_BL])

    @staticmethod
    def _draw(content: bytes) -> Tensor:
        seed = int.from_bytes(hashlib.sha256(content).digest()[:7], "big")
        return torch.randn(32, generator=torch.Generator().manual_seed(seed))


def tokenize_bytes(texts: list[str]) -> Tensor:
    digests = [hashlib.sha256(text.encode()).digest() for text in texts]
    return torch.tensor([list(digest) for digest in digests])


@pytest.fixture
def color_encoder() -> Encoder:
    return Encoder(ColorClip(), to_tensor, tokenize_colors, batch_size=3, threads=2)


@pytest.fixture
def random_encoder() -> Encoder:
    return Encoder(RandomClip(), to_tensor, tokenize_bytes, batch_size=256, threads=2)


@pytest.fixture
def paint():
    """paint("red") -> PNG bytes of a red picture; paint(number) -> of a colour of its own."""

    def png(color: str | int, size: int = 8) -> bytes:
        rgb = COLORS[color] if isinstance(color, str) else color.to_bytes(3, "big")
        buffer = io.BytesIO()
        Image.new("RGB", (size, size), tuple(rgb)).save(buffer, "PNG")
        return buffer.getvalue()

    return png


@pytest.fixture
def assets() -> Path:
    return ASSETS
