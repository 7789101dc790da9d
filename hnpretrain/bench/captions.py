"""Real captions, and negatives that stand in for real ones."""

from __future__ import annotations

import gzip
import json
import random
import zlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from hnpretrain.shards import storage

CaptionRows = list[list[str]]
"""Of each sample a caption, then its negatives."""


@dataclass(frozen=True)
class Captions:
    """The captions of a data set.

    Attributes:
        images: of each image its captions, in lower-case words.
        words: all words of all captions, as often as they occur.
    """

    images: Sequence[Sequence[Sequence[str]]]
    words: Sequence[str]

    def draw(self, batch: int, negatives: int, seed: int) -> CaptionRows:
        """A caption of each of so many images, with its negatives.

        A negative is its caption with one word, at a random place, replaced by one drawn from all
        captions. That is nothing to train on, but shares with the caption about as long a prefix as
        real negatives do. One seed draws the same captions and the same first negatives, whatever
        their number.

        Raises:
            ValueError: there are too few images, or too few words to tell negatives apart.
        """
        if batch > len(self.images):
            raise ValueError(
                f"a batch of {batch} needs the captions of as many images; there are "
                f"{len(self.images)}"
            )
        if negatives >= len(set(self.words)):
            raise ValueError(f"these captions have too few words for {negatives} negatives each")
        rows = []
        for image in random.Random(seed).sample(range(len(self.images)), batch):
            draw = random.Random(f"{seed}/{image}")
            caption = draw.choice(self.images[image])
            row = [" ".join(caption)]
            while len(row) <= negatives:
                place = draw.randrange(len(caption))
                words = [*caption[:place], draw.choice(self.words), *caption[place + 1 :]]
                if (text := " ".join(words)) not in row:
                    row.append(text)
            rows.append(row)
        return rows


def read_captions(path: str) -> Captions:
    """The captions in a COCO captions json.

    Raises:
        ValueError: it is no such file.
    """
    images = [
        [caption.lower().split() for caption in captions]
        for captions in read_coco_captions(path).values()
    ]
    return Captions(images, [word for image in images for words in image for word in words])


def read_coco_captions(path: str) -> dict[int, list[str]]:
    """Of each image, by its id, the captions in a COCO captions json, which may be gzipped.

    Runs of white space become single spaces; captions of nothing else are left out.

    Raises:
        ValueError: it is no such file.
    """
    try:
        data = storage.read_bytes(path)
        fields = json.loads(gzip.decompress(data) if path.endswith(".gz") else data)
        captions: dict[int, list[str]] = defaultdict(list)
        for annotation in fields["annotations"]:
            if caption := " ".join(annotation["caption"].split()):
                captions[int(annotation["image_id"])].append(caption)
        if not captions:
            raise ValueError("it holds no caption")
    except (
        OSError,
        EOFError,
        zlib.error,
        LookupError,
        TypeError,
        AttributeError,
        ValueError,
    ) as error:
        raise ValueError(f"{path!r} is no COCO captions json: {error!r}") from error
    return dict(captions)
