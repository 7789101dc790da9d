"""parquet: one row an image, and a folder of images.

The columns are a jsonl's fields (see `lines`): `image`, `captions` (a list) or `caption` (a text),
and perhaps `key`, `objects`, `instances`. Dates and decimals become texts in `meta`; columns of
bytes are left out.

Planning and the workers stream the file in batches of rows, so that the size of its row groups does
not matter.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import decimal
import hashlib
import io
import itertools
import json
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from hnpretrain.shards import storage
from shard_tools.sources.base import SourceSettings, SourceShard, fingerprint_of, require_file
from shard_tools.sources.manifest import (
    Fields,
    ImageRecord,
    ManifestShard,
    UniqueKeys,
    image_folder,
    shard_names,
)

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_BATCH_ROWS = 1024


@dataclass(frozen=True)
class ParquetShard(ManifestShard):
    """Rows [start, start + samples) of the file; `sha256` is that of their content."""

    path: str
    start: int
    sha256: str
    fields: Fields

    def fingerprint(self) -> str:
        return fingerprint_of([self.images, self.sha256, dataclasses.asdict(self.fields)])

    def records(self) -> list[ImageRecord]:
        with contextlib.closing(_rows(self.path, self.start)) as rows:
            taken = list(itertools.islice(rows, self.samples))
        if _digest(taken) != self.sha256:
            raise ValueError(f"{self.path} changed while the job was running; start it again")
        return [self.fields.record(row) for row in taken]


def plan_parquet(settings: SourceSettings, samples_per_shard: int) -> list[SourceShard]:
    """Reads and checks all rows, and cuts them into shards.

    Raises:
        ValueError: it is no parquet file, a row is of another shape, a caption is empty or no
            string, two rows have one key, or there is no row at all; the message names the row,
            counted from 0.
    """
    require_file("source.path", settings.path)
    images = image_folder(settings)
    fields = Fields.of(settings)
    keys = UniqueKeys("rows")
    file = settings.path.rsplit("/", 1)[-1]
    unnamed: list[ParquetShard] = []
    with contextlib.closing(_rows(settings.path)) as rows:
        for start in itertools.count(0, samples_per_shard):
            taken = list(itertools.islice(rows, samples_per_shard))
            if not taken:
                break
            captions = 0
            for number, row in enumerate(taken, start):
                try:
                    record = fields.record(row)
                    keys.add(record.key, number)
                except ValueError as error:
                    raise ValueError(f"{settings.path}, row {number}: {error}") from error
                captions += len(record.captions)
            shard = ParquetShard(
                name="",
                origin=f"{file}[{start}:{start + len(taken)}]",
                samples=len(taken),
                captions=captions,
                images=images,
                path=settings.path,
                start=start,
                sha256=_digest(taken),
                fields=fields,
            )
            unnamed.append(shard)
    if not unnamed:
        raise ValueError(f"{settings.path}: not one row")
    return [
        dataclasses.replace(shard, name=name)
        for name, shard in zip(shard_names(len(unnamed)), unnamed, strict=True)
    ]


def _rows(path: str, start: int = 0) -> Generator[dict[str, Any], None, None]:
    """The rows from `start` on, as JSON values."""
    import pyarrow as pa
    from pyarrow import parquet

    bytes_types = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary)
    try:
        with contextlib.closing(_open(path)) as data, parquet.ParquetFile(data) as file:
            columns = [
                field.name
                for field in file.schema_arrow
                if not any(is_bytes(field.type) for is_bytes in bytes_types)
            ]
            groups, skipped = _groups_from(file.metadata, start)
            batches = file.iter_batches(_BATCH_ROWS, row_groups=groups, columns=columns)
            for batch in batches:
                here = min(skipped, batch.num_rows)  # dropped before they become Python's objects
                skipped -= here
                for row in batch.slice(here).to_pylist():
                    yield json.loads(json.dumps(row, default=_text))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise ValueError(f"{path}: not a parquet file that can be read: {error}") from error


def _open(path: str) -> IO[bytes]:
    return io.BufferedReader(_Seekable(path)) if storage.is_url(path) else Path(path).open("rb")


class _Seekable(io.RawIOBase):
    """A remote file that can be read from any place; each request is repeated if it fails."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._size = storage.size(path)
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = base + offset
        return self._position

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        target = memoryview(buffer).cast("B")
        end = min(self._size, self._position + len(target))
        data = storage.read_range(self._path, self._position, end)
        target[: len(data)] = data
        self._position += len(data)
        return len(data)


def _groups_from(metadata: Any, start: int) -> tuple[list[int], int]:
    """The row groups from the one with row `start` on, and that row's place in the first."""
    group = 0
    while group < metadata.num_row_groups and start >= metadata.row_group(group).num_rows:
        start -= metadata.row_group(group).num_rows
        group += 1
    return list(range(group, metadata.num_row_groups)), start


def _text(value: object) -> str:
    if isinstance(value, datetime.datetime | datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, decimal.Decimal | datetime.timedelta):
        return str(value)
    raise ValueError(f"a {type(value).__name__} in a column, which JSON has no form for")


def _digest(rows: list[dict[str, Any]]) -> str:
    return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()
