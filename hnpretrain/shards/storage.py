"""Local folders and object stores behind one set of functions, through fsspec.

A path is a local path or any URL that fsspec knows (`s3://bucket/folder`). File systems are looked
up at each call, in the process that uses them: fsspec caches them per process, which keeps s3fs
safe in forked loader workers. Credentials and endpoints come from fsspec's configuration or the
environment, never from here.
"""

from __future__ import annotations

import contextlib
import glob
import os
import random
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

# One request of a ranged read. Large enough that S3's latency (tens of ms) is small beside the
# transfer, small enough that a retry repeats little.
_REQUEST_BYTES = 16 * 2**20
# Tries of one request; waits between them grow from 0.2 s, doubled and jittered.
_ATTEMPTS = 5
_FINAL_ERRORS = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)


def join(folder: str, name: str) -> str:
    """`folder/name`, for local paths and URLs alike."""
    return f"{folder.rstrip('/')}/{name}" if folder else name


def is_url(path: str) -> bool:
    return "://" in path


def filesystem(path: str) -> tuple[Any, str]:
    """The fsspec file system of a path, and the path inside it.

    Raises:
        ValueError: the scheme is unknown, or starts a shell (`pipe:`), which data must never do.
    """
    if path.startswith("pipe:"):
        raise ValueError(f"{path!r}: pipe: URLs run a shell and are refused; use a file or s3://")
    try:
        # Cached listings hide what other processes have written since (the job's workers).
        return fsspec.core.url_to_fs(path, use_listings_cache=False)
    except (ValueError, ImportError) as error:
        raise ValueError(f"{path!r}: {error}") from error


@contextlib.contextmanager
def connected(path: str) -> Iterator[tuple[Any, str]]:
    """`filesystem`, with all of a remote store's errors as OSError.

    s3fs lets botocore's own errors through (no connection, no credentials), which are none.
    """
    fs, inner = filesystem(path)
    try:
        yield fs, inner
    except (OSError, ValueError):
        raise
    except Exception as error:
        if isinstance(fs, LocalFileSystem):
            raise
        raise OSError(f"{path}: {error}") from error


def is_file(path: str) -> bool:
    with connected(path) as (fs, inner):
        return bool(fs.isfile(inner))


def exists(path: str) -> bool:
    with connected(path) as (fs, inner):
        return bool(fs.exists(inner))


def is_folder(path: str) -> bool:
    """Whether there is such a folder; on object stores, whether any name begins with it."""
    with connected(path) as (fs, inner):
        return bool(fs.isdir(inner))


def size(path: str) -> int:
    """Size in bytes; FileNotFoundError if there is no such file."""
    with connected(path) as (fs, inner):
        return int(fs.size(inner))


def list_files(folder: str, suffix: str) -> list[str]:
    """Names (not paths) of the files in a folder that end in `suffix`, sorted.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    return sorted(list_sizes(folder, suffix))


def list_sizes(folder: str, suffix: str) -> dict[str, int]:
    """Name to size in bytes of the files in a folder that end in `suffix`, in one request.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    with connected(folder) as (fs, inner):
        entries = fs.ls(inner, detail=True)
    files = (entry for entry in entries if entry["type"] == "file")
    sizes = {entry["name"].rsplit("/", 1)[-1]: int(entry["size"]) for entry in files}
    return {name: size for name, size in sizes.items() if name.endswith(suffix)}


def read_bytes(path: str) -> bytes:
    """The whole file, with retries."""
    return _request(path, None, None)


def read_range(path: str, start: int, end: int) -> bytes:
    """Bytes [start, end) of a file; failed requests are retried from the byte reached.

    Raises:
        OSError: the file is missing, shorter than `end`, or kept failing.
    """
    parts = []
    while start < end:
        part = _request(path, start, min(end, start + _REQUEST_BYTES))
        if not part:
            raise OSError(f"{path}: ends at byte {start}, but {end} bytes were expected")
        parts.append(part)
        start += len(part)
    return b"".join(parts)


def _request(path: str, start: int | None, end: int | None) -> bytes:
    for attempt in range(_ATTEMPTS):
        try:
            with connected(path) as (fs, inner):
                return bytes(fs.cat_file(inner, start=start, end=end))
        except _FINAL_ERRORS:
            raise
        except OSError as error:
            if attempt + 1 == _ATTEMPTS:
                raise OSError(
                    f"{path}: {_ATTEMPTS} reads at byte {start or 0} failed: {error}"
                ) from error
            # Jitter keeps the workers of a cluster from asking again all at once.
            time.sleep(0.2 * 2**attempt * (0.5 + random.random()))
    raise AssertionError("unreachable: the last attempt returns or raises")


@contextlib.contextmanager
def open_read(path: str) -> Iterator[IO[bytes]]:
    """A file opened for sequential reading, with read-ahead that suits object stores.

    What a remote store raises inside the block becomes an OSError, as in `connected`: reading fails
    in as many ways as opening.
    """
    # Local files take no cache options; remote ones would default to small cached blocks.
    options = {"cache_type": "readahead", "block_size": _REQUEST_BYTES} if is_url(path) else {}
    with connected(path) as (fs, inner), fs.open(inner, "rb", **options) as file:
        yield file


@contextlib.contextmanager
def write_whole(path: str) -> Iterator[IO[bytes]]:
    """A file that appears under its name complete, or not at all.

    Local: written beside the target under a temporary name, synced, then renamed. Elsewhere:
    written to a local temporary file and uploaded in one call. If the block raises, nothing
    appears.
    """
    fs, inner = filesystem(path)
    if not isinstance(fs, LocalFileSystem):
        with tempfile.NamedTemporaryFile(prefix="hnpretrain-") as file:
            yield file
            file.flush()
            with connected(path):
                fs.put_file(file.name, inner)
        return
    target = Path(inner)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: str, data: bytes) -> None:
    """Writes a small file whole (see `write_whole`)."""
    with write_whole(path) as file:
        file.write(data)


def remove_leftovers(path: str) -> None:
    """Removes the temporary files that killed writers of this (local) path left beside it."""
    fs, inner = filesystem(path)
    if isinstance(fs, LocalFileSystem):
        target = Path(inner)
        for leftover in target.parent.glob(f".{glob.escape(target.name)}.*.tmp"):
            leftover.unlink(missing_ok=True)


def remove(path: str) -> None:
    """Removes a file if it is there."""
    with connected(path) as (fs, inner):
        if fs.exists(inner):
            fs.rm_file(inner)
