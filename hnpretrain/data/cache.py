"""Shards on the node's own disk, shared by all workers and ranks there.

1. A shard is downloaded whole into `SHA256.part`, whose lock says who is at it; others wait, for
   minutes at most: a store that hangs must not hold up whoever needs the shard one after another.
2. With the right size and sha256 it becomes `SHA256.tar`. The name is that of the content, so that
   data sets share shards, and another build never finds an old one's.
3. Room is made by removing what has not been read for the longest time. Whoever has a file open
   reads on: its bytes go when it is closed.

The kernel holds the locks (flock): they are free the moment their process is gone, however that
ended, and who comes next begins the download anew. Nothing here is needed: what the cache cannot
give is read from the store, and nothing is copied for some minutes to a disk that has failed.

fsspec's own file caches know neither a size limit nor locks between processes nor checksums.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import math
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from hnpretrain.shards import storage

# A stream comes back to its shard for each block. What was read within this time (seconds) is not
# removed: a cache too small for what is being read would else be filled anew for every block.
_IN_USE_SECONDS = 600.0
_CHUNK_BYTES = 16 * 2**20
# After this time (seconds) a shard that could not be had, or a disk that failed, is tried again.
_AGAIN_SECONDS = 300.0
# A shard that is not here after this time (seconds) is read from the store, which may take as long
# again: all that a step waits for has to be done within the ranks' `collective_timeout`.
_PATIENCE_SECONDS = 300.0
_ASK_AGAIN_SECONDS = 0.02
_AGAIN = f"{_AGAIN_SECONDS / 60:g} minutes"


class ShardCache:
    """A cache in one folder; each process has its own object, and threads may share it.

    Args:
        folder: on a local disk; made if it is missing.
        limit: bytes that the shards in it may take.
    """

    def __init__(self, folder: str, limit: float) -> None:
        self._folder = Path(folder)
        self._limit = limit
        self._no_copies_until = 0.0
        self._passed_over: dict[str, float] = {}  # shards that could not be had whole, until when
        self._notes: list[str] = []
        self._is_told_of_size = False
        with self._no_copies_after_errors():
            self._folder.mkdir(parents=True, exist_ok=True)
            self._remove_leftovers()

    def notes(self) -> list[str]:
        """What people should know of and were not told yet."""
        notes, self._notes = self._notes, []
        return notes

    def read_range(self, path: str, size: int, sha256: str, start: int, end: int) -> bytes | None:
        """Bytes [start, end) of a shard, which is downloaded first if it is not here.

        Args:
            path: the shard, where it comes from.
            size, sha256: what it must be.

        Returns:
            None if the cache cannot give them: the store has to.
        """
        with self._no_copies_after_errors():
            if not self._target(sha256).exists() and not self._download(path, size, sha256):
                return None
            try:
                with self._target(sha256).open("rb") as file:
                    with contextlib.suppress(OSError):  # another user's, or a disk to be read only
                        os.utime(file.fileno())  # it was read just now
                    file.seek(start)
                    data = file.read(end - start)
            except FileNotFoundError:
                return None  # removed in this moment
            if len(data) == end - start:
                return data
            self.forget(sha256)
        return None

    def forget(self, sha256: str) -> None:
        """Removes a copy that has turned out to be damaged."""
        with self._no_copies_after_errors():
            self._target(sha256).unlink(missing_ok=True)

    def _target(self, sha256: str) -> Path:
        return self._folder / f"{sha256}.tar"

    def _download(self, path: str, size: int, sha256: str) -> bool:
        """Whether the shard is here now."""
        if self._is_passed_over(sha256):
            return False
        deadline = time.monotonic() + _PATIENCE_SECONDS
        self._folder.mkdir(parents=True, exist_ok=True)
        target, part = self._target(sha256), self._folder / f"{sha256}.part"
        with _locked(part, deadline) as number:
            if number is None:
                return False  # others are at it still
            # While this holds the lock, nobody else removes or renames the part.
            is_whole = False
            try:
                if target.exists():  # another process was at it
                    return True
                if self._is_passed_over(sha256):  # another thread was, in vain
                    return False
                is_whole = self._make_room(number, size) and self._fill(
                    number, path, size, sha256, deadline
                )
                if is_whole:
                    part.replace(target)
            finally:
                if not is_whole:
                    part.unlink()
        return is_whole

    def _is_passed_over(self, sha256: str) -> bool:
        until = max(self._no_copies_until, self._passed_over.get(sha256, 0.0))
        return time.monotonic() < until

    def _fill(self, number: int, path: str, size: int, sha256: str, deadline: float) -> bool:
        """Whether the whole shard is in the open file now; OSErrors are those of this disk.

        Args:
            deadline: after it no further part is asked for.
        """
        digest = hashlib.sha256()
        for start in range(0, size, _CHUNK_BYTES):
            if time.monotonic() > deadline:
                minutes = _PATIENCE_SECONDS / 60
                why = f"{start} of its {size} bytes came within {minutes:g} minutes"
                self._pass_over(path, sha256, why)
                return False
            try:
                data = storage.read_range(path, start, min(size, start + _CHUNK_BYTES))
            except (OSError, ValueError) as error:
                # The part that is needed may be readable; if not, reading it tells what is wrong.
                self._pass_over(path, sha256, str(error))
                return False
            digest.update(data)
            _write(number, data, start)
        if digest.hexdigest() != sha256:
            self._pass_over(path, sha256, "its sha256 is not that in the index")
            return False
        return True

    def _pass_over(self, path: str, sha256: str, why: str) -> None:
        self._passed_over[sha256] = time.monotonic() + _AGAIN_SECONDS
        self._note(f"no copy of {path} for {_AGAIN}: {' '.join(why.split())}")

    def _make_room(self, number: int, size: int) -> bool:
        """Whether there is room for a shard, which is then reserved in the open file."""
        if size > self._limit:
            if not self._is_told_of_size:
                self._is_told_of_size = True
                self._note(f"shards larger than data.cache_gb={self._limit / 1e9:g} are not kept")
            return False
        with _locked(self._folder / "lock"):
            own = os.fstat(number).st_ino
            files = [
                (file, found)
                for file in self._folder.glob("*.tar")
                if (found := _stat(file))  # `forget` takes no lock
            ]
            parts = [found for part in self._folder.glob("*.part") if (found := _stat(part))]
            taken = sum(found.st_size for _, found in files)
            taken += sum(found.st_size for found in parts if found.st_ino != own)
            for file, found in sorted(files, key=lambda pair: pair[1].st_mtime):
                if taken + size <= self._limit or found.st_mtime > time.time() - _IN_USE_SECONDS:
                    break
                file.unlink(missing_ok=True)
                taken -= found.st_size
            if taken + size > self._limit:
                return False
            # A full disk shows here, before anything is read in vain.
            os.posix_fallocate(number, 0, size)
        return True

    def _remove_leftovers(self) -> None:
        """Removes the parts whose processes are gone: nobody holds their locks."""
        for part in self._folder.glob("*.part"):
            with contextlib.suppress(BlockingIOError, FileNotFoundError), part.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _is_at(part, file.fileno()):
                    part.unlink()

    @contextlib.contextmanager
    def _no_copies_after_errors(self) -> Iterator[None]:
        """Inside, an error of this disk is told; what is copied already can be read still."""
        try:
            yield
        except OSError as error:
            # Other threads may be at it, and fail too.
            is_told = time.monotonic() < self._no_copies_until
            self._no_copies_until = time.monotonic() + _AGAIN_SECONDS
            if not is_told:
                # Without the name of the file, since one reason is told once.
                why = f"[Errno {error.errno}] {error.strerror}" if error.strerror else str(error)
                self._note(f"nothing more is copied for {_AGAIN}: {why}")

    def _note(self, text: str) -> None:
        self._notes.append(f"data.cache={self._folder} on {socket.gethostname()}: {text}")


def _write(number: int, data: bytes, start: int) -> None:
    left = memoryview(data)
    while left:
        written = os.pwrite(number, left, start)
        left, start = left[written:], start + written


@contextlib.contextmanager
def _locked(path: Path, deadline: float = math.inf) -> Iterator[int | None]:
    """The descriptor of a file that is made if it is missing, and locked; waits for others.

    None if they have it at the deadline still.
    """
    while True:
        number = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            while not _lock(number):
                if time.monotonic() > deadline:
                    yield None
                    return
                time.sleep(_ASK_AGAIN_SECONDS)
            # Who had it before may have removed or renamed it, and a third may have made another.
            if _is_at(path, number):
                yield number
                return
        finally:
            os.close(number)


def _lock(number: int) -> bool:
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_at(path: Path, number: int) -> bool:
    found = _stat(path)
    return found is not None and found.st_ino == os.fstat(number).st_ino


def _stat(path: Path) -> os.stat_result | None:
    """None where there is no such file (any more)."""
    try:
        return path.stat()
    except FileNotFoundError:
        return None
