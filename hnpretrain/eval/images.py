"""Images of a benchmark: opened late, checked, and named when they are bad."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from hnpretrain.shards.images import BadImage, decode_image

# Larger than any benchmark's photo; a small file can unfold to far more (a decompression bomb).
MAX_PIXELS = 50_000_000

Box = tuple[float, float, float, float]
"""Left, top, right and bottom, in pixels of the stored image."""


@dataclass(frozen=True)
class Shape:
    """A part of an image, in pixels of the stored image.

    Attributes:
        kind: box, polygon or mask.
        outline: of a box, left, top, right and bottom, the last pixels being in it; of a polygon,
            x and y of each corner in turn.
        mask: an encoded picture of the image's size, black outside of the part.
    """

    kind: str
    outline: tuple[float, ...] = ()
    mask: bytes = b""

    def draw(self, canvas: Image.Image) -> None:
        """Makes the part white on a grey-scale canvas of the image's size.

        Raises:
            ValueError: the mask cannot be read, or has another size.
        """
        if self.kind == "mask":
            try:
                mask = decode_image(self.mask, MAX_PIXELS)
            except BadImage as error:
                raise ValueError(f"its mask cannot be read: {error.detail}") from error
            if mask.size != canvas.size:
                raise ValueError(f"its mask has {mask.size} pixels, the image {canvas.size}")
            # Not by their brightness, which rounds a dark colour to black.
            canvas.paste(255, mask=Image.fromarray(np.asarray(mask).any(axis=-1)))
        elif self.kind == "box":
            ImageDraw.Draw(canvas).rectangle(self.outline, fill=255)
        else:
            ImageDraw.Draw(canvas).polygon(self.outline, fill=255)


Identity = tuple[str, Box | None, tuple[Shape, ...]]
"""What is one image within a process."""


@dataclass(frozen=True)
class ImageSource:
    """One image, not yet opened.

    Attributes:
        name: what an error calls it: the path, or the file, row and column. Two of one name, one
            crop and the same parts are one image.
        content: its encoded bytes (JPEG, PNG, ...), or what gives them.
        path: the file that it is, if it is one; then its absence is seen before anything is read.
        crop: the part of it that counts; what lies outside of the image is cut off.
        parts: if there are any, what lies outside of all of them is black.
    """

    name: str
    content: bytes | Callable[[], bytes]
    path: Path | None = None
    crop: Box | None = None
    parts: tuple[Shape, ...] = ()

    @classmethod
    def file(cls, path: Path, crop: Box | None = None) -> ImageSource:
        return cls(str(path), path.read_bytes, path, crop)

    @property
    def identity(self) -> Identity:
        return self.name, self.crop, self.parts

    @property
    def is_missing(self) -> bool:
        return self.path is not None and not self.path.is_file()

    def read(self) -> bytes:
        """The encoded bytes.

        Raises:
            ValueError: it is missing or cannot be read; it is named.
        """
        try:
            return self.content if isinstance(self.content, bytes) else self.content()
        except FileNotFoundError as error:
            raise ValueError(f"image {self.name}: no such file") from error
        except OSError as error:
            raise ValueError(f"image {self.name} cannot be read: {error}") from error

    def digest(self, data: bytes) -> bytes:
        """Equal for equal pictures: 16 bytes made of the image's bytes, the crop and the parts."""
        digest = hashlib.blake2b(data, digest_size=16)
        if self.crop is not None:
            digest.update(repr(tuple(map(float, self.crop))).encode())
        for part in self.parts:
            digest.update(f"{part.kind} {part.outline} {len(part.mask)} ".encode() + part.mask)
        return digest.digest()

    def open(self) -> Image.Image:
        """The image, decoded whole, black outside of its parts and cut to the crop, as RGB.

        Raises:
            ValueError: it is missing, no image, truncated, larger than MAX_PIXELS, an extreme
                strip, or the crop or the parts hold none of it.
        """
        try:
            image = decode_image(self.read(), MAX_PIXELS)
        except BadImage as error:
            raise ValueError(f"image {self.name} cannot be read: {error.detail}") from error
        if self.parts:
            image = self._blackened(image)
        if self.crop is None:
            return image
        left, top, right, bottom = self.crop
        box = (
            max(0, round(left)),
            max(0, round(top)),
            min(image.width, round(right)),
            min(image.height, round(bottom)),
        )
        if box[0] >= box[2] or box[1] >= box[3]:
            raise ValueError(
                f"image {self.name}: the crop {self.crop} holds nothing of its {image.width} x "
                f"{image.height} pixels"
            )
        return image.crop(box)

    def _blackened(self, image: Image.Image) -> Image.Image:
        kept = Image.new("L", image.size)
        try:
            for part in self.parts:
                part.draw(kept)
        except ValueError as error:
            raise ValueError(f"image {self.name}: {error}") from error
        if kept.getbbox() is None:
            raise ValueError(
                f"image {self.name}: its parts ({', '.join(part.kind for part in self.parts)}) "
                f"hold nothing of its {image.width} x {image.height} pixels"
            )
        black = Image.new("RGB", image.size)
        black.paste(image, mask=kept)
        return black
