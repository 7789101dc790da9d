"""Candidates on disk: their names, seeds and files, and when one is finished.

    candidates/ID/recolor-0.png, recolor-0-changed.png, recolor-0.json    the JSON appears last
    candidates/ID/recolor-0.cannot       in place of the three: why there is no picture (JSON)

A candidate is finished if its JSON and both pictures are there, as large as the JSON says, or if
what was found against it is.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from hnpretrain.inpaint.editors.base import Edited, Task
from hnpretrain.inpaint.folder import Folder
from hnpretrain.inpaint.records import Candidate, Proposal, Stored, from_json, to_json
from hnpretrain.shards import storage
from hnpretrain.shards.images import BadImage, decode_image, png_of

T = TypeVar("T")

# Seeds are below 2**53, the integers that every reader of JSON keeps.
_SEED_BITS = 53
# Longer values are cut in messages.
_SHOWN = 40


class BadInput(ValueError):
    """A proposal's photo or mask, or a finished picture, cannot be used.

    Attributes:
        reason: to count by: what `BadImage` has, or missing_file, outside_folder, other_size,
            empty_mask, other_content.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


@dataclass(frozen=True)
class Cannot:
    """That an editor can make no such candidate, and why. Fields as `Candidate`'s."""

    id: str
    proposal: str
    editor: str
    seed: int
    settings: Mapping[str, Any]
    reason: str


@dataclass(frozen=True)
class Slot:
    """Place of one candidate.

    Attributes:
        proposal: id of the proposal.
        editor: its editor's name.
        number: among those that the editor makes for the proposal.
    """

    proposal: str
    editor: str
    number: int

    @property
    def id(self) -> str:
        return f"{self.editor}-{self.number}"

    def seed(self, seed: int) -> int:
        """Of all that the editor draws for it; from the run's seed and its place alone."""
        key = json.dumps([seed, self.proposal, self.editor, self.number])
        digest = hashlib.sha256(key.encode()).digest()
        return int.from_bytes(digest[:8], "big") >> (64 - _SEED_BITS)

    def name(self, suffix: str) -> str:
        """Path in the folder."""
        return f"candidates/{self.proposal}/{self.id}{suffix}"

    @property
    def image(self) -> str:
        return self.name(".png")

    @property
    def changed(self) -> str:
        return self.name("-changed.png")


def read(folder: Folder, slot: Slot) -> Candidate | Cannot | None:
    """What is finished; None if nothing is, or if a file of it is damaged.

    Of the pictures, the sizes of the files are looked at; `read_edited` sees all damage.
    """
    found = _read_record(Candidate, folder.path(slot.name(".json")))
    pictures = {"image": slot.image, "changed": slot.changed}
    if found is not None and all(
        _has_size(folder.path(path), found.files.get(name)) for name, path in pictures.items()
    ):
        return found
    return _read_record(Cannot, folder.path(slot.name(".cannot")))


def _read_record(cls: type[T], path: Path) -> T | None:
    try:
        return from_json(cls, json.loads(path.read_bytes()), str(path))
    except (FileNotFoundError, ValueError):
        return None


def _has_size(path: Path, stored: Stored | None) -> bool:
    """Whether a file is there, and as large as it was, if that is known."""
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        return False
    return path.is_file() and (stored is None or size == stored.bytes)


def read_edited(folder: Folder, candidate: Candidate, max_pixels: int) -> Edited:
    """A finished candidate as its editor gave it.

    Raises:
        BadInput: a picture is missing or damaged.
        OSError: storage failed.
    """
    files = candidate.files
    changed_HWC = _decoded(folder, candidate.changed, max_pixels, files.get("changed"))
    image_HWC = _decoded(folder, candidate.image, max_pixels, files.get("image"))
    return Edited(image_HWC, changed_HWC[..., 0] > 127, candidate.details)


def write(folder: Folder, candidate: Candidate, edited: Edited) -> None:
    """Both pictures, then the record, with what the files hold."""
    pictures = {
        "image": (candidate.image, edited.image_HWC),
        "changed": (candidate.changed, edited.changed_HW.astype(np.uint8) * 255),
    }
    files = {}
    for name, (path, array) in pictures.items():
        data = png_of(Image.fromarray(array))
        _write_bytes(folder, path, data)
        files[name] = _stored(data)
    write_record(folder, dataclasses.replace(candidate, files=files))


def write_record(folder: Folder, candidate: Candidate) -> None:
    """The record alone."""
    name = Path(candidate.image).with_suffix(".json").as_posix()
    _write_bytes(folder, name, _json(to_json(candidate)))


def write_cannot(folder: Folder, slot: Slot, found: Cannot) -> None:
    _write_bytes(folder, slot.name(".cannot"), _json(dataclasses.asdict(found)))


def clear(folder: Folder, slot: Slot) -> None:
    """Removes what is there of a candidate, its record first, and what killed writers left."""
    for suffix in (".json", ".cannot", ".png", "-changed.png"):
        path = folder.path(slot.name(suffix))
        path.unlink(missing_ok=True)
        storage.remove_leftovers(str(path))


def read_task(folder: Folder, proposal: Proposal, max_pixels: int) -> Task:
    """A proposal's photo and mask, with seed 0.

    Raises:
        BadInput: one of them is missing or damaged, or they do not fit each other.
        OSError: storage failed.
    """
    photo_HWC = _decoded(folder, proposal.photo, max_pixels)
    mask_HW = _decoded(folder, proposal.mask, max_pixels)[..., 0] > 127
    if mask_HW.shape != photo_HWC.shape[:2]:
        height, width = photo_HWC.shape[:2]
        raise BadInput(
            "other_size",
            f"{proposal.mask}: {mask_HW.shape[1]} x {mask_HW.shape[0]} pixels, but the photo has "
            f"{width} x {height}",
        )
    if not mask_HW.any():
        raise BadInput("empty_mask", f"{proposal.mask}: nothing is masked")
    return Task(proposal, photo_HWC, mask_HW, 0)


def differences(found: Candidate | Cannot, seed: int, settings: Mapping[str, Any]) -> list[str]:
    """`key: there -> now` where what was recorded is not what would be made.

    Args:
        settings: the editor's, of `as_json`.
    """
    there = dict(_flatten({"seed": found.seed, "settings": found.settings}, ""))
    now = dict(_flatten({"seed": seed, "settings": settings}, ""))
    return [
        f"{key}: {_show(there.get(key))} -> {_show(now.get(key))}"
        for key in sorted({*there, *now})
        if there.get(key) != now.get(key)
    ]


def as_json(settings: Mapping[str, Any]) -> dict[str, Any]:
    """As it comes back from a file: tuples become lists."""
    value: dict[str, Any] = json.loads(json.dumps(dict(settings)))
    return value


def _flatten(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    if not isinstance(value, Mapping):
        yield key, value
        return
    for name, inner in value.items():
        yield from _flatten(inner, f"{key}.{name}" if key else str(name))


def _show(value: Any) -> str:
    text = "none" if value is None else json.dumps(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


def _decoded(
    folder: Folder, name: str, max_pixels: int, stored: Stored | None = None
) -> np.ndarray:
    """H x W x 3, uint8.

    Args:
        stored: what the file held, if that is known.
    """
    try:
        path = folder.path(name)
    except ValueError as error:
        raise BadInput("outside_folder", str(error)) from error
    try:
        data = path.read_bytes()
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise BadInput("missing_file", f"{name}: {error.strerror}") from error
    if stored is not None and _stored(data) != stored:
        raise BadInput("other_content", f"{name}: not what was written")
    try:
        return np.asarray(decode_image(data, max_pixels))
    except BadImage as error:
        raise BadInput(error.reason, f"{name}: {error.detail}") from error


def _stored(data: bytes) -> Stored:
    return Stored(len(data), hashlib.sha256(data).hexdigest())


def _json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()


def _write_bytes(folder: Folder, name: str, data: bytes) -> None:
    storage.write_bytes(str(folder.path(name)), data)
