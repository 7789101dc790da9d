"""SugarCrepe (Hsieh et al. 2023, arXiv 2306.14610): a caption against its hard negative.

Two forms are read:
- the official seven files `add_att.json` ... `swap_obj.json`, each
  `{"0": {"filename", "caption", "negative_caption"}, ...}`, with the COCO val2017 images;
- a `.jsonl` whose lines hold `image` and `sugarcrepe`, a list of `{"type", "id", "caption",
  "negative_caption"}` (the CC BY photos in tests/assets/coco_ccby).

The paper's numbers are those of the seven categories, `acc/add_att` ... `acc/swap_obj`. Published
averages of them differ by up to two points, since the categories differ in size by a factor of
eight; so all are given: the categories' mean (`acc/category-macro`), micro in each of add, replace
and swap (`acc/add`), and micro over all pairs (`acc`).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from hnpretrain.config import require_one_of
from hnpretrain.eval.benchmarks import reading
from hnpretrain.eval.benchmarks.base import About, By, Selection
from hnpretrain.eval.images import ImageSource
from hnpretrain.eval.items import Item, choose_caption

CATEGORIES = (
    "add_att",
    "add_obj",
    "replace_att",
    "replace_obj",
    "replace_rel",
    "swap_att",
    "swap_obj",
)


def read(data: Path, images: Path | None) -> Iterator[Item]:
    if data.is_dir():
        return _read_official(data, reading.require_folder(images, "sugarcrepe"))
    if data.suffix == ".jsonl":
        return _read_jsonl(data, reading.require_folder(images or data.parent, "sugarcrepe"))
    raise ValueError(
        f"sugarcrepe: {str(data)!r} is neither a folder with {CATEGORIES[0]}.json ... "
        f"{CATEGORIES[-1]}.json nor a .jsonl"
    )


def _read_official(folder: Path, images: Path) -> Iterator[Item]:
    for category, path in reading.files(folder, CATEGORIES, "sugarcrepe").items():
        # Keys are numbers with gaps (swap_obj has no 108), so they are not counted through.
        for key, value in reading.mapping(reading.read_json(path), str(path)).items():
            where = f"{path} item {key!r}"
            fields = reading.mapping(value, where)
            image = images / reading.text(fields, "filename", where)
            yield _item(f"{category} {key}", image, category, fields, where)


def _read_jsonl(path: Path, images: Path) -> Iterator[Item]:
    for line, (where, fields) in enumerate(reading.read_jsonl(path)):
        file = reading.text(fields, "image", where)
        for number, value in enumerate(reading.listing(fields, "sugarcrepe", where)):
            place = f"{where} pair {number}"
            pair = reading.mapping(value, place)
            category = reading.text(pair, "type", place)
            require_one_of(f"{place}: type", category, CATEGORIES)
            yield _item(f"{line} {file} {number}", images / file, category, pair, place)


def _item(name: str, image: Path, category: str, fields: reading.Fields, where: str) -> Item:
    return Item(
        name,
        (ImageSource.file(image),),
        (
            reading.text(fields, "caption", where),
            reading.text(fields, "negative_caption", where),
        ),
        {"category": category, "edit": category.partition("_")[0]},
    )


SUGARCREPE = Selection(
    About(
        name="sugarcrepe",
        title="SugarCrepe (Hsieh et al. 2023)",
        data="folder of add_att.json ... swap_obj.json, or a .jsonl of images with their pairs",
        images="COCO val2017 (a .jsonl's own folder if not given)",
        source="github.com/RAIVNLab/sugar-crepe; images: cocodataset.org",
        licence="MIT; images: each photo's own",
    ),
    read,
    (choose_caption(),),
    (By("category"), By("edit", macro=False)),
)
