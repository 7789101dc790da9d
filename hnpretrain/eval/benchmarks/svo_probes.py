"""SVO-Probes (Hendricks and Nematzadeh 2021, arXiv 2106.09141): a sentence and two images.

The wrong image differs from the right one in the subject, the verb or the object.

`svo_probes.csv` has a row an item: `sentence`, `pos_image_id` and `neg_image_id`, and `subj_neg`,
`verb_neg` and `obj_neg` (True or False), which tell the part that differs; other columns (the urls
and triplets) are not touched. As in the authors' notebook, a row in which several parts differ is
left out. The photos, from Google Image Search, are to be downloaded by their urls and named
IMAGE_ID.jpg (or with another suffix). Not all of them can be had any more, so that published
numbers are of different parts of the data, and --partial is mostly needed.

The paper judges each image alone, as fitting or not, with models that are trained to tell that. A
contrastive model has no such threshold; what is published of those is which of the two images the
sentence prefers: `acc`, and `acc/subject`, `acc/verb` and `acc/object`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from hnpretrain.eval.benchmarks import reading
from hnpretrain.eval.benchmarks.base import About, By, Selection
from hnpretrain.eval.images import ImageSource
from hnpretrain.eval.items import Item, choose_image

_PARTS = {"subj_neg": "subject", "verb_neg": "verb", "obj_neg": "object"}
_IMAGES = ("pos_image_id", "neg_image_id")

# Downloaders put other files (.json, .txt) of the same name beside an image.
_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")


def read(data: Path, images: Path | None) -> Iterator[Item]:
    folder = reading.require_folder(images, "svo_probes")
    path = data / "svo_probes.csv" if data.is_dir() else data
    stored = {file.stem: file for file in folder.iterdir() if file.suffix.lower() in _SUFFIXES}
    for number, (where, row) in enumerate(reading.read_csv(path)):
        parts = [part for column, part in _PARTS.items() if _is_true(row, column, where)]
        if len(parts) != 1:
            continue
        ids = [str(reading.whole(row, column, where)) for column in _IMAGES]
        yield Item(
            f"row {number}",
            tuple(ImageSource.file(stored.get(each, folder / f"{each}.jpg")) for each in ids),
            (reading.string(row, "sentence", where),),
            {"part": parts[0]},
        )


def _is_true(row: reading.Fields, column: str, where: str) -> bool:
    value = reading.text(row, column, where).strip().lower()
    if value not in ("true", "false"):
        raise ValueError(f"{where}: {column!r} must be True or False, got {value!r}")
    return value == "true"


SVO_PROBES = Selection(
    About(
        name="svo_probes",
        title="SVO-Probes (Hendricks and Nematzadeh 2021)",
        data="svo_probes.csv, or a folder with it",
        images="folder with the photos as IMAGE_ID.jpg, or with another suffix",
        source="storage.googleapis.com/dm-mmt-models/svo_probes.csv; images: its urls",
        licence="CC BY 4.0; photos: each one's own",
    ),
    read,
    (choose_image(),),
    (By("part"),),
)
