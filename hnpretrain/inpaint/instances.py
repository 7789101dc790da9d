"""What is annotated of photos: instances of categories, of a sample's own fields or of a COCO json.

A json of another form is refused in one line. What is wrong with one sample's fields is a BadMask.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hnpretrain.inpaint.regions import BadMask, Size
from hnpretrain.shards import storage
from shard_tools.sources.base import require_file

_FORM = (
    "a COCO instances json is {'images': [{'id', 'width', 'height'}], 'categories': [{'id', "
    "'name'}], 'annotations': [{'image_id', 'category_id', 'segmentation', 'iscrowd'}]}"
)


@dataclass(frozen=True)
class Instance:
    """One thing, or a crowd of them.

    Attributes:
        category: its name.
        region: polygons or run lengths, as JSON has them, unchecked.
        is_crowd: whether the region joins an unknown number of things.
    """

    category: str
    region: object
    is_crowd: bool


@dataclass(frozen=True)
class Annotated:
    """All that is annotated of a photo.

    Attributes:
        instances: in the order of their source.
        size: the width and height that the regions were made for; None if it is not told.
    """

    instances: tuple[Instance, ...]
    size: Size | None


def instances_of(meta: Mapping[str, Any]) -> Annotated:
    """What a sample's own fields tell: `instances`, and `width` and `height` if they are there.

    Raises:
        BadMask: no_instances, broken_instances.
    """
    if not isinstance(instances := meta.get("instances"), list):
        raise BadMask("no_instances", "the sample's metadata has no list 'instances'")
    for instance in instances:
        if not isinstance(instance, dict) or not isinstance(instance.get("category"), str):
            raise BadMask(
                "broken_instances", f"an instance must be {{'category', ...}}, got {instance!r:.80}"
            )
    try:
        size = _size(meta)
    except ValueError as error:
        raise BadMask("broken_instances", str(error)) from error
    return Annotated(tuple(_instance(each["category"], each) for each in instances), size)


def read_instances(path: str) -> dict[int | str, Annotated]:
    """A COCO instances json, by the images' ids.

    All of it is held in memory: train2017's takes gigabytes.

    Raises:
        ValueError: there is no such file, or it is of another form.
        OSError: it cannot be read.
    """
    require_file("masks.path", path)
    try:
        fields = json.loads(storage.read_bytes(path))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON: {error}") from error
    try:
        return _by_image(fields)
    except (KeyError, TypeError, ValueError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"{path}: {what}; {_FORM}") from error


def _by_image(fields: Mapping[str, Any]) -> dict[int | str, Annotated]:
    """Raises KeyError, TypeError or ValueError if the fields are not of the form."""
    names = {each["id"]: each["name"] for each in fields["categories"]}
    sizes = {each["id"]: _size(each) for each in fields["images"]}
    instances: dict[int | str, list[Instance]] = defaultdict(list)
    for each in fields["annotations"]:
        image, category = each["image_id"], each["category_id"]
        if image not in sizes or not isinstance(names.get(category), str):
            raise ValueError(
                f"an annotation of image {image!r:.80} and category {category!r:.80}, one of which "
                "is not in the json"
            )
        instances[image].append(_instance(names[category], each))
    return {image: Annotated(tuple(instances[image]), size) for image, size in sizes.items()}


def _instance(category: str, fields: Mapping[str, Any]) -> Instance:
    region = fields.get("polygons")
    if region is None:
        region = fields.get("segmentation")
    return Instance(category, region, bool(fields.get("iscrowd")))


def _size(fields: Mapping[str, Any]) -> Size | None:
    width, height = fields.get("width"), fields.get("height")
    if width is None and height is None:
        return None
    if type(width) is not int or type(height) is not int or width < 1 or height < 1:
        raise ValueError(f"width {width!r:.40} and height {height!r:.40} are no size in pixels")
    return width, height
