"""COCO: a captions json (`images`, `annotations`) and a folder of images, sorted by image id."""

from __future__ import annotations

import dataclasses
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hnpretrain.shards import storage
from hnpretrain.shards.schema import clean_caption
from shard_tools.sources.base import (
    SourceSettings,
    SourceShard,
    check_json,
    clean_key,
    fingerprint_of,
    require_file,
    require_folder,
)
from shard_tools.sources.manifest import (
    ImageRecord,
    ManifestShard,
    check_image_name,
    shard_names,
)

_CAPTIONS_FORM = (
    "a COCO captions json is {'images': [{'id', 'file_name'}], "
    "'annotations': [{'image_id', 'caption'}]}"
)
_INSTANCES_FORM = (
    "a COCO instances json is {'categories': [{'id', 'name'}], "
    "'annotations': [{'image_id', 'category_id'}]}"
)


@dataclass(frozen=True)
class CocoShard(ManifestShard):
    """Some images of the json, in the order of their ids."""

    held: tuple[ImageRecord, ...]

    def fingerprint(self) -> str:
        records = [dataclasses.asdict(record) for record in self.held]
        return fingerprint_of([self.images, records])

    def records(self) -> tuple[ImageRecord, ...]:
        return self.held


def plan_coco(settings: SourceSettings, samples_per_shard: int) -> list[SourceShard]:
    """Reads and checks the json, and cuts it into shards.

    Raises:
        ValueError: the json is of another shape, a caption is empty or no string, two images have
            one id, or there is no image at all.
    """
    require_file("source.path", settings.path)
    require_folder("source.images", settings.images)
    fields = _read_json(settings.path, _CAPTIONS_FORM)
    objects = _objects(settings.instances) if settings.instances else {}
    captions = _captions(fields, settings.path)

    records: dict[str, ImageRecord] = {}
    places: dict[str, int] = {}
    for number, image in enumerate(_list(fields, "images", settings.path, _CAPTIONS_FORM)):
        where = f"{settings.path}: images[{number}]"
        image_id, file_name = _require(image, ("id", "file_name"), where, _CAPTIONS_FORM)
        key = _key(image_id, where)
        if key in records:
            raise ValueError(
                f"{settings.path}: images[{places[key]}] and images[{number}] have one id, "
                f"{image_id!r}; each sample needs a key of its own"
            )
        try:
            check_json(image)
            file_name = check_image_name(file_name)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        names = objects.get(image_id, set())
        meta = dict(image)
        if settings.instances:
            meta["objects"] = sorted(names)
        places[key] = number
        records[key] = ImageRecord(
            key, file_name, tuple(captions.pop(image_id, ())), tuple(sorted(names)), meta
        )
    if captions:
        unknown = next(iter(captions))
        raise ValueError(f"{settings.path}: captions of image {unknown!r}, which 'images' lacks")
    if not any(record.captions for record in records.values()):
        raise ValueError(f"{settings.path}: not one image with a caption")
    ordered = [records[key] for key in sorted(records)]
    cuts = range(0, len(ordered), samples_per_shard)
    file = settings.path.rsplit("/", 1)[-1]
    return [
        _shard(name, file, settings.images, start, ordered[start : start + samples_per_shard])
        for name, start in zip(shard_names(len(cuts)), cuts, strict=True)
    ]


def _shard(
    name: str, file: str, images: str, start: int, records: Sequence[ImageRecord]
) -> CocoShard:
    captions = sum(len(record.captions) for record in records)
    origin = f"{file}[{start}:{start + len(records)}]"
    return CocoShard(name, origin, len(records), captions, images, tuple(records))


def _captions(fields: Mapping[str, Any], path: str) -> dict[Any, list[str]]:
    captions: dict[Any, list[str]] = defaultdict(list)
    for number, annotation in enumerate(_list(fields, "annotations", path, _CAPTIONS_FORM)):
        where = f"{path}: annotations[{number}]"
        image_id, caption = _require(annotation, ("image_id", "caption"), where, _CAPTIONS_FORM)
        try:
            captions[_identity(image_id)].append(clean_caption(caption))
        except ValueError as error:
            raise ValueError(f"{where} (image {image_id!r}): {error}") from error
    return captions


def _objects(path: str) -> dict[Any, set[str]]:
    """Image id to the names of the categories that it has instances of."""
    require_file("source.instances", path)
    fields = _read_json(path, _INSTANCES_FORM)
    names: dict[Any, str] = {}
    for number, category in enumerate(_list(fields, "categories", path, _INSTANCES_FORM)):
        where = f"{path}: categories[{number}]"
        category_id, name = _require(category, ("id", "name"), where, _INSTANCES_FORM)
        if not isinstance(name, str) or not name:
            raise ValueError(f"{where}: 'name' must be a non-empty string, got {name!r:.80}")
        names[_identity(category_id)] = name
    objects: dict[Any, set[str]] = defaultdict(set)
    for number, annotation in enumerate(_list(fields, "annotations", path, _INSTANCES_FORM)):
        where = f"{path}: annotations[{number}]"
        image_id, category_id = _require(
            annotation, ("image_id", "category_id"), where, _INSTANCES_FORM
        )
        if _identity(category_id) not in names:
            raise ValueError(f"{where}: category_id {category_id!r} is not in 'categories'")
        objects[_identity(image_id)].add(names[category_id])
    return objects


def _read_json(path: str, form: str) -> Mapping[str, Any]:
    try:
        value = json.loads(storage.read_bytes(path))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path}: holds a {type(value).__name__}; {form}")
    return value


def _list(fields: Mapping[str, Any], name: str, path: str, form: str) -> list[Any]:
    if name not in fields:
        found = ", ".join(list(fields)[:6]) or "nothing"
        raise ValueError(f"{path}: no field {name!r} (found {found}); {form}")
    if not isinstance(fields[name], list):
        raise ValueError(f"{path}: {name!r} must be a list; {form}")
    return fields[name]


def _require(value: Any, names: tuple[str, ...], where: str, form: str) -> tuple[Any, ...]:
    if not isinstance(value, dict):
        raise ValueError(f"{where} is a {type(value).__name__}; {form}")
    for name in names:
        if name not in value:
            raise ValueError(f"{where} has no {name!r}; {form}")
    return tuple(value[name] for name in names)


def _identity(value: Any) -> Any:
    """An id as a dictionary key; unhashable and fractional values never equal an image's id."""
    return value if isinstance(value, int | str) else repr(value)


def _key(image_id: Any, where: str) -> str:
    if isinstance(image_id, bool) or not isinstance(image_id, int | str) or image_id == "":
        raise ValueError(f"{where}: 'id' must be an integer or a string, got {image_id!r:.80}")
    # Twelve digits, as COCO's own file names have.
    return f"{image_id:012d}" if isinstance(image_id, int) else clean_key(image_id)
