"""Tars that others wrote: WebDataset collections and img2dataset's output. One tar, one shard.

A sample's captions are, in this order: `captions` of its .json (strings, or objects with `text`, as
in our own format), its .txt, `caption` of its .json. The other fields of the .json become `meta`;
members other than image, .txt and .json are left out.

What is wrong inside a tar shows only on reading, so it never stops the job: it is counted.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import braceexpand

from hnpretrain.shards import storage
from hnpretrain.shards.marker import Reject
from hnpretrain.shards.tar import RawSample, iterate_samples
from shard_tools.sources.base import (
    BAD_CAPTION,
    BROKEN_TAR,
    MISSING_IMAGE,
    SourceSample,
    SourceSettings,
    SourceShard,
    check_json,
    clean_caption,
    clean_key,
    fingerprint_of,
    object_names,
    too_large,
)

# What the storages call the mark that changes with a file's content, the strongest first.
_CONTENT_MARKS = ("ETag", "etag", "md5Hash", "content_md5", "checksum", "LastModified", "mtime")


@dataclass(frozen=True)
class TarShard(SourceShard):
    """One tar; `mark` is its fingerprint where the storage tells one, else empty."""

    name: str
    origin: str
    path: str
    mark: str

    @property
    def samples(self) -> None:  # type: ignore[override]
        return None

    def fingerprint(self) -> str:
        if self.mark:
            return self.mark
        with Path(self.path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def read(self) -> Iterator[SourceSample | Reject]:
        try:
            with storage.open_read(self.path) as file:
                for raw in iterate_samples(file, whole=True):
                    yield from _convert(raw)
        except ValueError as error:
            # How many samples the lost part held can't be known: the tar is named once.
            yield Reject(self.origin, BROKEN_TAR, str(error))


def plan_tars(settings: SourceSettings) -> list[SourceShard]:
    """Lists the tars; `source.path` is a folder, a glob, a brace pattern or one tar.

    Raises:
        ValueError: there is none, one that the pattern names is missing, or two have one name.
    """
    shards: dict[str, TarShard] = {}
    for path, info in sorted(_list_tars(settings.path).items()):
        name = path.rsplit("/", 1)[-1]
        if not name.endswith(".tar"):
            raise ValueError(f"source.path: {path!r} is not a .tar (compressed tars can't be used)")
        if name in shards:
            raise ValueError(
                f"source.path: {shards[name].path!r} and {path!r} would both become {name}; "
                "build them into two folders"
            )
        shards[name] = TarShard(name, name, path, _mark(info) if storage.is_url(path) else "")
    return list(shards.values())


def _list_tars(pattern: str) -> dict[str, dict[str, Any]]:
    """Path to fsspec's info of each tar."""
    if not pattern:
        raise ValueError("source.path is empty: set it to a folder, glob or brace pattern of tars")
    found: dict[str, dict[str, Any]] = {}
    plain = []
    for path in braceexpand.braceexpand(pattern):
        if any(letter in path for letter in "*?["):
            found.update(_glob(path))
        elif not path.endswith(".tar") and storage.is_folder(path):
            found.update(_glob(storage.join(path, "*.tar")))
        else:
            plain.append(path)
    with ThreadPoolExecutor(16) as pool:  # one request each, tens of ms on an object store
        found.update(zip(plain, pool.map(_info, plain), strict=True))
    if not found:
        raise ValueError(f"source.path={pattern!r}: no .tar found")
    return found


def _glob(pattern: str) -> dict[str, dict[str, Any]]:
    with storage.connected(pattern) as (fs, inner):
        found = fs.glob(inner, detail=True)
    files = {path: info for path, info in found.items() if info["type"] == "file"}
    if storage.is_url(pattern):
        return {fs.unstrip_protocol(path): info for path, info in files.items()}
    return files


def _info(path: str) -> dict[str, Any]:
    try:
        with storage.connected(path) as (fs, inner):
            return dict(fs.info(inner))
    except FileNotFoundError as error:
        raise ValueError(f"source.path: there is no {path!r}") from error


def _mark(info: dict[str, Any]) -> str:
    marks = [str(info[name]) for name in _CONTENT_MARKS if info.get(name)]
    return fingerprint_of([info.get("size"), *marks[:1]])


def _convert(raw: RawSample) -> Iterator[SourceSample | Reject]:
    """One sample, after the rejects of single captions; or one reject."""
    key = clean_key(raw.key)
    if raw.too_large:
        yield too_large(key, f"member {raw.key}.{raw.too_large[0]}")
        return
    try:
        image, _ = raw.image()
    except ValueError as error:
        yield Reject(key, MISSING_IMAGE, str(error))
        return
    try:
        fields = json.loads(raw.members.get("json", b"{}"))
        if not isinstance(fields, dict):
            raise ValueError(f"a {type(fields).__name__}, not an object")
        check_json(fields)
    except (ValueError, RecursionError) as error:
        yield Reject(key, "bad_json", f"{raw.key}.json: {error}")
        return

    captions, bad = [], []
    for value in _caption_values(raw, fields):
        try:
            captions.append(clean_caption(value))
        except ValueError as error:
            bad.append(Reject(key, BAD_CAPTION, str(error)))
    if not captions:
        detail = bad[0].detail if bad else "neither .txt nor 'captions' or 'caption' in .json"
        yield Reject(key, "no_caption", detail)
        return
    yield from bad
    meta = _meta(fields)
    try:
        objects = object_names(meta)
    except ValueError:
        objects = ()  # the field has our name, but another meaning in that collection
    yield SourceSample(key, image, tuple(captions), objects, meta)


def _caption_values(raw: RawSample, fields: dict[str, Any]) -> list[Any]:
    captions = fields.get("captions")
    if isinstance(captions, list) and captions:
        return [c.get("text") if isinstance(c, dict) else c for c in captions]
    if "txt" in raw.members:
        try:
            return [raw.members["txt"].decode()]
        except UnicodeDecodeError:
            return [raw.members["txt"]]  # bytes: refused as no string, and shown
    return [fields["caption"]] if "caption" in fields else []


def _meta(fields: dict[str, Any]) -> dict[str, Any]:
    meta = fields.get("meta")
    if isinstance(meta, dict) and set(fields) == {"captions", "meta"}:
        return meta  # our own format
    return {name: value for name, value in fields.items() if name != "captions"}
