"""Pairs of pictures as a parquet in InpaintCOCO's schema, one row a pair.

The published data set (huggingface.co/datasets/phiyodr/InpaintCOCO) has the columns `concept`,
`coco_caption`, `coco_image`, `inpaint_caption`, `inpaint_image`, `mask`, `worker`, `coco_details`
and `inpaint_details`. The fields of the last two are each writer's own. Images are Hugging Face's
structs {"bytes", "path"}, and the schema carries the features, so `datasets.load_dataset("parquet",
...)` decodes them.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from hnpretrain.shards import storage

# A row group is what readers and the writer hold in memory: it ends with the row that reaches one.
_GROUP_ROWS = 256
_GROUP_BYTES = 64 * 2**20

_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


@dataclass(frozen=True)
class Image:
    """An encoded picture, and the name that it goes by."""

    data: bytes
    name: str


@dataclass(frozen=True)
class PairRow:
    """A pair.

    Attributes:
        concept: what differs: `color`, `size`, `object`, ...
        caption: true of the photo alone.
        image: the photo.
        new_caption: true of the other picture alone.
        new_image: the other picture.
        mask: white where it was made to differ.
        worker: who made or accepted the pair.
        details: of the photo, by the fields that the writer was told.
        new_details: of the other picture, likewise.
    """

    concept: str
    caption: str
    image: Image
    new_caption: str
    new_image: Image
    mask: Image
    worker: str
    details: Mapping[str, Any]
    new_details: Mapping[str, Any]


def write_pairs(
    path: str, rows: Iterable[PairRow], details: pa.StructType, new_details: pa.StructType
) -> int:
    """Writes the file, which appears whole or not at all; the same rows give the same bytes.

    Args:
        path: local, or a URL.
        rows: are asked for one by one; a row group of them is held.
        details: the type of `coco_details`.
        new_details: the type of `inpaint_details`.

    Returns:
        The number of rows.
    """
    columns = {
        "concept": pa.string(),
        "coco_caption": pa.string(),
        "coco_image": _IMAGE,
        "inpaint_caption": pa.string(),
        "inpaint_image": _IMAGE,
        "mask": _IMAGE,
        "worker": pa.string(),
        "coco_details": details,
        "inpaint_details": new_details,
    }
    features = json.dumps({"info": {"features": {n: _feature(t) for n, t in columns.items()}}})
    schema = pa.schema(list(columns.items()), metadata={"huggingface": features})
    groups = _groups(rows)
    first = next(groups, [])  # what is wrong with the first rows is found before anything is made
    count = 0
    with storage.write_whole(path) as file, pq.ParquetWriter(file, schema) as writer:
        for group in itertools.chain([first], groups):
            writer.write_table(pa.Table.from_pylist(list(map(_cells, group)), schema=schema))
            count += len(group)
    return count


def _groups(rows: Iterable[PairRow]) -> Iterator[list[PairRow]]:
    group: list[PairRow] = []
    held = 0
    for row in rows:
        group.append(row)
        held += sum(len(image.data) for image in (row.image, row.new_image, row.mask))
        if len(group) == _GROUP_ROWS or held >= _GROUP_BYTES:
            yield group
            group, held = [], 0
    if group:
        yield group


def _cells(row: PairRow) -> dict[str, Any]:
    return {
        "concept": row.concept,
        "coco_caption": row.caption,
        "coco_image": _struct(row.image),
        "inpaint_caption": row.new_caption,
        "inpaint_image": _struct(row.new_image),
        "mask": _struct(row.mask),
        "worker": row.worker,
        "coco_details": dict(row.details),
        "inpaint_details": dict(row.new_details),
    }


def _struct(image: Image) -> dict[str, Any]:
    return {"bytes": image.data, "path": image.name}


def _feature(kind: pa.DataType) -> dict[str, Any]:
    """What `datasets` calls a type, by which it knows which columns are images."""
    if kind == _IMAGE:
        return {"_type": "Image"}
    if pa.types.is_struct(kind):
        return {field.name: _feature(field.type) for field in kind}
    if pa.types.is_list(kind):
        return {"feature": _feature(kind.value_type), "_type": "Sequence"}
    # Arrow's name of 64 bits is another.
    return {"dtype": "float64" if pa.types.is_float64(kind) else str(kind), "_type": "Value"}
