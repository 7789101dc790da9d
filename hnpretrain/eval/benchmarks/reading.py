"""Reading a benchmark's files: every field is checked, and what is wrong is named in one line."""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

_MOST_BYTES = 2**31  # of a file of items, unfolded

Fields = Mapping[str, Any]
"""A JSON object, or a row of a table."""


def files(folder: Path, stems: Iterable[str], what: str, suffix: str = ".json") -> dict[str, Path]:
    """A file for each stem.

    Raises:
        ValueError: some are not there; all of them are named.
    """
    found = {stem: folder / f"{stem}{suffix}" for stem in stems}
    absent = [str(path.relative_to(folder)) for path in found.values() if not path.is_file()]
    if absent:
        raise ValueError(
            f"{what}: {folder} lacks {', '.join(absent)}; its averages are over all {len(found)} "
            "files"
        )
    return found


def require_folder(folder: Path | None, what: str) -> Path:
    """The image folder, or a ValueError that says how to give it."""
    if folder is None:
        raise ValueError(f"{what} needs an image folder: --benchmark {what}=DATA,IMAGES")
    if not folder.is_dir():
        raise ValueError(f"{what}: image folder {str(folder)!r} is not a folder")
    return folder


def refuse_folder(folder: Path | None, data: Path, what: str) -> None:
    """Raises ValueError if an image folder is given with data that hold their images."""
    if folder is not None:
        raise ValueError(
            f"{what} takes no image folder, got {str(folder)!r}: its images lie in {data}"
        )


def read_json(path: Path) -> Any:
    """The value in a .json or .json.gz file."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
        if len(data) > _MOST_BYTES:
            raise ValueError(f"it holds more than {_MOST_BYTES} bytes")
        return json.loads(data)
    except FileNotFoundError as error:
        raise ValueError(f"{path}: no such file") from error
    except (ValueError, RecursionError, EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{path} is not readable JSON: {error}") from error


def read_jsonl(path: Path) -> Iterator[tuple[str, Fields]]:
    """The objects of a .jsonl file, each with its place for messages; blank lines are passed."""
    try:
        # Not splitlines: it also splits at U+2028 and its like, which may stand in JSON strings.
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except FileNotFoundError as error:
        raise ValueError(f"{path}: no such file") from error
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


def mapping(value: object, where: str) -> Fields:
    """The value, which must be a JSON object."""
    if not isinstance(value, dict):
        raise ValueError(f"{where}: a JSON object is needed, got {type(value).__name__}")
    return value


def entries(path: Path) -> Iterator[tuple[str, Any]]:
    """The values of a JSON file that is a list, each with its place for messages."""
    value = read_json(path)
    if not isinstance(value, list):
        raise ValueError(f"{path}: a list is needed, got {type(value).__name__}")
    for number, each in enumerate(value):
        yield f"{path} item {number}", each


def row(value: object, names: Sequence[str], where: str) -> Fields:
    """A list with a value for each name, by these names."""
    if not isinstance(value, list) or len(value) != len(names):
        raise ValueError(f"{where}: a list [{', '.join(names)}] is needed, got {_brief(value)}")
    return dict(zip(names, value, strict=True))


def listing(fields: Fields, key: str, where: str) -> list[Any]:
    """A field that must be a list, perhaps an empty one."""
    value = fields.get(key)
    if not isinstance(value, list):
        raise ValueError(f"{where}: {key!r} must be a list, got {_brief(value)}")
    return value


def texts(fields: Fields, key: str, where: str) -> list[str]:
    """A field that must be a list, perhaps an empty one, of strings with something in them."""
    values = listing(fields, key, where)
    named = {f"{key} {number}": value for number, value in enumerate(values)}
    return [text(named, name, where) for name in named]


def read_csv(path: Path, delimiter: str = ",") -> Iterator[tuple[str, dict[str, str]]]:
    """The rows of a table with a heading, each with its place for messages."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            for number, row in enumerate(csv.DictReader(file, delimiter=delimiter), start=2):
                yield f"{path} line {number}", row
    except FileNotFoundError as error:
        raise ValueError(f"{path}: no such file") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} is not a readable table: {error}") from error


def string(fields: Fields, key: str, where: str) -> str:
    """A field that must be a string, perhaps an empty one."""
    value = fields.get(key)
    if not isinstance(value, str):
        raise ValueError(f"{where}: {key!r} must be a string, got {_brief(value)}")
    return value


def number(fields: Fields, key: str, where: str) -> float:
    """A field that must be a number."""
    value = fields.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{where}: {key!r} must be a number, got {_brief(value)}")
    return float(value)


def whole(fields: Fields, key: str, where: str, least: int = 0) -> int:
    """A field that must be a whole number, perhaps in a string or with `.0`, as tables have it."""
    value = fields.get(key)
    digits = "" if isinstance(value, bool) else str(value).strip().removesuffix(".0")
    if not (digits.isascii() and digits.isdecimal() and int(digits) >= least):
        raise ValueError(
            f"{where}: {key!r} must be a whole number from {least}, got {_brief(value)}"
        )
    return int(digits)


def text(fields: Fields, key: str, where: str) -> str:
    """A field that must be a string with something in it; returned as it is."""
    value = fields.get(key)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{where}: {key!r} must be a non-empty string, got {_brief(value)}")
    return value


def _brief(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."
