"""Parquet files as the Hugging Face hub stores data sets: texts at once, images one by one.

A cell with an image is a struct `{bytes, path}` or plain bytes. Memory is bounded by a few row
groups' images: those read last are kept, since the images of a row are asked for together.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from hnpretrain.eval.images import ImageSource

_GROUPS_KEPT = 2


@dataclass(frozen=True)
class Row:
    """A row: its texts and numbers, and its images, not yet read.

    Attributes:
        where: what an error calls it.
        fields: by column.
        images: by column.
    """

    where: str
    fields: dict[str, Any]
    images: dict[str, ImageSource]


def read_rows(
    data: Path, what: str, columns: Sequence[str], images: Sequence[str], pattern: str = "*.parquet"
) -> Iterator[Row]:
    """The rows of a parquet file or of a folder of them, in order of name.

    Args:
        what: the benchmark's name, for errors.
        columns: of texts and numbers.
        images: columns of images.
        pattern: of the files' names.

    Raises:
        ValueError: there is no such file, one is damaged or lacks a column, or an image is absent.
    """
    files = sorted(data.rglob(pattern)) if data.is_dir() else [data]
    if not files:
        raise ValueError(f"{what}: no {pattern} in {data}")
    for path in files:
        yield from _read_file(path, what, columns, images)


def _read_file(
    path: Path, what: str, columns: Sequence[str], images: Sequence[str]
) -> Iterator[Row]:
    with _open(path, what) as file:
        absent = [each for each in (*columns, *images) if each not in file.schema_arrow.names]
        if absent:
            raise ValueError(
                f"{what}: {path} lacks the columns {', '.join(absent)} "
                f"(it has {', '.join(file.schema_arrow.names)})"
            )
        cells = _Cells(path, what, tuple(images))
        number = 0
        for group in range(file.num_row_groups):
            for row, fields in enumerate(file.read_row_group(group, list(columns)).to_pylist()):
                where = f"{path} row {number}"
                sources = {
                    column: ImageSource(
                        f"{where} {column}", partial(cells.read, group, row, column, where)
                    )
                    for column in images
                }
                yield Row(where, fields, sources)
                number += 1


@dataclass
class _Cells:
    """The images of a file, a row group at a time."""

    path: Path
    what: str
    columns: tuple[str, ...]
    _kept: OrderedDict[int, list[dict[str, Any]]] = field(default_factory=OrderedDict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def read(self, group: int, row: int, column: str, where: str) -> bytes:
        with self._lock:
            if group not in self._kept:
                with _open(self.path, self.what) as file:
                    self._kept[group] = file.read_row_group(group, list(self.columns)).to_pylist()
                while len(self._kept) > _GROUPS_KEPT:
                    self._kept.popitem(last=False)
            rows = self._kept[group]
        value = rows[row][column] if row < len(rows) else None
        content = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(content, bytes) or not content:
            raise ValueError(
                f"{where} {column}: the image's bytes must be in the file, as bytes or a struct "
                "with 'bytes'"
            )
        return content


@contextmanager
def _open(path: Path, what: str) -> Iterator[pyarrow.parquet.ParquetFile]:
    """A parquet file; what Arrow finds wrong with it, then or later, names it."""
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            yield file
    except FileNotFoundError as error:
        raise ValueError(f"{what}: {path}: no such file or folder") from error
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{what}: {path} is not a readable parquet file: {error}") from error
