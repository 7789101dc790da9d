"""MMVP-VLM (Tong et al. 2024, arXiv 2401.06209): pairs of images that CLIP takes for alike.

A folder as on the Hugging Face hub: `Questions.csv` with the columns `Question ID`, `Type` (the
visual pattern) and `Statement`, and the images `MLLM_VLM Images/TYPE/ID.jpg`. Statements 1 and 2
are a pair, 3 and 4 the next, ...: 9 patterns of 15 pairs.

The official code (scripts/evaluate_vlm.py) puts "a photo of " before each statement and lets it
choose between the two images; a pair counts if both choices are right. That is `image`: the paper's
numbers are `image/TYPE`, and their mean over the patterns is `image/pattern-macro` (equal to
`image`, since the patterns are of one size). `text` and `group` are Winoground's, of the same
pairs; some follow-up papers tell `group`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hnpretrain.eval.benchmarks import reading
from hnpretrain.eval.benchmarks.base import About, By, Selection
from hnpretrain.eval.images import ImageSource
from hnpretrain.eval.items import GROUP, IMAGE, TEXT, Item

_PROMPT = "a photo of "
_ID, _TYPE, _STATEMENT = "Question ID", "Type", "Statement"


@dataclass(frozen=True)
class _Statement:
    """A row of the table.

    Attributes:
        where: what an error calls it.
        image: of which it is true.
    """

    where: str
    pattern: str
    caption: str
    image: ImageSource


def read(data: Path, images: Path | None) -> Iterator[Item]:
    folder = reading.require_folder(images or data / "MLLM_VLM Images", "mmvp_vlm")
    path = data / "Questions.csv"
    statements = _read_statements(path, folder)
    for first in sorted({number - (number - 1) % 2 for number in statements}):
        absent = [number for number in (first, first + 1) if number not in statements]
        if absent:
            raise ValueError(
                f"{path}: {_ID} {absent[0]} is not there; {first} and {first + 1} are a pair"
            )
        yield _item(first, statements[first], statements[first + 1])


def _read_statements(path: Path, folder: Path) -> dict[int, _Statement]:
    """By number."""
    statements: dict[int, _Statement] = {}
    for where, fields in reading.read_csv(path):
        number = reading.whole(fields, _ID, where, least=1)
        if number in statements:
            raise ValueError(f"{where}: {_ID!r} {number} is there twice")
        pattern = reading.text(fields, _TYPE, where)
        statements[number] = _Statement(
            where,
            pattern,
            _PROMPT + reading.text(fields, _STATEMENT, where),
            ImageSource.file(folder / pattern / f"{number}.jpg"),
        )
    return statements


def _item(number: int, first: _Statement, second: _Statement) -> Item:
    if first.pattern != second.pattern:
        raise ValueError(
            f"{second.where}: {_TYPE!r} must be that of {_ID} {number}, {first.pattern!r}, got "
            f"{second.pattern!r}"
        )
    return Item(
        f"pair {number}-{number + 1}",
        (first.image, second.image),
        (first.caption, second.caption),
        {"pattern": first.pattern},
    )


MMVP_VLM = Selection(
    About(
        name="mmvp_vlm",
        title="MMVP-VLM (Tong et al. 2024)",
        data="folder with Questions.csv",
        images="the folder of a folder for each pattern ('MLLM_VLM Images' in DATA if not given)",
        source="huggingface.co/datasets/MMVP/MMVP_VLM",
        licence="MIT",
        hub="MMVP/MMVP_VLM",
        files=("Questions.csv", "MLLM_VLM Images/*"),
    ),
    read,
    (IMAGE, TEXT, GROUP),
    (By("pattern"),),
)
