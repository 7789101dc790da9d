"""VALSE (Parcalabescu et al. 2022, arXiv 2112.07566): a caption against its foil.

Eleven files, one an instrument, `existence.json` ... `foil-it.json`, each `{id: {"image_file",
"caption", "foil", "mturk": {"caption", "foil", "other"}, ...}}`. `mturk.caption` counts those of
three annotators who found that the caption, and not the foil, fits the image. A sample with less
than two is not valid, say the authors, and is left out.

The paper's average is `acc/instrument-macro`, the mean of pairwise accuracy (its acc_r) over the
eleven instruments. Of its pieces, counting, actions and coreference have several instruments, and
`acc/counting-macro` and so on are their means; each of the others is its one instrument.

The images are those of Visual7W (`v7w_1.jpg`), COCO 2014 and 2017, SWiG (its images_512) and
VisDial. An image is looked for by its name, in the image folder and then in the folders within it;
the first of its name is taken.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from hnpretrain.eval.benchmarks import reading
from hnpretrain.eval.benchmarks.base import About, By, Selection
from hnpretrain.eval.images import ImageSource
from hnpretrain.eval.items import Item, choose_caption

# The files, and the piece of the paper that each belongs to.
PIECES = {
    "existence": "existence",
    "plurals": "plurality",
    "counting-hard": "counting",
    "counting-small-quant": "counting",
    "counting-adversarial": "counting",
    "relations": "relations",
    "action-replacement": "actions",
    "actant-swap": "actions",
    "coreference-standard": "coreference",
    "coreference-hard": "coreference",
    "foil-it": "noun phrases",
}

_OF_SEVERAL = ("counting", "actions", "coreference")
_VALID_VOTES = 2


def read(data: Path, images: Path | None) -> Iterator[Item]:
    folder = reading.require_folder(images, "valse")
    files = reading.files(data, PIECES, "valse")
    stored = _stored(folder)
    for instrument, path in files.items():
        for key, value in reading.mapping(reading.read_json(path), str(path)).items():
            where = f"{path} item {key!r}"
            fields = reading.mapping(value, where)
            if _is_valid(fields, where):
                yield _item(instrument, key, folder, stored, fields, where)


def _stored(folder: Path) -> dict[str, Path]:
    """Every file in the folder and in those within it, by its name."""
    found: dict[str, Path] = {}
    for parent, folders, names in os.walk(folder, followlinks=True):
        folders.sort()  # os.walk goes on in this order
        for name in names:
            found.setdefault(name, Path(parent, name))
    return found


def _is_valid(fields: reading.Fields, where: str) -> bool:
    votes = reading.mapping(fields.get("mturk"), f"{where}: 'mturk'")
    return reading.number(votes, "caption", f"{where}: 'mturk'") >= _VALID_VOTES


def _item(
    instrument: str,
    key: str,
    folder: Path,
    stored: dict[str, Path],
    fields: reading.Fields,
    where: str,
) -> Item:
    file = reading.text(fields, "image_file", where)
    piece = PIECES[instrument]
    groups = {"instrument": instrument, "piece": piece}
    if piece in _OF_SEVERAL:
        groups[piece] = instrument
    return Item(
        f"{instrument} {key}",
        (ImageSource.file(stored.get(Path(file).name, folder / file)),),
        (reading.text(fields, "caption", where), reading.text(fields, "foil", where)),
        groups,
    )


VALSE = Selection(
    About(
        name="valse",
        title="VALSE (Parcalabescu et al. 2022)",
        data="folder of existence.json ... foil-it.json",
        images="folder with those of Visual7W, COCO, SWiG and VisDial, in any folders within it",
        source="github.com/Heidelberg-NLP/VALSE; images: the data sets' own pages",
        licence="not stated; images: each data set's own",
    ),
    read,
    (choose_caption(),),
    (By("instrument"), *(By(piece, told=False) for piece in _OF_SEVERAL)),
)
