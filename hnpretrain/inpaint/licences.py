"""What a source says of a photo's licence, by the names that sources have for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

NOT_STATED = "not stated"
# The first that is there counts.
_NAMES = ("license", "licence", "license_name", "image_license", "license_id")
_URLS = ("license_url", "licence_url")
_PAGES = ("flickr_page", "page", "page_url", "source_url", "flickr_url", "coco_url", "url")
_AUTHORS = ("author", "photographer", "creator", "owner", "attribution")


@dataclass(frozen=True)
class Licence:
    """Of a photo; each is empty where the source is silent.

    Attributes:
        name: as the source has it, which may be a number.
        url: of its text.
        page: where the photo is.
        author: who took it.
    """

    name: str
    url: str
    page: str
    author: str

    @classmethod
    def of(cls, meta: Mapping[str, Any]) -> Licence:
        """Reads a sample's `meta`."""
        return cls(*(_first(meta, names) for names in (_NAMES, _URLS, _PAGES, _AUTHORS)))


def _first(meta: Mapping[str, Any], names: tuple[str, ...]) -> str:
    for name in names:
        value = meta.get(name)
        if isinstance(value, str | int) and not isinstance(value, bool):
            # Half a surrogate pair, which JSON can carry, is no text to others.
            text = " ".join(str(value).split()).encode(errors="backslashreplace").decode()
            if text:
                return text
    return ""
