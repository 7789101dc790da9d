"""What an output folder was made with: `build.json`, written before the first shard.

It holds all that the bytes depend on beside the source. A job with other settings is refused, with
each difference, so that no shard is ever made anew by mistake.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from hnpretrain.shards import storage
from hnpretrain.shards.marker import FORMAT
from shard_tools.folder import is_of_shard
from shard_tools.negatives import NegativeMaker
from shard_tools.settings import BuildSettings

RECORD_NAME = "build.json"
# Raised by one whenever the job gives other bytes for the same input and settings.
_VERSION = 3
# Longer values (a lexicon's hash, a list) are cut in messages.
_SHOWN = 40


def record_of(settings: BuildSettings, maker: NegativeMaker) -> dict[str, Any]:
    """All that the bytes depend on beside the source, as JSON values."""
    negatives = dict(maker.identity)
    negatives.pop("seed", None)  # it stands among the others
    value: dict[str, Any] = {
        "format": FORMAT,
        "version": _VERSION,
        "source": {"kind": settings.source.kind},
        "seed": settings.seed,
        "max_pixels": settings.max_pixels,
        "check_images": "decode" if settings.decodes else "header",
        "negatives": negatives,
    }
    if settings.source.kind != "tar":
        value["samples_per_shard"] = settings.samples_per_shard
    read: dict[str, Any] = json.loads(json.dumps(value))  # tuples become lists
    return read


def fingerprint_of(record: Mapping[str, Any]) -> str:
    """sha256 over the record; markers carry it."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def read_record(output: str) -> dict[str, Any] | None:
    """The folder's record, or None if it has none; ValueError if it can't be read."""
    path = storage.join(output, RECORD_NAME)
    try:
        value = json.loads(storage.read_bytes(path))
    except FileNotFoundError:
        return None
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(
            f"{path}: not JSON: {error}; remove the folder, or put the file back"
        ) from error
    if not isinstance(value, dict):
        raise ValueError(f"{path}: holds no settings; remove the folder, or put the file back")
    return value


def keep_record(output: str, record: Mapping[str, Any]) -> None:
    """Writes the record, unless it is there."""
    if read_record(output) != record:
        data = json.dumps(record, indent=1, sort_keys=True) + "\n"
        path = storage.join(output, RECORD_NAME)
        storage.remove_leftovers(path)
        storage.write_bytes(path, data.encode())


def differences(
    settings: BuildSettings,
    sizes: Mapping[str, int],
    maker: NegativeMaker,
    uncounted: bool = False,
) -> str:
    """How the settings differ from those of the output folder.

    Args:
        settings: the job's.
        sizes: of the folder's files, by name.
        maker: of the job's negatives.
        uncounted: whether the frequencies are still to be counted, and therefore left out.

    Returns:
        `key: there -> now; ...`, or an empty string if all is equal or no shard is there.
    """
    before = read_record(settings.output)
    if before is None:
        some = any(map(is_of_shard, sizes))
        return f"unknown, there is no {RECORD_NAME} that tells them" if some else ""
    flat, now = dict(_flatten(before, "")), dict(_flatten(record_of(settings, maker), ""))
    if uncounted:
        now["negatives.frequencies"] = flat.get("negatives.frequencies")
    return "; ".join(
        f"{key}: {_show(flat.get(key))} -> {_show(now.get(key))}"
        for key in sorted({*flat, *now})
        if flat.get(key) != now.get(key)
    )


def refuse_differences(settings: BuildSettings, found: str) -> None:
    """Raises ValueError if settings differ, unless the job is told to rebuild."""
    if found and not settings.rebuild:
        raise ValueError(
            f"output={settings.output!r} was made with other settings (there -> now): {found}. "
            "rebuild=true makes all shards anew, or choose another folder"
        )


def _flatten(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    if not isinstance(value, dict):
        yield key, value
        return
    for name, inner in value.items():
        yield from _flatten(inner, f"{key}.{name}" if key else name)


def _show(value: Any) -> str:
    text = "none" if value is None else json.dumps(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."
