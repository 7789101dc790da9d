"""Images of a benchmark: opened late, checked, and named when they are bad."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from hnpretrain.shards.images import BadImage, decode_image

# Larger than any benchmark's photo; a small file can unfold to far more (a decompression bomb).
MAX_PIXELS = 50_000_000


@dataclass(frozen=True)
class ImageSource:
    """One image, not yet opened.

    Attributes:
        content: its file, or its encoded bytes (JPEG, PNG, ...).
        name: what an error calls it: the path, or the file, row and column.
    """

    content: Path | bytes
    name: str

    @classmethod
    def file(cls, path: Path) -> ImageSource:
        return cls(path, str(path))

    @property
    def key(self) -> Path | bytes:
        """Equal for equal images: the path, or a digest of the bytes."""
        if isinstance(self.content, Path):
            return self.content
        return hashlib.blake2b(self.content, digest_size=16).digest()

    def open(self) -> Image.Image:
        """The image, decoded whole, as RGB.

        Raises:
            ValueError: it is missing, no image, truncated, larger than MAX_PIXELS, or an
                extreme strip.
        """
        try:
            content = self.content
            data = content if isinstance(content, bytes) else content.read_bytes()
        except FileNotFoundError as error:
            raise ValueError(f"image {self.name}: no such file") from error
        except OSError as error:
            raise ValueError(f"image {self.name} cannot be read: {error}") from error
        try:
            return decode_image(data, MAX_PIXELS)
        except BadImage as error:
            raise ValueError(f"image {self.name} cannot be read: {error.detail}") from error
