"""Winoground (Thrush et al. 2022, arXiv 2204.03162): two images, two captions of the same words.

Two forms are read:
- `examples.jsonl`, one `{"id", "image_0", "image_1", "caption_0", "caption_1", "tag",
  "secondary_tag", "num_main_preds", "collapsed_tag"}` a line, whose images `ex_0_img_0` are
  `ex_0_img_0.png` in the image folder (the hub's images.zip, unpacked); DATA may be that file, or a
  folder with it or with data/examples.jsonl;
- parquet files with the same columns and the images in them.

The paper's numbers are `text`, `image` and `group`, micro over 400 items; its tables tell them also
by linguistic tag (collapsed_tag: Object, Relation, Both), by the number of main predicates and by
visual tag (secondary_tag: Symbolic, Pragmatics, Series; most items have none). A macro average is
not in use.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from hnpretrain.eval.benchmarks import reading
from hnpretrain.eval.benchmarks.base import About, By, Selection
from hnpretrain.eval.images import ImageSource
from hnpretrain.eval.items import WINOGROUND, Item
from hnpretrain.eval.parquet import read_rows

_CAPTIONS = ("caption_0", "caption_1")
_IMAGES = ("image_0", "image_1")
_TAGS = ("collapsed_tag", "num_main_preds", "secondary_tag")


def read(data: Path, images: Path | None) -> Iterator[Item]:
    lines = _find_lines(data)
    if lines is not None:
        folder = reading.require_folder(images or lines.parent / "images", "winoground")
        return _read_lines(lines, folder)
    reading.refuse_folder(images, data, "winoground")
    return _read_parquet(data)


def _find_lines(data: Path) -> Path | None:
    """The .jsonl that DATA is or holds; None if DATA must be parquet."""
    if data.suffix == ".jsonl":
        return data
    within = (data / "examples.jsonl", data / "data" / "examples.jsonl")
    return next((path for path in within if path.is_file()), None)


def _read_lines(path: Path, folder: Path) -> Iterator[Item]:
    for where, fields in reading.read_jsonl(path):
        names = (reading.text(fields, key, where) for key in _IMAGES)
        # The extension is not in the file.
        files = (name if Path(name).suffix else f"{name}.png" for name in names)
        yield _item(fields, tuple(ImageSource.file(folder / file) for file in files), where)


def _read_parquet(data: Path) -> Iterator[Item]:
    for row in read_rows(data, "winoground", ("id", *_CAPTIONS, *_TAGS), _IMAGES):
        yield _item(row.fields, tuple(row.images[column] for column in _IMAGES), row.where)


def _item(fields: reading.Fields, images: tuple[ImageSource, ...], where: str) -> Item:
    return Item(
        f"id {reading.whole(fields, 'id', where)}",
        images,
        tuple(reading.text(fields, key, where) for key in _CAPTIONS),
        _groups(fields, where),
    )


def _groups(fields: reading.Fields, where: str) -> Mapping[str, str]:
    groups = {
        "tag": reading.text(fields, "collapsed_tag", where),
        "predicates": f"{reading.whole(fields, 'num_main_preds', where)}-pred",
    }
    if fields.get("secondary_tag"):
        groups["visual"] = reading.text(fields, "secondary_tag", where)
    return groups


WINOGROUND_SET = Selection(
    About(
        name="winoground",
        title="Winoground (Thrush et al. 2022)",
        data="examples.jsonl, a folder with it, or the parquet files",
        images="images.zip, unpacked (the folder images beside a .jsonl if not given; none for "
        "parquet)",
        source="huggingface.co/datasets/facebook/winoground (behind consent to its terms)",
        licence="its own terms: non-commercial research; images: Getty Images",
        hub="facebook/winoground",
        files=("*.parquet", "data/*.parquet"),
    ),
    read,
    WINOGROUND,
    (By("tag", macro=False), By("predicates", macro=False), By("visual", macro=False)),
)
