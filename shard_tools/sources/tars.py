"""Tars that others wrote: WebDataset collections and img2dataset's output. One tar, one shard.

Which texts are a sample's captions, `caption_values` says. The other fields of the .json become
`meta`; members other than image, .txt and .json are left out.

What is wrong inside a tar shows only on reading, so it never stops the job: it is counted.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import braceexpand

from hnpretrain.shards import storage
from hnpretrain.shards.marker import Reject
from hnpretrain.shards.schema import NO_CAPTION, caption_values, usable_captions
from hnpretrain.shards.tar import RawSample, iterate_samples
from shard_tools.sources.base import (
    BAD_CAPTION,
    BROKEN_TAR,
    MISSING_IMAGE,
    SampleTexts,
    SourceSample,
    SourceSettings,
    SourceShard,
    check_json,
    clean_key,
    fingerprint_of,
    object_names,
    too_large,
)
from shard_tools.sources.tar_texts import read_texts


@dataclass(frozen=True)
class TarShard(SourceShard):
    """One tar; `mark` is its fingerprint where the storage tells one, else empty."""

    name: str
    origin: str
    path: str
    mark: str
    size: int
    samples: None = field(default=None, init=False)
    captions: None = field(default=None, init=False)

    def fingerprint(self) -> str:
        if self.mark:
            return self.mark
        with Path(self.path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def read(self) -> Iterator[SourceSample | Reject]:
        return (item for item, _ in self.read_with_members())

    def read_with_members(self) -> Iterator[tuple[SourceSample | Reject, Mapping[str, bytes]]]:
        """What `read` gives, each with the members (extension to bytes) that it was made of."""
        try:
            with storage.open_read(self.path) as file:
                for raw in iterate_samples(file, whole=True):
                    for item in _convert(raw):
                        yield item, raw.members
        except ValueError as error:
            # How many samples the lost part held can't be known: the tar is named once.
            yield Reject(self.origin, BROKEN_TAR, str(error)), {}

    def read_texts(self) -> Iterator[SampleTexts]:
        # Behind a URL, what is passed over is fetched all the same: seeking gains nothing.
        read = iterate_samples if storage.is_url(self.path) else read_texts
        # What is broken is named when the tar is built.
        with contextlib.suppress(ValueError), storage.open_read(self.path) as file:
            for raw in read(file):
                yield from _texts(raw)


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
        mark = mark_of(info) if storage.is_url(path) else ""
        shards[name] = TarShard(name, name, path, mark, int(info["size"]))
    return list(shards.values())


def _list_tars(pattern: str) -> dict[str, dict[str, Any]]:
    """Path to fsspec's info of each tar."""
    if not pattern:
        raise ValueError("source.path is empty: set it to a folder, glob or brace pattern of tars")
    found: dict[str, dict[str, Any]] = {}
    plain = []
    for path in braceexpand.braceexpand(pattern):
        if any(letter in path for letter in "*?["):
            found.update(storage.find(path))
        elif not path.endswith(".tar") and storage.is_folder(path):
            found.update(storage.find(storage.join(path, "*.tar")))
        else:
            plain.append(path)
    with ThreadPoolExecutor(16) as pool:  # one request each, tens of ms on an object store
        found.update(zip(plain, pool.map(_info, plain), strict=True))
    if not found:
        raise ValueError(f"source.path={pattern!r}: no .tar found")
    return found


def _info(path: str) -> dict[str, Any]:
    try:
        return storage.info(path)
    except FileNotFoundError as error:
        raise ValueError(f"source.path: there is no {path!r}") from error


def mark_of(info: dict[str, Any]) -> str:
    return fingerprint_of([info.get("size"), storage.content_mark(info)])


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
        fields = _fields(raw)
    except ValueError as error:
        yield Reject(key, "bad_json", f"{raw.key}.json: {error}")
        return
    captions, bad = _captions(raw, fields)
    if not captions:
        yield Reject(key, "no_caption", bad[0] if bad else NO_CAPTION)
        return
    yield from (Reject(key, BAD_CAPTION, detail) for detail in bad)
    meta = _meta(fields)
    yield SourceSample(key, image, captions, _objects(meta), meta)


def _objects(meta: Mapping[str, Any]) -> tuple[str, ...]:
    try:
        return object_names(meta)
    except ValueError:
        return ()  # the field has our name, but another meaning in that collection


def _fields(raw: RawSample) -> dict[str, Any]:
    """The sample's .json; ValueError if it is no JSON object or can't be written again."""
    try:
        fields = json.loads(raw.members.get("json", b"{}"))
    except RecursionError as error:
        raise ValueError("nested too deep") from error
    if not isinstance(fields, dict):
        raise ValueError(f"a {type(fields).__name__}, not an object")
    check_json(fields)
    return fields


def _captions(raw: RawSample, fields: dict[str, Any]) -> tuple[tuple[str, ...], list[str]]:
    """The captions that can be used, and what is wrong with each other one."""
    return usable_captions(caption_values(fields, raw.members.get("txt")))


def _texts(raw: RawSample) -> Iterator[SampleTexts]:
    """The sample's texts, if it has captions."""
    with contextlib.suppress(ValueError):
        fields = _fields(raw)
        captions, _ = _captions(raw, fields)
        if captions:
            yield SampleTexts(captions, _objects(_meta(fields)))


def _meta(fields: dict[str, Any]) -> dict[str, Any]:
    meta = fields.get("meta")
    if isinstance(meta, dict) and set(fields) == {"captions", "meta"}:
        return meta  # our own format
    return {name: value for name, value in fields.items() if name != "captions"}
