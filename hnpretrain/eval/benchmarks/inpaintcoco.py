"""InpaintCOCO (Roesch et al. 2024, arXiv 2403.02875): a photo and its inpainted twin.

Read from parquet files as the Hugging Face hub stores them, one row an item:
`concept`, `coco_caption`, `coco_image`, `inpaint_caption`, `inpaint_image`; other columns are not
touched. An image is a struct `{bytes, path}` or plain bytes. The concept world writes its test
pairs in the same form (with the further concept `location`).

Captions are read at once; images a few rows at a time, when they are checked and again while they
are encoded, so that memory is bounded by one row group of the file.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pyarrow
import pyarrow.parquet
from torch import Tensor

from hnpretrain.eval.benchmarks import base
from hnpretrain.eval.encode import Encoder
from hnpretrain.eval.images import ImageSource
from hnpretrain.eval.report import Result, Score
from hnpretrain.eval.scorers import (
    WINOGROUND_CHANCE,
    Accuracy,
    cosine,
    winoground_correct,
)

_CAPTIONS = ("coco_caption", "inpaint_caption")
_IMAGES = ("coco_image", "inpaint_image")
_ROWS_AT_A_TIME = 16

_RULES = {
    "text": "both images prefer their caption",
    "image": "both captions prefer their image",
    "group": "text and image",
    "pair": "each image alone prefers its caption",
}


@dataclass(frozen=True)
class InpaintCoco:
    """The rows' concepts and captions; the images stay in the files.

    Attributes:
        data: what was given.
        files: the parquet files, in order of name.
        concepts: N.
        captions: N pairs (of the photo, of the inpainted photo).
    """

    name: ClassVar[str] = "inpaintcoco"

    data: Path
    files: tuple[Path, ...]
    concepts: tuple[str, ...]
    captions: tuple[tuple[str, str], ...]

    @classmethod
    def load(
        cls, data: Path, images: Path | None = None, allow_missing: bool = False
    ) -> InpaintCoco:
        """Reads and checks the schema, the concepts, the captions, and that the images are there.

        Images are not decoded yet.

        Args:
            data: a parquet file, or a folder of them.
            images: must be None, as the files hold their images.
            allow_missing: of no use, for the same reason.
        """
        del allow_missing
        if images is not None:
            raise ValueError(
                f"inpaintcoco: {str(images)!r} is not needed, its parquet files hold their images"
            )
        files = tuple(sorted(data.glob("*.parquet"))) if data.is_dir() else (data,)
        if not files:
            raise ValueError(f"inpaintcoco: no .parquet file in {data}")
        concepts: list[str] = []
        captions: list[tuple[str, str]] = []
        for path in files:
            for number, row in enumerate(_read_texts(path)):
                where = f"{path} row {number}"
                concepts.append(base.text(row, "concept", where))
                captions.append((_caption(row, 0, where), _caption(row, 1, where)))
        if not concepts:
            raise ValueError(f"inpaintcoco: {data} has no rows")
        benchmark = cls(data, files, tuple(concepts), tuple(captions))
        for _ in benchmark._images():
            pass  # it raises where an image is absent
        return benchmark

    def run(self, encoder: Encoder) -> Result:
        """Winoground's scores, and each image alone, by concept and together."""
        image_2ND = encoder.encode_images(self._images())
        text_2ND = encoder.encode_texts(caption for both in self.captions for caption in both)
        if len(image_2ND) != len(text_2ND):
            raise ValueError(f"inpaintcoco: {self.data} has changed since it was read")
        image_N2D = image_2ND.unflatten(0, (-1, 2))
        text_N2D = text_2ND.unflatten(0, (-1, 2))
        s00, s01, s10, s11 = (
            cosine(image_N2D[:, image], text_N2D[:, caption])
            for caption in (0, 1)
            for image in (0, 1)
        )
        correct = winoground_correct(s00, s01, s10, s11)
        scores: list[Score] = []
        for kind, rule in _RULES.items():
            scores += self._averages(kind, getattr(correct, kind), rule)
        return Result(
            self.name, base.SELECTION, str(self.data), tuple(scores), tuple(self._notes(encoder))
        )

    def _averages(self, kind: str, correct: Tensor, rule: str) -> list[Score]:
        """All rows, each concept and the mean of the concepts, for one of the four scores."""
        chance = WINOGROUND_CHANCE[kind]
        # The two images of a row share its captions, so the error is taken over rows.
        clusters = 2 if kind == "pair" else 1
        concepts = base.group_scores(correct, self.concepts, chance, clusters=clusters)
        macro = Accuracy.macro([score.accuracy for score in concepts.values()])
        return [
            Score(kind, Accuracy.of(correct, clusters), chance, f"micro: {rule}"),
            *(
                Score(f"{kind}/{concept}", score.accuracy, chance, f"micro within {concept}")
                for concept, score in concepts.items()
            ),
            Score(f"{kind}/macro", macro, chance, f"mean of the {len(concepts)} concepts"),
        ]

    def _notes(self, encoder: Encoder) -> list[str]:
        notes = []
        ties = encoder.equal_tokens(*zip(*self.captions, strict=True))
        if ties:
            notes.append(f"{_rows(ties)} {base.EQUAL_TOKENS}")
        empty = [row for row, both in enumerate(self.captions) if not all(map(str.strip, both))]
        if empty:
            notes.append(f"{_rows(empty)} with an empty caption: scored as it stands")
        return notes

    def _images(self) -> Iterator[ImageSource]:
        """Both images of every row, the photo first."""
        for path in self.files:
            with _open(path) as file:
                number = 0
                for batch in file.iter_batches(_ROWS_AT_A_TIME, columns=list(_IMAGES)):
                    for row in batch.to_pylist():
                        for column in _IMAGES:
                            name = f"{path} row {number} {column}"
                            yield ImageSource(_image_bytes(row[column], name), name)
                        number += 1


def _read_texts(path: Path) -> list[dict[str, Any]]:
    with _open(path) as file:
        needed = ("concept", *_CAPTIONS, *_IMAGES)
        absent = [column for column in needed if column not in file.schema_arrow.names]
        if absent:
            raise ValueError(
                f"inpaintcoco: {path} lacks the columns {', '.join(absent)} "
                f"(it has {', '.join(file.schema_arrow.names)})"
            )
        return file.read(columns=["concept", *_CAPTIONS]).to_pylist()


@contextmanager
def _open(path: Path) -> Iterator[pyarrow.parquet.ParquetFile]:
    """A parquet file; what Arrow finds wrong with it, then or later, names it."""
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            yield file
    except FileNotFoundError as error:
        raise ValueError(f"inpaintcoco: {path}: no such file or folder") from error
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"inpaintcoco: {path} is not a readable parquet file: {error}") from error


def _caption(row: dict[str, Any], which: int, where: str) -> str:
    caption = row[_CAPTIONS[which]]
    # An empty string is let through: it is a wrong caption, not a broken file.
    if not isinstance(caption, str):
        raise ValueError(f"{where}: {_CAPTIONS[which]!r} must be a string, got {caption!r}")
    return caption


def _image_bytes(value: object, name: str) -> bytes:
    content = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(content, bytes) or not content:
        raise ValueError(
            f"{name}: the image's bytes must be in the file, as bytes or a struct with 'bytes'"
        )
    return content


def _rows(numbers: list[int]) -> str:
    shown = ", ".join(str(number) for number in numbers[:5]) + (", ..." if numbers[5:] else "")
    return f"{len(numbers)} row{'s' if len(numbers) > 1 else ''} ({shown}, from 0)"
