"""Photos as large as those of web collections: `python -m tests.support.mosaics FOLDER [SAMPLES]`.

The repository's photos are small, and scaling them up would give smooth pictures that are decoded
faster than real ones. So each sample is a mosaic of photos at their own scale: 256 to 640 pixels a
side, JPEG of quality 90. `hnpretrain bench loader FOLDER` was measured on 4,000.
"""

from __future__ import annotations

import io
import random
import sys
from collections.abc import Iterator

from PIL import Image

from hnpretrain.shards.schema import Caption, Sample
from tests.support.datasets import photo_samples, write_dataset

_SIDES = (256, 640)


def mosaics(count: int, seed: int = 0) -> Iterator[Sample]:
    """Samples with a caption each."""
    photos = photo_samples()
    images = [Image.open(io.BytesIO(photo.image)).convert("RGB") for photo in photos]
    for number in range(count):
        draw = random.Random(f"{seed}/{number}")
        size = draw.randint(*_SIDES), draw.randint(*_SIDES)
        buffer = io.BytesIO()
        _mosaic(images, size, draw).save(buffer, "JPEG", quality=90)
        caption = draw.choice(photos[number % len(photos)].captions)
        yield Sample(f"{number:08d}", buffer.getvalue(), "jpg", (Caption(caption.text),))


def _mosaic(images: list[Image.Image], size: tuple[int, int], draw: random.Random) -> Image.Image:
    mosaic = Image.new("RGB", size)
    top = 0
    while top < size[1]:
        left = 0
        row = draw.sample(images, 4)
        for image in row:
            mosaic.paste(image, (left, top))
            left += image.width
        top += min(image.height for image in row)
    return mosaic


if __name__ == "__main__":
    write_dataset(sys.argv[1], mosaics(int((*sys.argv, "4000")[2])), per_shard=250)
