"""Where the things of a photo are: from COCO instances, or from a folder of masks.

`segmenter` has masks from a model, and the settings that choose one of the three.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from PIL import Image

from hnpretrain.inpaint.instances import Annotated, Instance, instances_of, read_instances
from hnpretrain.inpaint.photos import Photo, upright
from hnpretrain.inpaint.regions import BadMask, Size, region_mask
from hnpretrain.shards import storage
from hnpretrain.shards.images import BadImage, decode_opened, open_image
from shard_tools.sources.base import require_folder

__all__ = ["BadMask", "InstanceMasks", "MaskFolder", "Masks", "Size", "Thing"]

# Of a mask's file: as a PNG, a mask of 100 million pixels takes a tenth of it.
_MAX_FILE_BYTES = 64 * 2**20
# Of EXIF's orientations, from which on width and height change places.
_SIDES_SWAP = 5
# KEY.png, KEY.NOUN.png, KEY.NUMBER.png, KEY.NOUN.NUMBER.png; a key has no dot.
_FILE_NAME = re.compile(r"([A-Za-z0-9_\-]+)(?:\.(?!\d+\.)([^.]+))?(?:\.(\d{1,9}))?\.png")


@dataclass(frozen=True)
class Thing:
    """One thing in a photo.

    Attributes:
        category: what the masks' source calls it.
        mask_HW: bool, as large as the photo; neither empty nor full.
    """

    category: str
    mask_HW: np.ndarray


class Masks(ABC):
    """Finds the things that a noun names."""

    @abstractmethod
    def things(
        self, photo: Photo, size: Size, noun: str, categories: Collection[str]
    ) -> list[Thing]:
        """All things in a photo that a noun may name; an empty list if there is none.

        Args:
            size: the photo's width and height in pixels.
            noun: as a caption has it: "dogs", "stop sign".
            categories: what a source may call what the noun names: "dog". Case does not matter.

        Raises:
            BadMask: there are some, but one cannot be used, so that it is not known where all are;
                or nothing can be known of this photo.
        """

    def categories(self, photo: Photo) -> frozenset[str]:
        """What the source calls the things that it knows of in a photo; empty if it cannot tell."""
        del photo
        return frozenset()


class InstanceMasks(Masks):
    """COCO instances, of the samples' own fields or of a COCO instances json.

    A sample's own stand in `meta["instances"]`, a list of objects with `category`, `polygons` or
    `segmentation` (polygons, or run lengths, compressed or not), and `iscrowd`. `meta["width"]` and
    `meta["height"]` tell the size of the picture that they were made for; without them it is taken
    to be the photo's. In a json, a photo is found by `meta["id"]`.

    Regions that were made for another size are scaled. All polygons of an instance are one thing.
    Of a photo that its camera has marked as turned, they may have been made as it lies or as it is
    seen; where its sides tell which, they are turned as the photo was, else they cannot be used.

    Args:
        path: of the json; empty: each sample's own fields.

    Raises:
        ValueError, OSError: as `read_instances`.
    """

    def __init__(self, path: str = "") -> None:
        self._path = path
        self._photos = read_instances(path) if path else {}

    def things(
        self,
        photo: Photo,
        size: Size,
        noun: str,  # noqa: ARG002 (instances are named by category alone)
        categories: Collection[str],
    ) -> list[Thing]:
        annotated = self._annotated(photo)
        names = {name.lower() for name in categories}
        named = [each for each in annotated.instances if each.category.lower() in names]
        if not named:
            return []
        made_for = annotated.size or size
        lies = _lies_turned(photo, annotated.size, size)
        of_size = size[::-1] if lies else size
        _check_shape(made_for, of_size)
        masks = [_instance_mask(each, made_for, of_size) for each in named]
        if lies:
            masks = [_turned(mask_HW, photo.orientation) for mask_HW in masks]
        return [Thing(each.category, mask) for each, mask in zip(named, masks, strict=True)]

    def categories(self, photo: Photo) -> frozenset[str]:
        try:
            return frozenset(each.category for each in self._annotated(photo).instances)
        except BadMask:
            return frozenset()

    def _annotated(self, photo: Photo) -> Annotated:
        if not self._path:
            return instances_of(photo.meta)
        image_id = photo.meta.get("id")
        if type(image_id) not in (int, str) or image_id not in self._photos:
            raise BadMask("no_instances", f"{self._path} has no image of the id {image_id!r:.80}")
        return self._photos[image_id]


def _lies_turned(photo: Photo, made_for: Size | None, size: Size) -> bool:
    """Whether regions were made for a photo as it lies, which is turned in what we have of it.

    Raises:
        BadMask: nobody can tell.
    """
    if photo.orientation == 1:
        return False
    if photo.orientation < _SIDES_SWAP or made_for is None or made_for[0] == made_for[1]:
        raise BadMask("turned", "its camera has marked it as turned: made for which way is unknown")
    return (made_for[0] > made_for[1]) != (size[0] > size[1])


def _turned(mask_HW: np.ndarray, orientation: int) -> np.ndarray:
    image = Image.fromarray(mask_HW.astype(np.uint8))
    return np.asarray(upright(image, orientation)) > 0


def _check_shape(made_for: Size, size: Size) -> None:
    """Raises BadMask unless one is the other scaled, up to the rounding of its sides.

    What was cropped or turned would be scaled to wrong places.
    """
    (width, height), (wide, high) = made_for, size
    # That is: the two scales differ by no more than a pixel makes in each.
    if abs(wide * height - high * width) > width + height:
        raise BadMask(
            "mask_size",
            f"annotated at {width} x {height} pixels, but the photo has {wide} x {high}: "
            "it was cropped or turned",
        )


def _instance_mask(instance: Instance, made_for: Size, size: Size) -> np.ndarray:
    if instance.is_crowd:
        raise BadMask("crowd", f"{instance.category}: a crowd, nobody knows of how many")
    try:
        mask_HW = region_mask(instance.region, made_for, size)
        check_mask(mask_HW)
    except BadMask as error:
        raise BadMask(error.reason, f"{instance.category}: {error.detail}") from error
    return mask_HW


def check_mask(mask_HW: np.ndarray) -> None:
    """Raises BadMask if a mask is empty or full."""
    if not mask_HW.any():
        raise BadMask("empty_mask", "not one pixel is in it")
    if mask_HW.all():
        raise BadMask("full_mask", "all of the photo is in it")


class MaskFolder(Masks):
    """A folder of PNGs, named by the samples' keys and by nouns, with dots between.

        000000000790.dog.png                              the only dog
        000000000790.chair.0.png, 000000000790.chair.1.png    all chairs
        000000000790.stop_sign.png                        not a letter or digit: `_`
        000000000790.png, or .0.png, .1.png               what any noun names

    A mask is as large as its photo. A pixel is on the thing if it is at least half as bright as the
    mask's brightest, so that masks of 0 and 255, of 0 and 1, and with soft edges all do. A noun's
    masks are found by the caption's word or a category's, in any case. Those without a noun are for
    photos whose captions are all of one thing; they stand for nouns that have no mask of their own,
    unless other nouns of the photo have.

    Args:
        path: a folder or URL.

    Raises:
        ValueError: it is no folder, holds no mask, or a PNG with another kind of name.
        OSError: it cannot be listed.
    """

    def __init__(self, path: str) -> None:
        require_folder("masks.path", path)
        self._path = path
        # Key to noun (empty: any) to names of files, in the order of their numbers.
        self._files: dict[str, dict[str, list[str]]] = {}
        found = [(_parts(path, name), name) for name in storage.list_files(path, ".png")]
        if not found:
            raise ValueError(f"masks.path={path!r}: no .png there; masks are named KEY.NOUN.png")
        for (key, noun, _), name in sorted(found):
            self._files.setdefault(key, defaultdict(list))[noun].append(name)

    def things(
        self, photo: Photo, size: Size, noun: str, categories: Collection[str]
    ) -> list[Thing]:
        files = self._files.get(photo.key, {})
        names = {_file_noun(each): each for each in (*sorted(categories), noun)}
        named = [(names[each], file) for each in names for file in files.get(each, ())]
        if not named and files.keys() == {""}:
            named = [(noun, file) for file in files[""]]
        return [Thing(each, self._read(file, size)) for each, file in named]

    def categories(self, photo: Photo) -> frozenset[str]:
        return frozenset(each.replace("_", " ") for each in self._files.get(photo.key, ()) if each)

    def _read(self, name: str, size: Size) -> np.ndarray:
        path = storage.join(self._path, name)
        if (length := storage.size(path)) > _MAX_FILE_BYTES:
            raise BadMask("broken_mask", f"{name}: {length} bytes, {_MAX_FILE_BYTES} are allowed")
        try:
            return _read_mask(storage.read_bytes(path), size)
        except BadMask as error:
            raise BadMask(error.reason, f"{name}: {error.detail}") from error


def _parts(path: str, name: str) -> tuple[str, str, int]:
    """Key, noun (or empty) and number of a mask's file."""
    match = _FILE_NAME.fullmatch(name)
    if not match:
        raise ValueError(
            f"masks.path={path!r}: {name!r} is named neither KEY.png, KEY.NOUN.png nor "
            "KEY.NOUN.NUMBER.png; a KEY has letters, digits, '_' and '-'"
        )
    key, noun, number = match.groups()
    return key, _file_noun(noun or ""), int(number or -1)


def _file_noun(noun: str) -> str:
    return re.sub(r"\W", "_", noun.lower())


def _read_mask(data: bytes, size: Size) -> np.ndarray:
    width, height = size
    try:
        with open_image(data, width * height) as image:
            if image.size == size:
                brightness_HW = np.asarray(decode_opened(image)[0].convert("L"))
                mask_HW = brightness_HW >= max(1, brightness_HW.max()) / 2
                check_mask(mask_HW)
                return mask_HW
            found = f"{image.width} x {image.height} pixels"
    except BadImage as error:
        # What the photo is not, a mask of its size cannot be.
        other = error.reason in ("too_many_pixels", "too_elongated")
        raise BadMask("mask_size" if other else "broken_mask", error.detail) from error
    raise BadMask("mask_size", f"{found}, but the photo has {width} x {height}")
