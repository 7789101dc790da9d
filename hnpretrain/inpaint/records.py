"""What the steps leave for each other: proposals, candidates, decisions; each is a JSON object.

Reading checks every field, and names what is wrong in one line.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

T = TypeVar("T")

# What is done to the thing under the mask.
EDITS = ("recolor", "enlarge", "shrink", "remove", "replace")
VERDICTS = ("accept", "reject", "skip", "undo")


@dataclass(frozen=True)
class Proposal:
    """An edit that is to be made: of a photo, and of a caption that it makes false.

    Attributes:
        id: unique in the folder; letters, digits, `_` and `-`.
        key: of the sample.
        photo: path in the folder: the source's bytes.
        source_caption: as the source has it.
        caption: true of the photo, false once it is edited. The source's, or the source's with a
            quality stated that the photo shows ("a bus" -> "a red bus").
        new_caption: the reverse.
        concept: `color`, `size` or `object`.
        edit: one of EDITS.
        source: the words of `caption` that `new_caption` has others for.
        target: those others.
        span: [start, end) of `source` in `caption`, in characters.
        noun: what `caption` calls the thing, as written: "stop sign", "dogs".
        category: what the masks' source calls it: "stop sign", "dog".
        mask: path in the folder: a PNG of mode L as large as the photo, 255 on the thing.
        things: how many instances the mask joins; more than one where the caption means all.
        area: of the mask, as a share of the photo.
        score: by which proposals are ranked, higher first.
        meta: the source's own fields of the photo (licence, page, ...), JSON values.
    """

    id: str
    key: str
    photo: str
    source_caption: str
    caption: str
    new_caption: str
    concept: str
    edit: str
    source: str
    target: str
    span: tuple[int, int]
    noun: str
    category: str
    mask: str
    things: int
    area: float
    score: float
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Check:
    """What an automatic check measured, and whether that is within its bounds."""

    value: float
    passed: bool


@dataclass(frozen=True)
class Stored:
    """What a file held when it was written.

    Attributes:
        bytes: its size.
        sha256: of its content, hexadecimal.
    """

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Candidate:
    """A picture that an editor made for a proposal.

    Attributes:
        id: unique in its proposal: `recolor-0`.
        proposal: its id.
        editor: name of the editor.
        image: path in the folder: a PNG as large as the photo.
        changed: path in the folder: a PNG of mode L, 255 where the editor meant to change pixels.
        seed: of the editor's draws.
        settings: all that decides the picture beside photo, mask, proposal and seed; JSON values.
        details: what the editor tells of this picture; JSON values.
        checks: name to result.
        checked_with: all that decides the checks beside photo and pictures; JSON values.
        files: what `image` and `changed` held, by these names.
    """

    id: str
    proposal: str
    editor: str
    image: str
    changed: str
    seed: int
    settings: Mapping[str, Any]
    details: Mapping[str, Any]
    checks: Mapping[str, Check]
    checked_with: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, Stored] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.checks.values())


@dataclass(frozen=True)
class Decision:
    """What a person said of a proposal. The last one of each person and proposal counts.

    Attributes:
        proposal: its id.
        reviewer: the person's name.
        verdict: one of VERDICTS; `undo` takes back that person's last one of the proposal.
        candidate: id of the candidate that was accepted, or that was looked at; may be empty.
        caption: of the photo, as the person left it.
        new_caption: of the candidate, as the person left it.
        time: seconds since 1970.
        note: why, in the person's words; may be empty.
    """

    proposal: str
    reviewer: str
    verdict: str
    candidate: str
    caption: str
    new_caption: str
    time: float
    note: str = ""


def to_json(record: Any) -> dict[str, Any]:
    """A record as a JSON object."""
    return dataclasses.asdict(record)


def from_json(cls: type[T], value: object, where: str) -> T:
    """A record from a JSON object.

    Args:
        where: what an error calls it.

    Raises:
        ValueError: a field is missing, unknown or of another type.
    """
    if not isinstance(value, dict):
        raise ValueError(f"{where}: must be a JSON object, got {type(value).__name__}")
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    if unknown := sorted(value.keys() - fields.keys()):
        raise ValueError(f"{where}: unknown field {unknown[0]!r}")
    read = {}
    for name, f in fields.items():
        if name in value:
            read[name] = _value(hints[name], value[name], f"{where}: {name!r}")
        elif f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
            raise ValueError(f"{where}: field {name!r} is missing")
    return cls(**read)


def _value(hint: Any, value: object, where: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Mapping:
        if not isinstance(value, dict):
            raise ValueError(f"{where} must be a JSON object, got {value!r:.80}")
        inner = arguments[1]
        if dataclasses.is_dataclass(inner):
            return {k: from_json(inner, v, f"{where}: {k!r}") for k, v in value.items()}  # type: ignore[arg-type]
        return dict(value)
    if origin is tuple:
        if (
            not isinstance(value, list | tuple)
            or len(value) != len(arguments)
            or not all(type(v) is a for v, a in zip(value, arguments, strict=True))
        ):
            raise ValueError(f"{where} must be {len(arguments)} numbers, got {value!r:.80}")
        return tuple(value)
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        raise ValueError(f"{where} must be of type {hint.__name__}, got {value!r:.80}")
    return value
