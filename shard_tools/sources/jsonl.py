"""jsonl: one JSON object a line, and a folder of images.

    {"image": "a/1.jpg", "captions": ["a red car", ...], "key": "1", "objects": ["car"], ...}

`caption` (one string) may stand for `captions`. `key` defaults to the image's name without folder
and extension. `objects` (names) or `instances` (each with a `category`) name what is in the image.
All fields but `key`, `captions` and `caption` go into the sample's `meta` as they are.

Planning reads the file once and keeps only keys and byte positions, so that a manifest of many
millions of lines needs little memory; the worker reads its own range of lines again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from hnpretrain.shards import storage
from hnpretrain.shards.marker import Reject
from shard_tools.sources.base import (
    ImageRecord,
    SourceSample,
    SourceSettings,
    SourceShard,
    check_image_name,
    check_json,
    clean_caption,
    clean_key,
    fingerprint_of,
    object_names,
    read_images,
    require_file,
    require_folder,
    shard_names,
)

_FORM = 'a line is {"image": "name.jpg", "captions": ["...", ...]} or has "caption": "..."'


@dataclass(frozen=True)
class JsonlShard(SourceShard):
    """Lines of the manifest, by their bytes [start, end)."""

    name: str
    origin: str
    samples: int
    path: str
    images: str
    start: int
    end: int
    sha256: str

    def fingerprint(self) -> str:
        return fingerprint_of([self.images, self.sha256])

    def read(self) -> Iterator[SourceSample | Reject]:
        data = storage.read_range(self.path, self.start, self.end)
        if hashlib.sha256(data).hexdigest() != self.sha256:
            raise ValueError(f"{self.path} changed while the job was running; start it again")
        lines = (line for line in data.split(b"\n") if line.strip())
        return read_images(self.images, (_parse(line) for line in lines))


def plan_jsonl(settings: SourceSettings, samples_per_shard: int) -> list[SourceShard]:
    """Reads and checks all lines, and cuts them into shards.

    Raises:
        ValueError: a line is of another shape, a caption is empty or no string, two lines have one
            key, or there is no line at all; the message names the line.
    """
    require_file("source.path", settings.path)
    folder, slash, file = settings.path.rpartition("/")
    images = settings.images or (folder + slash).rstrip("/") or "."
    require_folder("source.images", images)

    lines: dict[str, int] = {}
    cuts: list[tuple[int, int, int, str]] = []  # samples, start, end, sha256
    start, position, samples, digest = 0, 0, 0, hashlib.sha256()
    with storage.open_read(settings.path) as manifest:
        for number, line in enumerate(manifest, start=1):
            position += len(line)
            digest.update(line)
            if not line.strip():
                continue
            try:
                record = _parse(line)
            except ValueError as error:
                raise ValueError(f"{settings.path}, line {number}: {error}") from error
            if record.key in lines:
                raise ValueError(
                    f"{settings.path}: lines {lines[record.key]} and {number} have one key, "
                    f"{record.key!r}; give each line a 'key' of its own"
                )
            lines[record.key] = number
            samples += 1
            if samples == samples_per_shard:
                cuts.append((samples, start, position, digest.hexdigest()))
                start, samples, digest = position, 0, hashlib.sha256()
    if samples:
        cuts.append((samples, start, position, digest.hexdigest()))
    if not cuts:
        raise ValueError(f"{settings.path}: not one line; {_FORM}")
    return [
        JsonlShard(name, f"{file}[{start}:{end}]", samples, settings.path, images, start, end, sha)
        for name, (samples, start, end, sha) in zip(shard_names(len(cuts)), cuts, strict=True)
    ]


def _parse(line: bytes) -> ImageRecord:
    try:
        fields = json.loads(line)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise ValueError(f"holds a {type(fields).__name__}; {_FORM}")
    check_json(fields)
    if "image" not in fields:
        raise ValueError(f"no field 'image'; {_FORM}")
    image = check_image_name(fields["image"])
    return ImageRecord(
        _key(fields, image), image, _captions(fields), object_names(fields), _meta(fields)
    )


def _key(fields: dict[str, Any], image: str) -> str:
    key = fields.get("key", image.rsplit("/", 1)[-1].rpartition(".")[0] or image)
    if isinstance(key, bool) or not isinstance(key, str | int) or key == "":
        raise ValueError(f"'key' must be a string or an integer, got {key!r:.80}")
    return clean_key(str(key))


def _captions(fields: dict[str, Any]) -> tuple[str, ...]:
    if "captions" in fields:
        captions = fields["captions"]
        if not isinstance(captions, list) or not captions:
            raise ValueError(f"'captions' must be a list of strings, got {captions!r:.80}")
    elif "caption" in fields:
        captions = [fields["caption"]]
    else:
        raise ValueError(f"no field 'captions'; {_FORM}")
    return tuple(clean_caption(caption) for caption in captions)


def _meta(fields: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in fields.items() if k not in ("key", "captions", "caption")}
