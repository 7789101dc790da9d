"""What the manifests (coco, jsonl, csv, tsv, parquet) share: records of images in a folder.

A manifest is read once to plan: every record is checked, and what is wrong with one is an error.
The job cuts it into shards of `samples_per_shard` records itself.
"""

from __future__ import annotations

import dataclasses
import errno
from abc import abstractmethod
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from hnpretrain.shards import storage
from hnpretrain.shards.marker import Reject
from hnpretrain.shards.schema import clean_caption, is_unicode
from hnpretrain.shards.tar import MAX_MEMBER_BYTES
from shard_tools.sources.base import (
    MISSING_IMAGE,
    SampleTexts,
    SourceSample,
    SourceSettings,
    SourceShard,
    check_json,
    clean_key,
    object_names,
    require_folder,
    too_large,
)

_NO_FILE = "no file "  # before the path, in a missing image's detail
# Photos of a manifest are fetched ahead of their use: on an object store each takes tens of ms.
_READ_AHEAD = 16
# Larger files are read when their turn comes, so that what a worker holds ahead is bounded by
# _READ_AHEAD times this. The wait is short beside the time that reading them takes.
_MAX_BYTES_AHEAD = 8 * 2**20


@dataclass(frozen=True)
class ImageRecord:
    """One sample of a manifest; its image is still a path inside the image folder."""

    key: str
    image: str
    captions: tuple[str, ...]
    objects: tuple[str, ...]
    meta: dict[str, Any]


@dataclass(frozen=True)
class ManifestShard(SourceShard):
    """Some records of a manifest; `images` is the folder of their images."""

    name: str
    origin: str
    samples: int
    captions: int
    images: str
    size: None = dataclasses.field(default=None, init=False)

    @abstractmethod
    def records(self) -> Iterable[ImageRecord]:
        """The records, in the manifest's order.

        Raises:
            ValueError: the manifest changed since it was planned.
        """

    def read(self) -> Iterator[SourceSample | Reject]:
        return read_images(self.images, self.records())

    def read_texts(self) -> Iterator[SampleTexts]:
        for record in self.records():
            if record.captions:
                yield SampleTexts(record.captions, record.objects)


@dataclass(frozen=True)
class Fields:
    """Names of a table's fields: `image` is required, an empty `caption` means `captions` (a list)
    or `caption` (a text).
    """

    image: str
    caption: str

    @classmethod
    def of(cls, settings: SourceSettings) -> Fields:
        return cls(settings.image_field, settings.caption_field)

    def record(self, row: Mapping[str, Any]) -> ImageRecord:
        """A row's values, checked; `key`, `objects` and `instances` have fixed names.

        Raises:
            ValueError: says what is wrong with the row.
        """
        check_json(row)
        if self.image not in row:
            raise ValueError(f"no field {self.image!r} with the image's name")
        image = check_image_name(row[self.image])
        named = ("key", self.caption) if self.caption else ("key", "captions", "caption")
        return ImageRecord(
            _key(row, image),
            image,
            self._captions(row),
            object_names(row),
            {name: value for name, value in row.items() if name not in named},
        )

    def _captions(self, row: Mapping[str, Any]) -> tuple[str, ...]:
        name = self.caption or ("captions" if "captions" in row else "caption")
        if name not in row:
            raise ValueError(f"no field {self.caption or 'captions'!r}")
        values = row[name]
        if name == "captions" and not self.caption and not isinstance(values, list):
            raise ValueError(f"'captions' must be a list of strings, got {values!r:.80}")
        if values == []:
            raise ValueError(f"{name!r} is an empty list")
        if not isinstance(values, list):
            values = [values]
        return tuple(clean_caption(value) for value in values)


def _key(row: Mapping[str, Any], image: str) -> str:
    key = row.get("key", image.rsplit("/", 1)[-1].rpartition(".")[0] or image)
    if isinstance(key, bool) or not isinstance(key, str | int) or key == "":
        raise ValueError(f"'key' must be a string or an integer, got {key!r:.80}")
    return clean_key(str(key))


class UniqueKeys:
    """Refuses a second record with one key.

    Args:
        rows: what the manifest's records are called: lines or rows.
    """

    def __init__(self, rows: str) -> None:
        self._rows = rows
        self._numbers: dict[str, int] = {}

    def add(self, key: str, number: int) -> None:
        """Raises ValueError, naming both records, if the key is not new."""
        before = self._numbers.setdefault(key, number)
        if before != number:
            raise ValueError(
                f"{self._rows} {before} and {number} have one key, {key!r}; put all captions of an "
                f"image into one of the {self._rows}, or give each a 'key' of its own"
            )


def image_folder(settings: SourceSettings) -> str:
    """`source.images`, by default the manifest's own folder; ValueError if it is not there."""
    folder, slash, _ = settings.path.rpartition("/")
    images = settings.images or (folder + slash).rstrip("/") or "."
    require_folder("source.images", images)
    return images


def read_images(folder: str, records: Iterable[ImageRecord]) -> Iterator[SourceSample | Reject]:
    """Reads each record's image from the folder, a few ahead, in order.

    Raises:
        OSError: the storage fails; a single missing or oversized file is a Reject.
    """
    with ThreadPoolExecutor(_READ_AHEAD) as pool:
        pending: deque[tuple[ImageRecord, Future[SourceSample | Reject | None]]] = deque()

        def oldest() -> SourceSample | Reject:
            record, ahead = pending.popleft()
            item = ahead.result() or _read_image(folder, record, MAX_MEMBER_BYTES)
            return item or too_large(record.key, record.image)

        for record in records:
            ahead = pool.submit(_read_image, folder, record, _MAX_BYTES_AHEAD)
            pending.append((record, ahead))
            if len(pending) == _READ_AHEAD:
                yield oldest()
        while pending:
            yield oldest()


def _read_image(folder: str, record: ImageRecord, most: int) -> SourceSample | Reject | None:
    """The sample of a record, or None if its image has more than `most` bytes."""
    if not record.captions:
        return Reject(record.key, "no_caption", f"{record.image} has no caption")
    path = storage.join(folder, record.image)
    try:
        size = storage.size(path)
        if size > most:
            return None
        image = storage.read_range(path, 0, size)
    except OSError as error:
        missing = isinstance(error, (FileNotFoundError, IsADirectoryError, NotADirectoryError))
        if not missing and error.errno != errno.ENAMETOOLONG:
            raise
        return Reject(record.key, MISSING_IMAGE, _NO_FILE + path)
    return SourceSample(record.key, image, record.captions, record.objects, record.meta)


def has_appeared(reject: Reject) -> bool:
    """Whether an image that a manifest's shard missed is there by now."""
    return reject.reason == MISSING_IMAGE and storage.is_file(reject.detail.removeprefix(_NO_FILE))


def check_image_name(name: object) -> str:
    """A manifest's image name; ValueError if it is no path inside the image folder."""
    if not isinstance(name, str) or not name:
        raise ValueError(f"the image must be a file name, got {name!r:.80}")
    if "\0" in name or not is_unicode(name):
        raise ValueError(f"image {name!r:.80} is no file name: a NUL or half a surrogate pair")
    # "::" chains file systems in fsspec.
    if name.startswith("/") or storage.is_url(name) or "::" in name or ".." in name.split("/"):
        raise ValueError(
            f"image {name!r} is not inside the image folder; name it relative to source.images"
        )
    return name


def shard_names(count: int) -> list[str]:
    """`00000.tar`, ... for the shards that the job cuts itself."""
    width = max(5, len(str(count - 1)))
    return [f"{number:0{width}d}.tar" for number in range(count)]
