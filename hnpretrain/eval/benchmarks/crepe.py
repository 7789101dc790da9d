"""CREPE (Ma et al. 2023, arXiv 2212.07796): a crop of a photo and its caption among hard negatives.

Rows of csv tables hold `image_id` (of Visual Genome), the crop's `x`, `y`, `width` and `height` in
pixels, `caption`, and hard negatives as the text of a Python list. An answer is right if the
caption scores above each of the n negatives: the paper's R@1. Chance is 1 / (1 + n).

Productivity: `KIND/prod_vg_hard_negs_KIND_complexity_N.csv` with column `hard_negs` (5 of them), of
three kinds of negatives (atom, swap, negate) and captions of nine complexities (4 to 12). The
paper's numbers are those of a kind at a complexity, `acc/atom-04` ...; `acc/atom-macro` is the mean
of a kind's nine.

Systematicity: `syst_vg_hard_negs_SPLIT_compounds_in_SET.csv`, a split being seen or unseen: whether
the caption's compounds (such as "pink car") stand in the training set SET (cc12m, yfcc or laion).
Columns `valid_hard_negs_atom`, `_comp` and, in some versions, `_combined`. The paper's numbers are
those of a set, a split and a kind, such as `acc/cc12m-unseen-atom`; they mean something for a model
that was trained on that set and no other, so no mean is told, and `acc` is over the files given.

Rows without negatives of a kind are left out of it; the authors' code counts them as right. Their
crops are padded with black where a box goes beyond the photo; ours end there.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path

from hnpretrain.eval.benchmarks import reading
from hnpretrain.eval.benchmarks.base import About, By, Selection
from hnpretrain.eval.images import Box, ImageSource
from hnpretrain.eval.items import Item, choose_caption

KINDS = ("atom", "swap", "negate")
COMPLEXITIES = range(4, 13)

_SYSTEMATICITY = re.compile(r"syst_vg_hard_negs_(seen|unseen)_compounds_in_(\w+)")
_OF_SYSTEMATICITY = {
    "valid_hard_negs_atom": "atom",
    "valid_hard_negs_comp": "comp",
    "valid_hard_negs_combined": "combined",
}
_PHOTO_FOLDERS = ("VG_100K", "VG_100K_2", ".")

Photos = Callable[[int], Path]
"""The file of a Visual Genome image, by its id."""


def read_productivity(data: Path, images: Path | None) -> Iterator[Item]:
    photos = _photos(reading.require_folder(images, "crepe_productivity"))
    stems = {
        f"{kind}/prod_vg_hard_negs_{kind}_complexity_{complexity}": (kind, complexity)
        for kind in KINDS
        for complexity in COMPLEXITIES
    }
    for stem, path in reading.files(data, stems, "crepe_productivity", ".csv").items():
        kind, complexity = stems[stem]
        level = f"{kind}-{complexity:02}"  # in order when sorted by name
        for number, (where, row) in enumerate(reading.read_csv(path)):
            negatives = _negatives(row, "hard_negs", where)
            if negatives:
                name = f"{level} row {number}"
                yield _item(name, photos, row, negatives, {"kind": kind, kind: level}, where)


def read_systematicity(data: Path, images: Path | None) -> Iterator[Item]:
    photos = _photos(reading.require_folder(images, "crepe_systematicity"))
    for path in sorted(data.glob("syst_*.csv")) if data.is_dir() else [data]:
        named = _SYSTEMATICITY.fullmatch(path.stem)
        if named is None:
            raise ValueError(
                f"crepe_systematicity: {str(path)!r} is not named "
                "syst_vg_hard_negs_{seen,unseen}_compounds_in_SET.csv"
            )
        split = f"{named[2]}-{named[1]}"
        for number, (where, row) in enumerate(reading.read_csv(path)):
            if not any(column in row for column in _OF_SYSTEMATICITY):
                raise ValueError(f"{where}: none of the columns {', '.join(_OF_SYSTEMATICITY)}")
            for column, kind in _OF_SYSTEMATICITY.items():
                negatives = _negatives(row, column, where) if column in row else []
                if negatives:
                    group = f"{split}-{kind}"
                    name = f"{group} row {number}"
                    yield _item(name, photos, row, negatives, {"split": group}, where)


def _photos(folder: Path) -> Photos:
    @cache
    def photo(image_id: int) -> Path:
        candidates = [folder / each / f"{image_id}.jpg" for each in _PHOTO_FOLDERS]
        return next((path for path in candidates if path.is_file()), candidates[0])

    return photo


def _item(
    name: str,
    photos: Photos,
    row: reading.Fields,
    negatives: list[str],
    groups: Mapping[str, str],
    where: str,
) -> Item:
    photo = photos(reading.whole(row, "image_id", where))
    captions = (reading.text(row, "caption", where), *negatives)
    return Item(name, (ImageSource.file(photo, _box(row, where)),), captions, groups)


def _box(row: reading.Fields, where: str) -> Box:
    x, y, width, height = (_pixels(row, column, where) for column in ("x", "y", "width", "height"))
    return x, y, x + width, y + height


def _pixels(row: reading.Fields, column: str, where: str) -> float:
    value = reading.text(row, column, where)
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{where}: {column!r} must be a number, got {value!r}")
    return number


def _negatives(row: reading.Fields, column: str, where: str) -> list[str]:
    """The hard negatives, written as a list in Python's syntax; perhaps none."""
    written = reading.string(row, column, where)
    if not written.strip():
        return []
    try:
        value = ast.literal_eval(written)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        value = None
    if not isinstance(value, list | tuple) or not all(isinstance(each, str) for each in value):
        raise ValueError(f"{where}: {column!r} must be a list of strings, got {written[:60]!r}")
    return list(value)


_SOURCE = "github.com/RAIVNLab/CREPE; images: homes.cs.washington.edu/~ranjay/visualgenome"
_LICENCE = "not stated; images: each photo's own"
_IMAGES = "folder with Visual Genome's VG_100K and VG_100K_2, or with their images"

CREPE_PRODUCTIVITY = Selection(
    About(
        name="crepe_productivity",
        title="CREPE, productivity (Ma et al. 2023)",
        data="prod_hard_negatives: a folder with the folders atom, swap and negate",
        images=_IMAGES,
        source=_SOURCE,
        licence=_LICENCE,
    ),
    read_productivity,
    (choose_caption(),),
    (By("kind"), *(By(kind) for kind in KINDS)),
)

CREPE_SYSTEMATICITY = Selection(
    About(
        name="crepe_systematicity",
        title="CREPE, systematicity (Ma et al. 2023)",
        data="syst_hard_negatives: a folder of syst_vg_hard_negs_*.csv, or one such file",
        images=_IMAGES,
        source=_SOURCE,
        licence=_LICENCE,
    ),
    read_systematicity,
    (choose_caption(),),
    (By("split", macro=False),),
)
