"""SPEC (Peng et al. 2024, arXiv 2312.00081): synthetic images that differ in one respect.

The official folder has six subsets: `absolute_size`, `relative_size`, `absolute_spatial`,
`relative_spatial`, `existence`, `count`. In each lie the images and two lists of questions:
- `image2text.json`, `[{"query": IMAGE, "keys": [TEXT, ...], "label": NUMBER}, ...]`;
- `text2image.json`, `[{"query": TEXT, "keys": [IMAGE, ...], "label": NUMBER}, ...]`.
An image is told by its path from the subset's folder, and `label` is the place of the right key.

The paper's numbers are `i2t` and `t2i` by subset, and `i2t/subset-macro` and `t2i/subset-macro`.
The subsets differ in the number of keys, so that they differ in chance.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hnpretrain.eval.benchmarks import reading
from hnpretrain.eval.benchmarks.base import About, By, Selection
from hnpretrain.eval.images import ImageSource
from hnpretrain.eval.items import Item, choose_caption, choose_image

SUBSETS = (
    "absolute_size",
    "relative_size",
    "absolute_spatial",
    "relative_spatial",
    "existence",
    "count",
)
_FILES = {"i2t": "image2text", "t2i": "text2image"}


def read(data: Path, images: Path | None) -> Iterator[Item]:
    del images
    stems = {
        f"{subset}/{file}": (subset, way) for subset in SUBSETS for way, file in _FILES.items()
    }
    for stem, path in reading.files(data, stems, "spec").items():
        yield from _read_subset(path, *stems[stem])


def _read_subset(path: Path, subset: str, way: str) -> Iterator[Item]:
    for number, (where, value) in enumerate(reading.entries(path)):
        fields = reading.mapping(value, where)
        query = reading.text(fields, "query", where)
        keys = _right_first(fields, where)
        pictures, captions = ([query], keys) if way == "i2t" else (keys, [query])
        yield Item(
            f"{subset} {way} {number}",
            tuple(ImageSource.file(path.parent / each) for each in pictures),
            tuple(captions),
            {"subset": subset},
        )


def _right_first(fields: reading.Fields, where: str) -> list[str]:
    keys = reading.texts(fields, "keys", where)
    label = _label(fields.get("label"), len(keys), where)
    return [keys[label], *keys[:label], *keys[label + 1 :]]


def _label(value: Any, keys: int, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < keys:
        raise ValueError(f"{where}: 'label' must be the place of one of {keys} keys, got {value!r}")
    return value


SPEC = Selection(
    About(
        name="spec",
        title="SPEC (Peng et al. 2024)",
        data=f"folder of {', '.join(SUBSETS)}: data.zip, unpacked",
        images="",
        source="github.com/wjpoom/SPEC; files: huggingface.co/datasets/wjpoom/SPEC",
        licence="not stated",
    ),
    read,
    (
        choose_caption("i2t", "the image prefers its caption"),
        choose_image("t2i", "the caption prefers its image"),
    ),
    (By("subset"),),
)
