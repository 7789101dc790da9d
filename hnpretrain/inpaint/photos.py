"""Captioned photos, one by one, from whatever `hnpretrain shard build` takes.

Our own shards keep their captions' negatives. A folder with our index is read as the index says:
those tars, where it says that they lie.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from PIL import ExifTags, Image, ImageOps

from hnpretrain.shards import storage
from hnpretrain.shards.images import BadImage, check_image
from hnpretrain.shards.index import INDEX_NAME, read_index
from hnpretrain.shards.marker import Reject
from hnpretrain.shards.schema import Caption
from shard_tools.sources import SourceSample, SourceSettings, SourceShard, plan_source
from shard_tools.sources.tars import TarShard, plan_tars

# Of a manifest, read together. No photo is held for longer than it is looked at.
_SAMPLES_PER_SHARD = 1000


@dataclass(frozen=True)
class Photo:
    """A photo with its captions.

    Attributes:
        key: unique in the source; letters, digits, `_` and `-`.
        image: the source's bytes, of which all can be decoded.
        extension: of the image's actual format, without the dot.
        captions: at least one, with their negatives where the source has some.
        objects: names of things known to be in the photo; may be empty.
        meta: the source's own fields, JSON values.
        orientation: EXIF's, of the source's bytes; 1 is upright. See `found.opened`.
    """

    key: str
    image: bytes
    extension: str
    captions: tuple[Caption, ...]
    objects: tuple[str, ...] = ()
    meta: Mapping[str, Any] = field(default_factory=dict)
    orientation: int = 1


def upright(image: Image.Image, orientation: int) -> Image.Image:
    """An image, turned as EXIF's orientation of it says; a copy."""
    turned = image.copy()
    turned.getexif()[ExifTags.Base.Orientation] = orientation
    return ImageOps.exif_transpose(turned)


def read_photos(source: SourceSettings, max_pixels: int) -> Iterator[Photo | Reject]:
    """The photos of a source in its order, and in their places what cannot be used, and why.

    A reject of the reason `bad_caption` is of one caption; its photo follows without that.

    Args:
        source: as `hnpretrain shard build` takes it.
        max_pixels: largest width x height of a photo.

    Raises:
        ValueError: at once: a setting is wrong, or a manifest is not of its form; later: a
            manifest changed meanwhile.
        OSError: storage failed, at once or later.
    """
    return _read(_plan(source), max_pixels)


def _plan(source: SourceSettings) -> list[SourceShard]:
    if source.kind != "tar" or not source.path or not storage.is_folder(source.path):
        return plan_source(source, _SAMPLES_PER_SHARD)
    try:
        index = read_index(source.path)
    except ValueError:  # there is none, or one of another tool
        return plan_source(source, _SAMPLES_PER_SHARD)
    folder = index.folder_of_tars(source.path)
    tars = {tar.name: tar for tar in plan_tars(dataclasses.replace(source, path=folder))}
    if lost := [entry.name for entry in index.shards if entry.name not in tars]:
        raise ValueError(
            f"{storage.join(source.path, INDEX_NAME)} lists {lost[0]}, which {folder} lacks: "
            "restore it, or make the index again"
        )
    return [tars[entry.name] for entry in index.shards]


def _read(shards: Iterable[SourceShard], max_pixels: int) -> Iterator[Photo | Reject]:
    keys: set[str] = set()
    for shard in shards:
        for item, members in _items(shard):
            photo = _photo(item, members, max_pixels) if isinstance(item, SourceSample) else item
            if isinstance(photo, Photo):
                if photo.key in keys:
                    detail = f"{shard.origin}: an earlier photo has this key"
                    photo = Reject(photo.key, "duplicate_key", detail)
                keys.add(photo.key)
            yield photo


def _items(shard: SourceShard) -> Iterator[tuple[SourceSample | Reject, Mapping[str, bytes]]]:
    if isinstance(shard, TarShard):
        return shard.read_with_members()
    return ((item, {}) for item in shard.read())


def _photo(sample: SourceSample, members: Mapping[str, bytes], max_pixels: int) -> Photo | Reject:
    try:
        extension = check_image(sample.image, max_pixels)
    except BadImage as error:
        return Reject(sample.key, error.reason, error.detail)
    try:
        edited = _captions_with_negatives(members)
    except ValueError as error:
        return Reject(sample.key, "bad_negatives", str(error))
    captions = tuple(edited.get(text, Caption(text)) for text in sample.captions)
    return Photo(sample.key, sample.image, extension, captions, sample.objects, sample.meta)


def _captions_with_negatives(members: Mapping[str, bytes]) -> dict[str, Caption]:
    """Of a tar's sample, the captions that have negatives, by their cleaned texts.

    As they stand: a negative's span counts the characters of the text as it was written.

    Raises:
        ValueError: one is not of format 1.
    """
    captions = json.loads(members.get("json", b"{}")).get("captions")
    if not isinstance(captions, list):
        return {}
    own = [each for each in captions if isinstance(each, dict) and each.get("negatives")]
    return {" ".join(each.text.split()): each for each in map(Caption.from_json, own)}
