"""What `inpaint propose` left out, and why."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator

_FIELDS = ("key", "caption", "concept", "reason", "detail")


class LeftOutLedger:
    """Counts and names what is left out, each once.

    Attributes:
        counts: by reason.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._rows: dict[tuple[str, ...], None] = {}

    def add(self, key: str, reason: str, detail: str, caption: str = "", concept: str = "") -> None:
        """Notes one.

        Args:
            key: of the sample.
            reason: to count by.
            detail: in words.
            caption: and `concept`: of the edit, if it is one that is left out.
        """
        row = (key, caption, concept, reason, detail)
        if row not in self._rows:
            self._rows[row] = None
            self.counts[reason] += 1

    def lines(self) -> Iterator[bytes]:
        """A JSON object a line."""
        for row in self._rows:
            value = dict(zip(_FIELDS, row, strict=True))
            yield (json.dumps(value, ensure_ascii=False) + "\n").encode(errors="backslashreplace")
