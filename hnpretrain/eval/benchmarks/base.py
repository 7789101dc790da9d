"""What a benchmark is, and what reading one takes.

A benchmark is a small module: a dataclass of checked items, a `load` that reads the official files,
and a `run` that encodes, scores and names the averages. It is listed in `benchmarks/__init__.py`.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

from torch import Tensor

from hnpretrain.eval.encode import Encoder
from hnpretrain.eval.report import Result, Score
from hnpretrain.eval.scorers import Accuracy

# CLIP_benchmark's names for the tasks.
SELECTION = "image_caption_selection"
RETRIEVAL = "zeroshot_retrieval"

MICRO = "micro"

# A note on items (which stand before it) whose captions the model cannot tell apart.
EQUAL_TOKENS = "with two captions of equal tokens: always a tie, counted as wrong"

_SHOWN = 3


class Benchmark(Protocol):
    """Items read and checked, ready for any model."""

    name: ClassVar[str]

    def run(self, encoder: Encoder) -> Result:
        """Scores one model; raises ValueError naming an image that cannot be read."""
        ...


def group_scores(
    correct: Tensor,
    groups: Sequence[str],
    chance: float,
    average: str = MICRO,
    clusters: int = 1,
) -> dict[str, Score]:
    """One score a group, in order of first appearance.

    Args:
        correct: N x ... booleans; the answers of item i are its row.
        groups: N names.
        chance: of each group.
        average: the rule, in words.
        clusters: answers of one item, see `Accuracy.of`.
    """
    rows: dict[str, list[int]] = {}
    for row, group in enumerate(groups):
        rows.setdefault(group, []).append(row)
    return {
        group: Score(group, Accuracy.of(correct[members], clusters), chance, average)
        for group, members in rows.items()
    }


def left_out_note(missing: Sequence[str], what: str) -> str:
    """The sentence that marks scores of an incomplete benchmark."""
    return (
        f"PARTIAL: {len(missing)} {what} left out for want of their images "
        f"({_some(list(dict.fromkeys(missing)))}); not comparable with published scores"
    )


def require_present(missing: Sequence[str], what: str, total: int, allow_missing: bool) -> None:
    """Refuses to score a benchmark with holes, unless that was asked for.

    Args:
        missing: the absent image of each item that lacks it; images may repeat.
        what: the items' name, plural.
        total: all items.
        allow_missing: go on with the items that have their image, if there are any.
    """
    if not missing or (allow_missing and len(missing) < total):
        return
    files = list(dict.fromkeys(missing))
    advice = (
        "is this the right image folder?"
        if allow_missing
        else "give the right image folder, or --allow-missing to score the rest and mark it"
    )
    raise ValueError(
        f"{len(missing)} of {total} {what} lack their image: {len(files)} files are missing "
        f"({_some(files)}); {advice}"
    )


def require_folder(folder: Path | None, what: str) -> Path:
    """The image folder, or a ValueError that says how to give it."""
    if folder is None:
        raise ValueError(f"{what} needs an image folder: --benchmark {what}=DATA,IMAGES")
    if not folder.is_dir():
        raise ValueError(f"{what}: image folder {str(folder)!r} is not a folder")
    return folder


def read_json(path: Path) -> Any:
    """The value in a .json or .json.gz file."""
    try:
        data = path.read_bytes()
        return json.loads(gzip.decompress(data) if path.suffix == ".gz" else data)
    except FileNotFoundError as error:
        raise ValueError(f"{path}: no such file") from error
    except (ValueError, RecursionError, EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{path} is not readable JSON: {error}") from error


def read_jsonl(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The objects of a .jsonl file, each with its place for messages; blank lines are passed."""
    try:
        # Not splitlines: it also splits at U+2028 and its like, which may stand in JSON strings.
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a readable text file: {error}") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{path} line {number}"
        try:
            value = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise ValueError(f"{where} is not JSON: {error}") from error
        yield where, mapping(value, where)


def mapping(value: object, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{where}: a JSON object is needed, got {type(value).__name__}")
    return value


def listing(fields: Mapping[str, Any], key: str, where: str) -> list[Any]:
    value = fields.get(key)
    if not isinstance(value, list):
        raise ValueError(f"{where}: {key!r} must be a list, got {_brief(value)}")
    return value


def text(fields: Mapping[str, Any], key: str, where: str) -> str:
    """A field that must be a string with something in it; returned as it is."""
    value = fields.get(key)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{where}: {key!r} must be a non-empty string, got {_brief(value)}")
    return value


def _some(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")


def _brief(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."
