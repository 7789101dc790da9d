"""BiVLC (Miranda et al. 2024, arXiv 2406.09952): SugarCrepe's pairs with an image for the negative.

Parquet files as the Hugging Face hub stores them, one row an item: `image` (a COCO photo),
`caption`, `negative_caption` (SugarCrepe's), `negative_image` (generated from it), `type` (add,
replace or swap), `subtype` (att, obj or rel); 2,933 rows.

The scores have the names of the paper: `I2T` (both images prefer their caption), `T2I` (both
captions prefer their image) and `group` (both), which are Winoground's text, image and group; and
the four choices of which they are made. As in the paper, each is told over all rows and by type; a
macro average is not in use. The photo's choice between the captions (`Ipos_2T`) is what SugarCrepe
asks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from hnpretrain.eval.benchmarks import reading
from hnpretrain.eval.benchmarks.base import About, By, Selection
from hnpretrain.eval.items import GROUP, IMAGE, TEXT, Item, Rule
from hnpretrain.eval.parquet import read_rows

_CAPTIONS = ("caption", "negative_caption")
_IMAGES = ("image", "negative_image")
_KINDS = ("type", "subtype")

# An image and a caption of the 2 x 2 scores.
_Cell = tuple[int, int]


def read(data: Path, images: Path | None) -> Iterator[Item]:
    del images
    for number, row in enumerate(read_rows(data, "bivlc", (*_CAPTIONS, *_KINDS), _IMAGES)):
        yield Item(
            f"row {number}",
            tuple(row.images[column] for column in _IMAGES),
            tuple(reading.text(row.fields, column, row.where) for column in _CAPTIONS),
            {column: reading.text(row.fields, column, row.where) for column in _KINDS},
        )


def _choice(name: str, meaning: str, right: _Cell, wrong: _Cell) -> Rule:
    """One of the four comparisons of a row."""

    def margins(s_NIC: Tensor) -> Tensor:
        return (s_NIC[:, right[0], right[1]] - s_NIC[:, wrong[0], wrong[1]])[:, None]

    return Rule(name, meaning, TEXT.applies, margins, lambda *_: 1 / 2)


BIVLC = Selection(
    About(
        name="bivlc",
        title="BiVLC (Miranda et al. 2024)",
        data="a parquet file of the data set, or a folder of them",
        images="",
        source="huggingface.co/datasets/imirandam/BiVLC",
        licence="MIT; photos: each one's own",
        hub="imirandam/BiVLC",
        files=("data/*.parquet",),
    ),
    read,
    (
        replace(TEXT, name="I2T"),
        replace(IMAGE, name="T2I"),
        replace(GROUP, meaning="I2T and T2I"),
        _choice("Ipos_2T", "the photo prefers its caption", (0, 0), (0, 1)),
        _choice("Ineg_2T", "the generated image prefers its caption", (1, 1), (1, 0)),
        _choice("Tpos_2I", "the photo's caption prefers the photo", (0, 0), (1, 0)),
        _choice("Tneg_2I", "the negative caption prefers the generated image", (1, 1), (0, 1)),
    ),
    (By("type", macro=False),),
)
