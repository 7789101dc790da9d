"""What one sample is: an image, its captions, and each caption's negatives.

The JSON form is format 1 of the design (docs/architecture.md, "Shard format"). Reading checks
every field, since shards may come from elsewhere, and names what is wrong in one line.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
# Of a .json, what may hold the one caption of a sample that has no .txt.
CAPTION_FIELDS = ("caption", "text")
NO_CAPTION = "neither .txt nor 'captions', 'caption' or 'text' in .json"
_KEY = re.compile(r"[A-Za-z0-9_\-]{1,80}")


class NoCaption(ValueError):
    """A sample has no caption that can be used."""


@dataclass(frozen=True)
class Negative:
    """A caption made false by one small edit.

    Attributes:
        text: the false caption.
        concept: what the edit changed (`object`, `color`, `size`, `location`, ...).
        strategy: how it was made (`replace`, `swap`, ...).
        source: the words of the positive that were replaced (`from` in the JSON).
        target: the words that replaced them (`to` in the JSON).
        span: [start, end) of `source` in the positive caption, in characters.
    """

    text: str
    concept: str
    strategy: str
    source: str
    target: str
    span: tuple[int, int]

    def to_json(self) -> dict[str, Any]:
        return {
            "text": self.text,
            "concept": self.concept,
            "strategy": self.strategy,
            "from": self.source,
            "to": self.target,
            "span": list(self.span),
        }

    @classmethod
    def from_json(cls, value: object) -> Negative:
        """Reads one negative; raises ValueError naming the field that is wrong."""
        fields = _mapping(value, "a negative")
        texts = {}
        for name in ("text", "concept", "strategy"):
            texts[name] = _string(fields.get(name), f"a negative's {name!r}")
        for name in ("from", "to"):  # an insertion has no `from`, a deletion no `to`
            if not isinstance(fields.get(name), str):
                raise ValueError(
                    f"a negative's {name!r} must be a string, got {fields.get(name)!r}"
                )
            texts[name] = fields[name]
        span = fields.get("span")
        if (
            not isinstance(span, list)
            or len(span) != 2
            or not all(isinstance(end, int) for end in span)
        ):
            raise ValueError(f"a negative's 'span' must be [start, end], got {span!r}")
        return cls(
            texts["text"],
            texts["concept"],
            texts["strategy"],
            texts["from"],
            texts["to"],
            (span[0], span[1]),
        )


@dataclass(frozen=True)
class Caption:
    """A true caption of an image and the negatives made from it (none is allowed)."""

    text: str
    negatives: tuple[Negative, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {"text": self.text, "negatives": [n.to_json() for n in self.negatives]}

    @classmethod
    def from_json(cls, value: object) -> Caption:
        fields = _mapping(value, "a caption")
        negatives = fields.get("negatives", [])
        if not isinstance(negatives, list):
            raise ValueError(f"a caption's 'negatives' must be a list, got {negatives!r}")
        return cls(
            _string(fields.get("text"), "a caption's 'text'"),
            tuple(Negative.from_json(negative) for negative in negatives),
        )


@dataclass(frozen=True)
class Sample:
    """One image with its captions, in one shard under one key.

    Attributes:
        key: unique in the data set; letters, digits, `_` and `-` (webdataset cuts keys at dots).
        image: the source's bytes, untouched.
        extension: one of IMAGE_EXTENSIONS, without the dot.
        captions: at least one.
        meta: the source's own fields, JSON values.
    """

    key: str
    image: bytes
    extension: str
    captions: tuple[Caption, ...]
    meta: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not _KEY.fullmatch(self.key):
            raise ValueError(
                f"sample key {self.key!r}: 1 to 80 letters, digits, '_' and '-' are allowed"
            )
        if self.extension not in IMAGE_EXTENSIONS:
            raise ValueError(
                f"sample {self.key}: image extension {self.extension!r} is not one of "
                f"{', '.join(IMAGE_EXTENSIONS)}"
            )
        if not self.captions:
            raise ValueError(f"sample {self.key} has no caption")

    def metadata_json(self) -> bytes:
        """The bytes of the KEY.json member: captions with negatives, and meta."""
        value = {"captions": [c.to_json() for c in self.captions], "meta": dict(self.meta)}
        text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
        # Half a surrogate pair (\ud800), which JSON can carry and UTF-8 cannot, stays an escape.
        return text.encode(errors="backslashreplace")


def parse_metadata(data: bytes) -> tuple[tuple[Caption, ...], dict[str, Any]]:
    """Reads a KEY.json member back.

    Returns:
        (captions, meta).

    Raises:
        ValueError: the bytes are no JSON of format 1; the message says which field is wrong.
    """
    fields = _json_object(data)
    captions = fields.get("captions")
    if not isinstance(captions, list) or not captions:
        raise ValueError("'captions' must be a list with at least one caption")
    return (
        tuple(Caption.from_json(caption) for caption in captions),
        dict(_mapping(fields.get("meta", {}), "'meta'")),
    )


def read_captions(members: Mapping[str, bytes]) -> tuple[Caption, ...]:
    """The captions of a sample, of format 1 or as others write them, who have no negatives.

    Args:
        members: extension to bytes; .json and .txt are looked at.

    Raises:
        NoCaption: none can be used.
        ValueError: the .json is no JSON object, or its captions are not of format 1.
    """
    fields = _json_object(members.get("json", b"{}"))
    captions = fields.get("captions")
    if isinstance(captions, list) and captions and isinstance(captions[0], dict):
        return tuple(Caption.from_json(caption) for caption in captions)
    texts, refused = usable_captions(caption_values(fields, members.get("txt")))
    if not texts:
        raise NoCaption(refused[0] if refused else NO_CAPTION)
    return tuple(Caption(text) for text in texts)


def caption_values(fields: Mapping[str, Any], txt: bytes | None) -> list[Any]:
    """What stands for captions in a sample, whoever wrote it; the first of these that there is:
    `captions` of its .json (strings, or objects with `text`), its .txt, `caption` or `text` of its
    .json.
    """
    captions = fields.get("captions")
    if isinstance(captions, list) and captions:
        return [c.get("text") if isinstance(c, dict) else c for c in captions]
    if txt is not None:
        try:
            return [txt.decode()]
        except UnicodeDecodeError:
            return [txt]  # bytes: refused as no string, and shown
    return [fields[name] for name in CAPTION_FIELDS if name in fields][:1]


def usable_captions(values: Iterable[object]) -> tuple[tuple[str, ...], list[str]]:
    """Captions, cleaned, and what is wrong with each of the others."""
    captions, refused = [], []
    for value in values:
        try:
            captions.append(clean_caption(value))
        except ValueError as error:
            refused.append(str(error))
    return tuple(captions), refused


def clean_caption(value: object) -> str:
    """A caption with runs of white space made single spaces.

    Raises:
        ValueError: it is not a string, is empty, or is no valid Unicode.
    """
    if not isinstance(value, str):
        raise ValueError(f"a caption must be a string, got {value!r:.80}")
    text = " ".join(value.split())
    if not text:
        raise ValueError("a caption is empty")
    if not is_unicode(text):
        raise ValueError(f"a caption is no valid Unicode: {value!r:.80}")
    return text


def is_unicode(text: str) -> bool:
    """False for half a surrogate pair (\\ud800), which JSON can carry and UTF-8 cannot."""
    return text.isascii() or not re.search("[\ud800-\udfff]", text)


def _json_object(data: bytes) -> Mapping[str, Any]:
    try:
        value = json.loads(data)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"not JSON: {error}") from error
    return _mapping(value, "the sample's JSON")


def _mapping(value: object, what: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{what} must be a JSON object, got {type(value).__name__}")
    return value


def _string(value: object, what: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{what} must be a non-empty string, got {value!r}")
    if not is_unicode(value):
        raise ValueError(f"{what} is no valid Unicode: {value!r:.80}")
    return value
