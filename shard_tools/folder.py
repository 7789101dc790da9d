"""The output folder: what may be there, which shards are finished, what is removed."""

from __future__ import annotations

import dataclasses
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from fsspec.implementations.local import LocalFileSystem

from hnpretrain.shards import storage
from hnpretrain.shards.marker import Marker, marker_name, read_marker
from shard_tools.sources import SourceShard, has_appeared
from shard_tools.sources.tars import TarShard
from shard_tools.workers import cores

Item = TypeVar("Item")
Result = TypeVar("Result")

# At least so many requests to the storage at a time.
_THREADS = 16
# Names of a reason that are kept of a shard's rejects once it is built.
NAMES_SHOWN = 3
_LEFTOVER = re.compile(r"\.(.+)\.\d+\.tmp")


def check_place(output: str, shards: Sequence[SourceShard]) -> None:
    """Raises ValueError unless the output can be a folder, and another one than the source's."""
    if not output:
        raise ValueError("output is empty: set it to the folder or URL of the shards")
    if storage.is_file(output):
        raise ValueError(f"output={output!r} is a file; choose a folder")
    for shard in shards:
        if isinstance(shard, TarShard) and same_place(storage.join(output, shard.name), shard.path):
            raise ValueError(f"output={output!r} is the source's own folder; choose another")


def same_place(first: str, second: str) -> bool:
    (fs, inner), (other_fs, other) = storage.filesystem(first), storage.filesystem(second)
    if isinstance(fs, LocalFileSystem) and isinstance(other_fs, LocalFileSystem):
        return os.path.realpath(inner) == os.path.realpath(other)
    return type(fs) is type(other_fs) and inner == other


def read_sizes(output: str) -> dict[str, int]:
    """Sizes of the files in the output folder, by name; none if it is not there."""
    try:
        return storage.list_sizes(output, "")
    except FileNotFoundError:
        return {}


def is_of_shard(name: str) -> bool:
    """Whether a file is a shard or a marker, by its name."""
    return name.endswith((".tar", ".marker.json"))


def files_of(shards: Iterable[SourceShard]) -> set[str]:
    """The names of the shards' tars and markers."""
    return {name for shard in shards for name in (shard.name, marker_name(shard.name))}


def refuse_others(output: str, names: Iterable[str], shards: Sequence[SourceShard]) -> None:
    """Raises ValueError if the folder's files are of shards that this job does not make."""
    ours = files_of(shards)
    others = sorted(name for name in names if is_of_shard(name) and name not in ours)
    if others:
        shown = ", ".join(others[:3]) + (", ..." if len(others) > 3 else "")
        raise ValueError(
            f"output={output!r} holds {len(others)} files of shards that this source does not "
            f"give ({shown}); remove them or choose another folder"
        )


def finished(
    output: str, shard: SourceShard, configuration: str, sizes: Mapping[str, int]
) -> Marker | None:
    """The essentials of a shard's marker, if it agrees with tar, settings and source."""
    marker = committed(output, shard, configuration, sizes)
    if marker is None or marker.source_fingerprint != shard.fingerprint():
        return None
    # A manifest's fingerprint does not tell whether a photo that was missing is there by now.
    if not isinstance(shard, TarShard) and any(map(has_appeared, marker.rejected)):
        return None
    return essentials_of(marker)


def committed(
    output: str, shard: SourceShard, configuration: str, sizes: Mapping[str, int]
) -> Marker | None:
    """The whole marker, if it agrees with tar and settings; the source is not looked at."""
    if shard.name not in sizes or marker_name(shard.name) not in sizes:
        return None
    try:
        marker = read_marker(output, shard.name)
    except ValueError:
        return None  # of another format, or damaged: built again
    agrees = (
        marker.name == shard.name
        and marker.bytes == sizes[shard.name]
        and marker.configuration == configuration
    )
    return marker if agrees else None


def find_finished(
    output: str, shards: Sequence[SourceShard], configuration: str, sizes: Mapping[str, int]
) -> tuple[list[Marker], list[SourceShard]]:
    """The essentials of the finished shards' markers, and the shards that are not finished."""

    def look(shard: SourceShard) -> Marker | None:
        return finished(output, shard, configuration, sizes)

    found = in_threads(look, shards)
    kept = [marker for marker in found if marker is not None]
    return kept, [shard for shard, marker in zip(shards, found, strict=True) if marker is None]


def essentials_of(marker: Marker) -> Marker:
    """The marker without offsets, and with a few names a reason: all shards' are kept in memory."""
    named: Counter[str] = Counter()
    few = []
    for reject in marker.rejected:
        named[reject.reason] += 1
        if named[reject.reason] <= NAMES_SHOWN:
            few.append(reject)
    return dataclasses.replace(marker.without_samples(), rejected=tuple(few))


def remove_leftovers(output: str, names: Iterable[str], ours: Iterable[str]) -> None:
    """Removes what killed jobs left of the temporary files of `ours` among the folder's files.

    In one look at the folder: a look for each shard is slow where there are many.
    """
    targets = frozenset(ours)
    for name in names:
        match = _LEFTOVER.fullmatch(name)
        if match is not None and match[1] in targets:
            storage.remove(storage.join(output, name))


def remove(output: str, names: Iterable[str]) -> None:
    """Removes files of the folder, where they are there."""
    in_threads(lambda name: storage.remove(storage.join(output, name)), list(names))


def in_threads(work: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """`work` of all items, in their order; it waits for storage, or hashes, without the GIL."""
    with ThreadPoolExecutor(max(_THREADS, cores())) as pool:
        return list(pool.map(work, items))
