"""ColorSwap (Burapacheep et al. 2024, arXiv 2402.04492): two captions with the colours swapped.

Two forms are read, both with `caption_1`, `caption_2`, `image_1`, `image_2`:
- the official `test.json`, a list of such objects, images as paths from its own folder
  (`images/img_0_1.png`), or the folder that holds it;
- parquet files as the Hugging Face hub stores them. Of a folder those named `test*` are taken.

The paper scores the 300 examples of the split `test`; the other 700, `train`, are for training and
are scored only if their file is named. Its main number is `group`, with chance 1/6.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from hnpretrain.eval.benchmarks import reading
from hnpretrain.eval.benchmarks.base import About, Selection
from hnpretrain.eval.images import ImageSource
from hnpretrain.eval.items import WINOGROUND, Item
from hnpretrain.eval.parquet import read_rows

_CAPTIONS = ("caption_1", "caption_2")
_IMAGES = ("image_1", "image_2")
_OFFICIAL = "test.json"


def read(data: Path, images: Path | None) -> Iterator[Item]:
    if data.is_dir() and (data / _OFFICIAL).is_file():
        data = data / _OFFICIAL
    if data.suffix == ".json":
        return _read_official(data, reading.require_folder(images or data.parent, "colorswap"))
    reading.refuse_folder(images, data, "colorswap")
    return _read_parquet(data)


def _read_official(path: Path, images: Path) -> Iterator[Item]:
    for number, (where, value) in enumerate(reading.entries(path)):
        fields = reading.mapping(value, where)
        files = [images / reading.text(fields, key, where) for key in _IMAGES]
        yield _item(number, tuple(map(ImageSource.file, files)), fields, where)


def _read_parquet(data: Path) -> Iterator[Item]:
    rows = read_rows(data, "colorswap", _CAPTIONS, _IMAGES, pattern="test*.parquet")
    for number, row in enumerate(rows):
        sources = tuple(row.images[column] for column in _IMAGES)
        yield _item(number, sources, row.fields, row.where)


def _item(number: int, images: tuple[ImageSource, ...], fields: reading.Fields, where: str) -> Item:
    captions = tuple(reading.text(fields, key, where) for key in _CAPTIONS)
    return Item(f"example {number}", images, captions)


COLORSWAP = Selection(
    About(
        name="colorswap",
        title="ColorSwap (Burapacheep et al. 2024)",
        data="test.json or its folder; or a parquet file of the data set, or a folder of them",
        images="the folder of test.json if not given; none with parquet files",
        source="github.com/Top34051/colorswap",
        licence="MIT",
        hub="stanfordnlp/colorswap",
        files=("data/test-*.parquet",),
    ),
    read,
    WINOGROUND,
)
