"""Local folders and object stores behind one set of functions, through fsspec.

A path is a local path or any URL that fsspec knows (`s3://bucket/folder`). File systems are looked
up at each call, in the process that uses them: fsspec caches them per process, which keeps s3fs
safe in forked loader workers. Credentials and endpoints come from fsspec's configuration or the
environment, never from here.

Every request to a store is repeated, with waits in between, while it fails in a way that may pass;
one that is not answered in time has failed. What keeps failing is an OSError that names the path.
How often that was needed, `retries.counted` tells.
"""

from __future__ import annotations

import contextlib
import errno
import fnmatch
import glob
import io
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar

import fsspec
from fsspec.asyn import AsyncFileSystem
from fsspec.exceptions import FSTimeoutError
from fsspec.implementations.local import LocalFileSystem

from hnpretrain.shards import retries

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

T = TypeVar("T")

# One request of a ranged read. Large enough that S3's latency (tens of ms) is small beside the
# transfer, small enough that a retry repeats little.
_REQUEST_BYTES = 16 * 2**20
# Tries of one request; waits between them grow from _FIRST_WAIT (seconds), doubled and jittered.
# s3fs and botocore repeat what they know to pass within each try.
_ATTEMPTS = 5
_FIRST_WAIT = 0.2
# A try may take this long and, beyond that, as long as its bytes need at the slowest rate (bytes a
# second) that is not taken for a store that hangs. A listing may be of a million names.
_TRY_SECONDS = 60.0
_SLOWEST_RATE = 2**18
_LISTING_SECONDS = 600.0
# After this long there is no further try.
_PATIENCE_SECONDS = 600.0
# Errors that trying again does not mend.
_FINAL_ERRORS = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FINAL_NUMBERS = (errno.ENAMETOOLONG, *_DISK_FULL)
# What the stores call the mark that changes with a file's content, the strongest first.
_CONTENT_MARKS = ("ETag", "etag", "md5Hash", "content_md5", "checksum", "LastModified", "mtime")


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


def ask(path: str, what: str, request: Callable[..., T], seconds: float | None = None) -> T:
    """`request(file system, path inside it)`, repeated while it fails in a way that may pass.

    Args:
        path: what is asked for.
        what: the request in a word or two, for the error.
        request: called with the file system, the path inside it, and `timeout` in seconds where
            the file system can keep one.
        seconds: that one try may take; _TRY_SECONDS unless told.

    Raises:
        OSError: it failed for good, or too often. All that a store raises becomes one: s3fs
            lets botocore's own errors through (no connection, no credentials).
        ValueError: as `filesystem`.
    """
    fs, inner = filesystem(path)
    seconds = _TRY_SECONDS if seconds is None else seconds
    limit = {"timeout": seconds} if isinstance(fs, AsyncFileSystem) else {}
    begin = time.monotonic()
    for attempt in range(_ATTEMPTS):
        try:
            return request(fs, inner, **limit)
        except _FINAL_ERRORS:
            raise
        except Exception as error:
            # A store's client may also raise ValueError, of an answer that it can't read.
            final = not isinstance(error, OSError) and isinstance(fs, LocalFileSystem)
            if final or getattr(error, "errno", None) in _FINAL_NUMBERS:
                raise
            elapsed = time.monotonic() - begin
            if attempt + 1 == _ATTEMPTS or elapsed > _PATIENCE_SECONDS:
                why = "no answer" if isinstance(error, FSTimeoutError) else str(error)
                times = f"{attempt + 1} times in {elapsed:.0f} s"
                raise OSError(f"{path}: {what} failed {times}: {why}") from error
            retries.count()
            # Jitter keeps the workers of a cluster from asking again all at once.
            time.sleep(_FIRST_WAIT * 2**attempt * (0.5 + random.random()))
    raise AssertionError("unreachable: the last attempt returns or raises")


def info(path: str) -> dict[str, Any]:
    """What the file system tells of a file or folder: `type`, `size` and marks of its own.

    Raises:
        FileNotFoundError: there is neither.
    """
    return dict(ask(path, "looking", lambda fs, inner, **limit: fs.info(inner, **limit)))


def content_mark(found: Mapping[str, Any]) -> str:
    """A text of an `info` that changes with the file's content, or empty where none is told."""
    return next((str(found[name]) for name in _CONTENT_MARKS if found.get(name)), "")


def is_file(path: str) -> bool:
    return _kind(path) == "file"


def is_folder(path: str) -> bool:
    """Whether there is such a folder; on object stores, whether names begin with it and `/`."""
    return _kind(path) == "directory"


def exists(path: str) -> bool:
    return bool(_kind(path))


def _kind(path: str) -> str:
    """`file`, `directory`, what else the file system calls it, or empty if there is nothing.

    fsspec's own `isfile` takes every error for a no, and so a store that is busy for an empty one.
    """
    fs, inner = filesystem(path)
    if isinstance(fs, LocalFileSystem):  # of local paths, errors do say no: "a.jpg/b.jpg"
        kinds = {"file": fs.isfile, "directory": fs.isdir, "other": fs.exists}
        return next((kind for kind, is_it in kinds.items() if is_it(inner)), "")
    try:
        return str(info(path)["type"])
    except FileNotFoundError:
        return ""


def size(path: str) -> int:
    """Size in bytes; FileNotFoundError if there is no such file."""
    return _size(path, info(path))


def _size(path: str, found: Mapping[str, Any]) -> int:
    if found.get("size") is None:
        raise OSError(f"{path}: the store does not tell its size; copy it to one that does")
    return int(found["size"])


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
    return {name: int(found["size"]) for name, found in list_infos(folder, suffix).items()}


def list_infos(folder: str, suffix: str) -> dict[str, dict[str, Any]]:
    """Name to `info` of the files in a folder that end in `suffix`, in one request.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    files = (entry for entry in _list(folder) if entry["type"] == "file")
    infos = {_name(entry): entry for entry in files}
    return {name: found for name, found in infos.items() if name.endswith(suffix)}


def find(pattern: str) -> dict[str, dict[str, Any]]:
    """Path to `info` of the files that a pattern (`*`, `?`, `[...]`) fits, sorted.

    Folder by folder, since fsspec's own `glob` takes a listing that fails for an empty folder, and
    so loses files in silence.

    Raises:
        ValueError: the pattern has `**`.
    """
    if "**" in pattern:
        raise ValueError(f"{pattern!r}: ** is not known; give each level of folders its *")
    fs, inner = filesystem(pattern)
    parts = inner.split("/")
    plain = next((n for n, part in enumerate(parts) if glob.has_magic(part)), len(parts) - 1)
    found: dict[str, dict[str, Any]] = {"/".join(parts[:plain]) or "/": {"type": "directory"}}
    for part in parts[plain:]:
        folders = [path for path, entry in found.items() if entry["type"] == "directory"]
        found = {}
        for folder in folders:
            with contextlib.suppress(FileNotFoundError):
                for entry in _list(fs.unstrip_protocol(folder) if is_url(pattern) else folder):
                    path = entry["name"].rstrip("/")
                    if path != folder and fnmatch.fnmatchcase(_name(entry), part):
                        found[path] = entry
    files = {path: entry for path, entry in sorted(found.items()) if entry["type"] == "file"}
    if is_url(pattern):
        return {fs.unstrip_protocol(path): entry for path, entry in files.items()}
    return files


def _list(folder: str) -> list[dict[str, Any]]:
    def request(fs: Any, inner: str, **limit: float) -> list[dict[str, Any]]:
        return list(fs.ls(inner, detail=True, **limit))

    entries = ask(folder, "listing", request, _LISTING_SECONDS)
    for entry in entries:
        if entry.get("islink"):  # of a local link, only the size is that of what it leads to
            entry["type"] = _kind(entry["name"])
    return entries


def _name(entry: Mapping[str, Any]) -> str:
    return str(entry["name"]).rstrip("/").rsplit("/", 1)[-1]


def read_bytes(path: str) -> bytes:
    """The whole file."""
    if isinstance(filesystem(path)[0], LocalFileSystem):
        return _request(path, None, None)  # a pipe (`<(zcat ...)`) tells no size
    return read_range(path, 0, size(path))


def read_range(path: str, start: int, end: int) -> bytes:
    """Bytes [start, end) of a file, in large requests, each of which is repeated if it fails.

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
    def request(fs: Any, inner: str, **limit: float) -> bytes:
        retries.listen(fs)
        return bytes(fs.cat_file(inner, start=start, end=end, **limit))

    asked = end - start if start is not None and end is not None else None
    data = ask(path, f"reading at byte {start or 0}", request, _seconds_for(asked or 0))
    if asked is not None and len(data) > asked:
        raise OSError(f"{path}: the server gave {len(data)} bytes where {asked} were asked for")
    return data


def _seconds_for(size: int) -> float:
    return _TRY_SECONDS + size / _SLOWEST_RATE


class _Ranges(io.RawIOBase):
    """A remote file from front to back, request by request, so that each can be repeated."""

    def __init__(self, path: str) -> None:
        found = info(path)
        if found["type"] != "file":
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        self._path = path
        self._size = _size(path, found)
        self._mark = content_mark(found)
        self._position = 0  # of the next request
        self._part = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        if not self._part and self._position < self._size:
            end = min(self._size, self._position + _REQUEST_BYTES)
            self._part = memoryview(read_range(self._path, self._position, end))
            self._position = end
            # Requests are apart, so a file that was exchanged between them would be read as a mix.
            if end == self._size and content_mark(info(self._path)) != self._mark:
                raise OSError(f"{self._path} changed while it was read; start again")
        target = memoryview(buffer).cast("B")
        count = min(len(target), len(self._part))
        target[:count] = self._part[:count]
        self._part = self._part[count:]
        return count


@contextlib.contextmanager
def open_read(path: str) -> Iterator[IO[bytes]]:
    """A file opened for reading from front to back, on object stores in large requests.

    Raises:
        OSError: also while reading; a remote file that changes meanwhile is one.
    """
    fs, inner = filesystem(path)
    local = isinstance(fs, LocalFileSystem)
    with fs.open(inner, "rb") if local else io.BufferedReader(_Ranges(path), 2**20) as file:
        yield file


@contextlib.contextmanager
def named_if_full(place: str) -> Iterator[None]:
    """Adds the place to the errors of a full disk, which name none when a write meets it."""
    try:
        yield
    except OSError as error:
        if error.errno in _DISK_FULL and error.filename is None:
            error.filename = place
        raise


@contextlib.contextmanager
def write_whole(path: str) -> Iterator[IO[bytes]]:
    """A file that appears under its name complete, or not at all.

    Local: written beside the target under a temporary name, synced, then renamed. Elsewhere:
    written to a local temporary file without a name, which goes with this process however that
    ends, and uploaded in one call. If the block raises, nothing appears.
    """
    fs, inner = filesystem(path)
    if not isinstance(fs, LocalFileSystem):
        with named_if_full(tempfile.gettempdir()), tempfile.TemporaryFile() as file:
            yield file
            file.flush()
            source = f"/proc/self/fd/{file.fileno()}"

            def upload(fs: Any, inner: str, **limit: float) -> None:
                fs.put_file(source, inner, **limit)

            ask(path, "uploading", upload, _seconds_for(Path(source).stat().st_size))
        return
    target = Path(inner)
    with named_if_full(inner):
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        try:
            with temporary.open("wb") as beside:
                yield beside
                beside.flush()
                os.fsync(beside.fileno())
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
    with contextlib.suppress(FileNotFoundError):
        ask(path, "removing", lambda fs, inner, **limit: fs.rm_file(inner, **limit))
