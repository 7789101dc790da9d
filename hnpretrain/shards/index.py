"""The index: the data set's list of shards, written last.

It holds the markers' essentials, so that a reader needs one small file to plan an epoch and fetches
a marker (with its offsets) only when it reads that shard.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from hnpretrain.shards import storage
from hnpretrain.shards.marker import (
    CAPTION_COUNTS,
    COUNT_TABLES,
    FORMAT,
    Marker,
    read_format,
    require_count_tables,
    require_counts,
    require_texts,
)

INDEX_NAME = "index.json"


@dataclass(frozen=True)
class ShardEntry:
    """One shard in the index; the fields are those of its marker."""

    name: str
    samples: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Index:
    """A data set: its shards in a fixed order, and total counts (see Marker for the fields).

    Attributes:
        tars: of tars that others wrote (`shard index`), the folder or URL where they lie; `.` is
            the index's own. Empty for what `shard build` made, which lies beside the index.
    """

    shards: tuple[ShardEntry, ...]
    samples: int
    captions: int
    captions_with_negatives: int
    negatives: int
    max_negatives: int
    concepts: dict[str, int]
    strategies: dict[str, int]
    rejects: dict[str, int]
    candidates_rejected: dict[str, int]
    tars: str = ""

    @classmethod
    def of(cls, markers: Iterable[Marker], tars: str = "") -> Index:
        """Sums up markers; shards stand in the order of their names."""
        ordered = sorted(markers, key=lambda marker: marker.name)
        return cls(
            shards=tuple(ShardEntry(m.name, m.samples, m.bytes, m.sha256) for m in ordered),
            samples=sum(m.samples for m in ordered),
            captions=sum(m.captions for m in ordered),
            captions_with_negatives=sum(m.captions_with_negatives for m in ordered),
            negatives=sum(m.negatives for m in ordered),
            max_negatives=max((m.max_negatives for m in ordered), default=0),
            concepts=_total(m.concepts for m in ordered),
            strategies=_total(m.strategies for m in ordered),
            rejects=_total(m.rejects for m in ordered),
            candidates_rejected=_total(m.candidates_rejected for m in ordered),
            tars=tars,
        )

    def folder_of_tars(self, folder: str) -> str:
        """Where the tars lie, if this is the index of a folder."""
        return folder if self.tars in ("", ".") else self.tars

    @property
    def fingerprint(self) -> str:
        """Hash of what the plan and data depend on: names, counts and contents of all shards."""
        essentials = [[shard.name, shard.samples, shard.sha256] for shard in self.shards]
        return hashlib.sha256(json.dumps(essentials).encode()).hexdigest()

    def to_bytes(self) -> bytes:
        value = {"format": FORMAT, **dataclasses.asdict(self)}
        if not self.tars:
            del value["tars"]  # as the format's first indexes
        return (json.dumps(value, indent=1, sort_keys=True) + "\n").encode()

    @classmethod
    def from_bytes(cls, data: bytes, where: str) -> Index:
        """Reads an index; ValueError names `where` and what is wrong."""
        value = read_format(data, where)
        try:
            for shard in value["shards"]:
                require_counts(shard, ("samples", "bytes"))
                require_texts(shard, ("name", "sha256"))
            require_counts(value, ("samples", *CAPTION_COUNTS))
            require_count_tables(value, COUNT_TABLES)
            require_texts({"tars": "", **value}, ("tars",))
            value["shards"] = tuple(ShardEntry(**shard) for shard in value["shards"])
            index = cls(**value)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{where}: not an index of format {FORMAT}: {error}") from error
        if index.samples != sum(shard.samples for shard in index.shards):
            raise ValueError(f"{where}: the shards' samples do not add up to {index.samples}")
        return index


def read_index(folder: str) -> Index:
    """The index of a data set's folder.

    Raises:
        ValueError: there is none (the build is unfinished), or it is broken.
    """
    path = storage.join(folder, INDEX_NAME)
    try:
        data = storage.read_bytes(path)
    except FileNotFoundError as error:
        raise ValueError(
            f"{path} does not exist: finish `hnpretrain shard build`, which writes it last, or "
            "make it with `hnpretrain shard index` for tars that others wrote"
        ) from error
    return Index.from_bytes(data, path)


def write_index(folder: str, index: Index) -> None:
    path = storage.join(folder, INDEX_NAME)
    storage.remove_leftovers(path)
    storage.write_bytes(path, index.to_bytes())


def _total(counts: Iterable[dict[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for count in counts:
        total.update(count)
    return dict(sorted(total.items()))
