"""Manifests whose records are lines of text: jsonl, csv and tsv, and a folder of images.

    jsonl    {"image": "a/1.jpg", "captions": ["a red car", ...], "key": "1", "objects": ["car"]}
    csv      image,caption,key       first line: names; values in double quotes may hold anything
    tsv      image<TAB>caption       first line: names; no quotes: a tab or line end ends a value

`caption` (one string) may stand for `captions`. `key` defaults to the image's name without folder
and extension. `objects` (names) or `instances` (each with a `category`) name what is in the image.
All fields but `key`, `captions` and `caption` go into the sample's `meta` as they are.

Planning reads the file once and keeps only keys (about 120 bytes each) and byte positions; the
worker reads its own range of lines again.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from hnpretrain.shards import storage
from hnpretrain.shards.tar import MAX_MEMBER_BYTES
from shard_tools.sources.base import SourceSettings, SourceShard, fingerprint_of, require_file
from shard_tools.sources.manifest import (
    Fields,
    ImageRecord,
    ManifestShard,
    UniqueKeys,
    image_folder,
    shard_names,
)


@dataclass(frozen=True)
class JsonLines:
    """One JSON object a line; blank lines are passed over."""

    def rows(self, lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
        """One row after the other; ValueError if one is not of the form.

        No line behind a row is taken before the row is given.
        """
        for line in lines:
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
                raise ValueError(f"not JSON: {error}") from error
            if not isinstance(row, dict):
                raise ValueError(
                    f"holds a {type(row).__name__}, not an object like "
                    '{"image": "name.jpg", "captions": ["...", ...]}'
                )
            yield row


@dataclass(frozen=True)
class Delimited:
    """Values between delimiters, named by the manifest's first line."""

    columns: tuple[str, ...]
    delimiter: str
    quoted: bool

    @classmethod
    def of(cls, kind: str, lines: Iterable[bytes]) -> Delimited:
        """The form of a csv or tsv manifest, from its first line; no other is taken."""
        form = cls((), *_DELIMITED[kind])
        columns = tuple(next(form._values(lines), ()))
        if columns and columns[0].startswith("\ufeff"):  # Excel's byte order mark
            columns = (columns[0].removeprefix("\ufeff"), *columns[1:])
        if len(set(columns)) != len(columns):
            raise ValueError(f"two columns have one name: {', '.join(columns)}")
        return dataclasses.replace(form, columns=columns)

    def rows(self, lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
        """As `JsonLines.rows`."""
        for values in self._values(lines):
            if len(values) != len(self.columns):
                raise ValueError(
                    f"{len(values)} values, but the first line names {len(self.columns)} columns "
                    f"({', '.join(self.columns)})"
                )
            yield dict(zip(self.columns, values, strict=True))

    def _values(self, lines: Iterable[bytes]) -> Iterator[list[str]]:
        csv.field_size_limit(MAX_MEMBER_BYTES)  # Python's own limit is 128 KiB
        reader = csv.reader(
            (line.decode() for line in lines),
            delimiter=self.delimiter,
            quoting=csv.QUOTE_MINIMAL if self.quoted else csv.QUOTE_NONE,
            strict=True,
        )
        try:
            yield from (values for values in reader if values)  # a blank line has none
        except csv.Error as error:
            raise ValueError(f"not a table of values: {error}") from error


_DELIMITED = {"csv": (",", True), "tsv": ("\t", False)}


@dataclass(frozen=True)
class LinesShard(ManifestShard):
    """Lines of the manifest, by their bytes [start, end)."""

    path: str
    start: int
    end: int
    sha256: str
    form: JsonLines | Delimited
    fields: Fields

    def fingerprint(self) -> str:
        how = [dataclasses.asdict(self.form), dataclasses.asdict(self.fields)]
        return fingerprint_of([self.images, self.sha256, *how])

    def records(self) -> Iterator[ImageRecord]:
        data = storage.read_range(self.path, self.start, self.end)
        if hashlib.sha256(data).hexdigest() != self.sha256:
            raise ValueError(f"{self.path} changed while the job was running; start it again")
        return map(self.fields.record, self.form.rows(io.BytesIO(data)))


@dataclass(frozen=True)
class _Cut:
    """A shard's part of the manifest."""

    samples: int
    captions: int
    start: int
    end: int
    sha256: str


class _Lines:
    """Lines of a file, numbered, measured and hashed as they are taken."""

    def __init__(self, file: Iterable[bytes]) -> None:
        self._lines = iter(file)
        self.number = 0
        self._start = self._position = 0
        self._digest = hashlib.sha256()

    def __iter__(self) -> Iterator[bytes]:
        for line in self._lines:
            self.number += 1
            self._position += len(line)
            self._digest.update(line)
            yield line

    def cut(self, samples: int, captions: int) -> _Cut:
        """What was taken since the last cut."""
        cut = _Cut(samples, captions, self._start, self._position, self._digest.hexdigest())
        self._start, self._digest = self._position, hashlib.sha256()
        return cut


def plan_lines(settings: SourceSettings, samples_per_shard: int) -> list[SourceShard]:
    """Reads and checks all lines, and cuts them into shards.

    Raises:
        ValueError: a line is of another shape, a caption is empty or no string, two lines have one
            key, or there is no line at all; the message names the line.
    """
    require_file("source.path", settings.path)
    images = image_folder(settings)
    fields = Fields.of(settings)
    keys = UniqueKeys("lines")
    cuts: list[_Cut] = []
    samples = captions = 0
    with storage.open_read(settings.path) as manifest:
        lines = _Lines(manifest)
        try:
            form = _form(settings.kind, iter(lines))
            lines.cut(0, 0)  # the names of the columns belong to no shard
            for row in form.rows(iter(lines)):
                record = fields.record(row)
                keys.add(record.key, lines.number)
                samples += 1
                captions += len(record.captions)
                if samples == samples_per_shard:
                    cuts.append(lines.cut(samples, captions))
                    samples = captions = 0
        except ValueError as error:
            raise ValueError(f"{settings.path}, line {max(lines.number, 1)}: {error}") from error
        if samples:
            cuts.append(lines.cut(samples, captions))
    if not cuts:
        raise ValueError(f"{settings.path}: not one line with an image and its captions")
    file = settings.path.rsplit("/", 1)[-1]
    return [
        LinesShard(
            name=name,
            origin=f"{file}[{cut.start}:{cut.end}]",
            samples=cut.samples,
            captions=cut.captions,
            images=images,
            path=settings.path,
            start=cut.start,
            end=cut.end,
            sha256=cut.sha256,
            form=form,
            fields=fields,
        )
        for name, cut in zip(shard_names(len(cuts)), cuts, strict=True)
    ]


def _form(kind: str, lines: Iterator[bytes]) -> JsonLines | Delimited:
    return JsonLines() if kind == "jsonl" else Delimited.of(kind, lines)
