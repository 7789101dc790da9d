"""The marker: the JSON beside a shard that commits it.

A shard is finished if and only if its marker exists and agrees with it. The marker holds what a
reader needs to seek (offsets), what a user needs to trust the data (counts, rejects), and what the
job needs to know whether the work must be done again (fingerprints).
"""

from __future__ import annotations

import builtins
import dataclasses
import itertools
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from hnpretrain.shards import storage

FORMAT = 1

# Fields that marker and index have in common.
CAPTION_COUNTS = ("captions", "captions_with_negatives", "negatives", "max_negatives")
COUNT_TABLES = ("concepts", "strategies", "rejects", "candidates_rejected")


@dataclass(frozen=True)
class Reject:
    """A sample (or one caption of it) that was left out, and why."""

    key: str
    reason: str
    detail: str


@dataclass(frozen=True)
class Marker:
    """What is known of one shard.

    Attributes:
        name: the shard's file name.
        samples: number of samples.
        bytes: size of the tar.
        sha256: hex digest of the tar.
        offsets: samples + 1 byte positions; sample i lies in [offsets[i], offsets[i + 1]). In tars
            that others wrote (`shard index`), rejected samples may follow it there, and may come
            before the first offset.
        crc32: of each sample's bytes (`tar.checksum`), for readers that read ranges.
        captions: number of captions.
        captions_with_negatives: how many of them have at least one negative.
        negatives: number of negatives.
        max_negatives: the most negatives that one caption has.
        concepts: negatives by concept.
        strategies: negatives by strategy.
        rejects: left-out samples and captions by reason.
        rejected: each of them by name.
        candidates_rejected: candidate negatives that a filter refused, by reason.
        configuration: fingerprint of the settings and lexicons that made the shard.
        source: name of the source shard.
        source_fingerprint: hash of the source shard's content.
    """

    name: str
    samples: int
    bytes: int
    sha256: str
    offsets: tuple[int, ...]
    crc32: tuple[int, ...]
    captions: int = 0
    captions_with_negatives: int = 0
    negatives: int = 0
    max_negatives: int = 0
    concepts: dict[str, int] = field(default_factory=dict)
    strategies: dict[str, int] = field(default_factory=dict)
    rejects: dict[str, int] = field(default_factory=dict)
    rejected: tuple[Reject, ...] = ()
    candidates_rejected: dict[str, int] = field(default_factory=dict)
    configuration: str = ""
    source: str = ""
    source_fingerprint: str = ""

    def to_bytes(self) -> builtins.bytes:
        value = {"format": FORMAT, **dataclasses.asdict(self)}
        return (json.dumps(value, indent=1, sort_keys=True) + "\n").encode()

    @classmethod
    def from_bytes(cls, data: builtins.bytes, where: str) -> Marker:
        """Reads a marker; ValueError names `where` and what is wrong."""
        value = read_format(data, where)
        try:
            require_counts(value, ("samples", "bytes", *CAPTION_COUNTS))
            require_count_tables(value, COUNT_TABLES)
            require_texts(
                value, ("name", "sha256", "configuration", "source", "source_fingerprint")
            )
            for reject in value["rejected"]:
                require_texts(reject, ("key", "reason", "detail"))
            for name in ("offsets", "crc32"):
                if not all(_is_count(number) for number in value[name]):
                    raise ValueError(f"its {name} are not all counts")
                value[name] = tuple(value[name])
            value["rejected"] = tuple(Reject(**reject) for reject in value["rejected"])
            marker = cls(**value)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{where}: not a marker of format {FORMAT}: {error}") from error
        if any(end < start for start, end in itertools.pairwise(marker.offsets)):
            raise ValueError(f"{where}: its offsets do not rise")
        if len(marker.offsets) != marker.samples + 1:
            raise ValueError(
                f"{where}: {marker.samples} samples need {marker.samples + 1} offsets, "
                f"found {len(marker.offsets)}"
            )
        if len(marker.crc32) != marker.samples:
            raise ValueError(f"{where}: {marker.samples} samples, but {len(marker.crc32)} crc32")
        return marker

    def without_samples(self) -> Marker:
        """The marker without the lists that make it large, for whoever keeps those of all shards.

        It is no marker to be written.
        """
        return dataclasses.replace(self, offsets=(), crc32=(), rejected=())


def marker_name(shard: str) -> str:
    """`NAME.marker.json` for the shard `NAME.tar`."""
    return shard.removesuffix(".tar") + ".marker.json"


def read_marker(folder: str, shard: str) -> Marker:
    """The marker of a shard in a folder; OSError if missing, ValueError if broken."""
    path = storage.join(folder, marker_name(shard))
    return Marker.from_bytes(storage.read_bytes(path), path)


def require_counts(value: dict[str, Any], names: Iterable[str]) -> None:
    """Raises ValueError unless each of the named fields is a whole number of at least 0."""
    for name in names:
        if not _is_count(value.get(name)):
            raise ValueError(f"{name!r} must be a count, got {value.get(name)!r:.40}")


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 0


def require_count_tables(value: dict[str, Any], names: Iterable[str]) -> None:
    """Raises ValueError unless each of the named fields is an object of counts."""
    for name in names:
        if not isinstance(value.get(name), dict):
            raise ValueError(f"{name!r} must hold counts, got {value.get(name)!r:.40}")
        require_counts(value[name], value[name])


def require_texts(value: dict[str, Any], names: Iterable[str]) -> None:
    """Raises ValueError unless each of the named fields is a string."""
    for name in names:
        if not isinstance(value.get(name), str):
            raise ValueError(f"{name!r} must be a string, got {value.get(name)!r:.40}")


def read_format(data: bytes, where: str) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{where}: not JSON: {error}") from error
    if not isinstance(value, dict) or value.pop("format", None) != FORMAT:
        raise ValueError(f"{where}: not of format {FORMAT}; this version reads no other")
    return value
