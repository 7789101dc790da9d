"""InpaintCOCO (Roesch et al. 2024, arXiv 2403.02875): a photo and its inpainted twin.

Parquet files as the Hugging Face hub stores them, one row an item: `concept`, `coco_caption`,
`coco_image`, `inpaint_caption`, `inpaint_image`; other columns are not touched. The concept world
writes its test pairs in the same form (with the further concept `location`).

The scores are Winoground's `text`, `image` and `group`, told by concept too (`group/color`), and
`pair`, of each image alone. One row of the data set has two identical captions: always a tie, so
always wrong.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from hnpretrain.eval.benchmarks import reading
from hnpretrain.eval.benchmarks.base import About, By, Selection
from hnpretrain.eval.items import PAIR, WINOGROUND, Item
from hnpretrain.eval.parquet import read_rows

_CAPTIONS = ("coco_caption", "inpaint_caption")
_IMAGES = ("coco_image", "inpaint_image")


def read(data: Path, images: Path | None) -> Iterator[Item]:
    del images
    for number, row in enumerate(read_rows(data, "inpaintcoco", ("concept", *_CAPTIONS), _IMAGES)):
        yield Item(
            f"row {number}",
            tuple(row.images[column] for column in _IMAGES),
            # An empty one is let through: it is a wrong caption, not a broken file.
            tuple(reading.string(row.fields, column, row.where) for column in _CAPTIONS),
            {"concept": reading.text(row.fields, "concept", row.where)},
        )


INPAINTCOCO = Selection(
    About(
        name="inpaintcoco",
        title="InpaintCOCO (Roesch et al. 2024)",
        data="a parquet file of the data set, or a folder of them",
        images="",
        source="huggingface.co/datasets/phiyodr/InpaintCOCO",
        licence="CC BY-SA 4.0; photos: each one's own",
        hub="phiyodr/InpaintCOCO",
        files=("*.parquet", "data/*.parquet"),
    ),
    read,
    (*WINOGROUND, PAIR),
    (By("concept"),),
)
