"""What a source gives the job: shards of work, each a sequence of samples and rejects.

A source checks all that can be known before work begins (a manifest's form, keys, captions) when it
is planned, and raises. What shows only on reading (a missing photo, a broken tar) becomes a
`Reject`, which the job counts and names in the marker.
"""

from __future__ import annotations

import hashlib
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hnpretrain.config import require_one_of
from hnpretrain.shards import storage
from hnpretrain.shards.marker import Reject
from hnpretrain.shards.tar import MAX_MEMBER_BYTES

KINDS = ("coco", "jsonl", "csv", "tsv", "parquet", "tar")
# One record an image, in fields that can have other names.
_TABLES = ("jsonl", "csv", "tsv", "parquet")

# Rejects with this reason leave out one caption, and keep the sample with its other captions.
BAD_CAPTION = "bad_caption"
# A source tar with this reject lost samples, nobody can know how many.
BROKEN_TAR = "broken_tar"
MISSING_IMAGE = "missing_image"

# Levels of nesting to spare below Python's limit: the writer nests meta deeper, in deeper calls.
_LEVELS_TO_SPARE = 50


@dataclass
class SourceSettings:
    """Where the captions and images come from.

    Attributes:
        kind: `coco` (captions json + image folder), `jsonl` (one JSON object a line), `csv`, `tsv`
            or `parquet` (one row an image) + image folder, or `tar` (WebDataset or img2dataset
            tars).
        path: the manifest, or for `tar` a folder, a glob or a brace pattern of tars; a local path
            or any URL that fsspec knows.
        images: the folder of the manifest's images. Required for `coco`; for the tables it
            defaults to the manifest's own folder; unused for `tar`.
        instances: for `coco`, an instances json, whose category names tell which objects are in a
            photo (so that no negative names one of them). Optional.
        image_field: for the tables, the field or column with the image's path.
        caption_field: for the tables, the one with the caption or captions; empty: `captions` or
            `caption`.
    """

    kind: str = "coco"
    path: str = ""
    images: str = ""
    instances: str = ""
    image_field: str = "image"
    caption_field: str = ""

    def __post_init__(self) -> None:
        require_one_of("source.kind", self.kind, KINDS)
        if self.kind == "tar" and self.images:
            raise ValueError("source.images: tars hold their images themselves; leave it out")
        if self.kind != "coco" and self.instances:
            raise ValueError(
                f"source.instances goes with source.kind=coco, not {self.kind}; "
                "other sources name objects in each sample's own JSON"
            )
        renamed = self.image_field != "image" or self.caption_field != ""
        if renamed and self.kind not in _TABLES:
            raise ValueError(
                f"source.image_field and source.caption_field go with source.kind="
                f"{', '.join(_TABLES)}, not {self.kind}"
            )
        if not self.image_field:
            raise ValueError("source.image_field is empty: name the field with the image's path")


@dataclass(frozen=True)
class SourceSample:
    """One image with its captions, as the source gives it.

    Attributes:
        key: allowed by `hnpretrain.shards.schema.Sample`.
        image: the image file's bytes, unchecked.
        captions: at least one, cleaned by `schema.clean_caption`.
        objects: names of things known to be in the image; may be empty.
        meta: the source's own fields, JSON values.
    """

    key: str
    image: bytes
    captions: tuple[str, ...]
    objects: tuple[str, ...] = ()
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class SampleTexts:
    """The texts of one image, without the image."""

    captions: tuple[str, ...]
    objects: tuple[str, ...] = ()


class SourceShard(ABC):
    """A unit of work: what becomes one output shard. Picklable.

    Attributes:
        name: the output shard's file name.
        origin: where the samples come from, for people.
        samples: how many there are, or None where only reading tells.
        captions: how many there are, or None where only reading tells.
        size: of a tar in bytes, which measures the work where `samples` is None; else None.
    """

    name: str
    origin: str
    samples: int | None
    captions: int | None
    size: int | None

    @abstractmethod
    def fingerprint(self) -> str:
        """Hash of the content that the output depends on."""

    @abstractmethod
    def read(self) -> Iterator[SourceSample | Reject]:
        """The samples in the source's order."""

    @abstractmethod
    def read_texts(self) -> Iterator[SampleTexts]:
        """The captions and objects of each sample; no image is read. Samples without a caption are
        left out, and what is wrong with others is left for `read` to say.
        """


def too_large(key: str, what: str) -> Reject:
    return Reject(key, "too_large", f"{what}: more than {MAX_MEMBER_BYTES} bytes")


def require_file(key: str, path: str) -> None:
    """Raises ValueError, naming the settings key, unless the file is there."""
    if not path:
        raise ValueError(f"{key} is empty: set it to a file or URL")
    if not storage.exists(path):
        raise ValueError(f"{key}={path!r} is not a file")


def require_folder(key: str, folder: str) -> None:
    """Raises ValueError, naming the settings key, unless the folder is there."""
    if not folder:
        raise ValueError(f"{key} is empty: set it to a folder or URL")
    if not storage.is_folder(folder):
        raise ValueError(f"{key}={folder!r} is not a folder")


def check_json(value: object) -> None:
    """Raises ValueError if a value that was read as JSON can't be written as such: it holds NaN or
    infinity, or is nested too deep.
    """
    for _ in range(_LEVELS_TO_SPARE):
        value = [value]
    try:
        json.dumps(value, allow_nan=False)
    except RecursionError as error:
        raise ValueError("nested too deep") from error


def clean_key(value: str) -> str:
    """A key of the allowed letters; one that had to change gets a hash, so that it stays unique."""
    if re.fullmatch(r"[A-Za-z0-9_\-]{1,80}", value):
        return value
    digest = hashlib.sha256(value.encode(errors="surrogatepass")).hexdigest()[:10]
    return f"{re.sub(r'[^A-Za-z0-9_-]', '_', value)[:69]}-{digest}"


def object_names(fields: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the objects in an image, from `objects` (names) or `instances` (with `category`).

    Raises:
        ValueError: a field is there, but of another shape.
    """
    names: list[object] = []
    objects = fields.get("objects", [])
    instances = fields.get("instances", [])
    if not isinstance(objects, list) or not isinstance(instances, list):
        raise ValueError("'objects' and 'instances' must be lists")
    names += objects
    for instance in instances:
        if not isinstance(instance, dict):
            raise ValueError(f"'instances' must hold objects with 'category', got {instance!r:.80}")
        names.append(instance.get("category"))
    texts = [name for name in names if isinstance(name, str) and name]
    if len(texts) != len(names):
        raise ValueError("'objects' and each 'instances[].category' must be non-empty strings")
    return tuple(sorted(set(texts)))


def fingerprint_of(value: Sequence[Any]) -> str:
    """sha256 of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
