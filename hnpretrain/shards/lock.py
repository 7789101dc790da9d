"""Locks beside the data, so that two jobs never work on one thing: a file or object says who works.

On a file system the kernel holds the lock (flock): it is free the moment its process is gone,
however that ended. Where there is no flock (an object store, some cluster file systems) the lock is
an object that says when its holder was last alive; the holder refreshes it every _BEAT_SECONDS. It
counts as left behind after _STALE_SECONDS without a beat, and at once if its process ran on this
machine and is gone. For this the machines' clocks must agree to a minute.

`locked` has a lock at once or raises; `waited` waits for it, but not for ever.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import secrets
import socket
import tempfile
import threading
import time
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

from fsspec.implementations.local import LocalFileSystem

from hnpretrain.shards import storage

_BEAT_SECONDS = 15.0
_STALE_SECONDS = 120.0
_OBJECT_BYTES = 1024
_ASK_AGAIN_SECONDS = 1.0
# Longer than anything takes that others wait for: who waited so long is told, not left to hang.
_PATIENCE_SECONDS = 6 * 3600.0
# Between opening a lock file and locking it, its holder may remove it; more often than this in a
# row it can't.
_TRIES = 100
# What flock says where the file system has no such thing.
_NO_FLOCK = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)


@dataclass(frozen=True)
class Owner:
    """Who holds a lock.

    Attributes:
        host: the machine's name.
        pid: its process.
        namespace: of that process id; the same number means another process in another container.
        since: when the lock was taken, seconds since 1970.
        token: drawn at random, tells this holder from all others.
    """

    host: str
    pid: int
    namespace: str
    since: float
    token: str

    @classmethod
    def this(cls) -> Owner:
        return cls(
            socket.gethostname(), os.getpid(), _pid_namespace(), time.time(), secrets.token_hex(8)
        )

    def __str__(self) -> str:
        since = datetime.fromtimestamp(self.since, UTC)
        return f"process {self.pid} on {self.host} since {since:%Y-%m-%d %H:%M:%S} UTC"

    def is_gone(self) -> bool:
        """Whether it ran on this machine and has ended."""
        if (self.host, self.namespace) != (socket.gethostname(), _pid_namespace()):
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            return False  # another user's, and alive
        return False


class Locked(OSError):
    """The lock is another's.

    Attributes:
        path: of the lock.
        owner: who has it, for people.
    """

    def __init__(self, path: str, owner: str) -> None:
        super().__init__(f"{path} is held by {owner}")
        self.path = path
        self.owner = owner


class Hold(ABC):
    """A lock that this process holds."""

    @abstractmethod
    def check(self) -> None:
        """Raises OSError if the lock was lost meanwhile."""

    @abstractmethod
    def release(self) -> None:
        """Frees the lock, and removes its file or object."""


@contextlib.contextmanager
def locked(path: str) -> Iterator[Hold]:
    """Holds the lock at a path or URL; its folder is made, and removed again if it stays empty.

    Raises:
        Locked: another process has it.
        OSError: the storage failed.
    """
    with _folder_of(path):
        hold = _acquire(path)
        try:
            yield hold
        finally:
            hold.release()


@contextlib.contextmanager
def waited(path: str, tell: Callable[[str], None], patience: float | None = None) -> Iterator[Hold]:
    """As `locked`, but waits while another process has it.

    Args:
        path: of the lock.
        tell: called every _ASK_AGAIN_SECONDS with who has it.
        patience: seconds to wait; _PATIENCE_SECONDS unless told.

    Raises:
        OSError: it was not free for so long; or the storage failed.
    """
    patience = _PATIENCE_SECONDS if patience is None else patience
    deadline = time.monotonic() + patience
    with contextlib.ExitStack() as stack:
        while True:
            try:
                hold = stack.enter_context(locked(path))
                break
            except Locked as error:
                if time.monotonic() > deadline:
                    minutes = patience / 60
                    raise OSError(
                        f"{error}, for {minutes:.0f} min now; see what it does"
                    ) from error
                tell(error.owner)
                time.sleep(_ASK_AGAIN_SECONDS)
        yield hold


def holder(path: str) -> str | None:
    """Who holds the lock at a path, or None if nobody does; a lock left behind is nobody's."""
    local = _local(path)
    if local is not None:
        try:
            with local.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return None
        except FileNotFoundError:
            return None
        except BlockingIOError:
            return _kernel_owner(local)
        except OSError as error:
            if error.errno not in _NO_FLOCK:
                raise
    beat = _read_beat(path)
    return None if beat is None or beat.is_stale() else str(beat.owner)


def _acquire(path: str) -> Hold:
    local = _local(path)
    if local is not None and _has_flock(local.parent):
        return _KernelHold(local)
    return _BeatingHold(path)


def _local(path: str) -> Path | None:
    """The path of a local file, or None behind a URL."""
    fs, inner = storage.filesystem(path)
    return Path(inner) if isinstance(fs, LocalFileSystem) else None


@contextlib.contextmanager
def _folder_of(path: str) -> Iterator[None]:
    """A local path's folder, which is made, and removed again if nothing has come into it."""
    local = _local(path)
    if local is None or local.parent.exists():
        yield
        return
    local.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # it is not empty
            local.parent.rmdir()


def _has_flock(folder: Path) -> bool:
    with tempfile.TemporaryFile(dir=folder) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno in _NO_FLOCK:
                return False
            raise
    return True


class _KernelHold(Hold):
    """flock on a file, which says who has it.

    It ends with this process: forked children, which would else keep it, leave it at once.
    """

    _in_this_process: ClassVar[weakref.WeakSet[_KernelHold]] = weakref.WeakSet()

    def __init__(self, path: Path) -> None:
        self._path = path
        for _ in range(_TRIES):
            self._file = path.open("a+b")
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self._file.close()
                raise Locked(str(path), _kernel_owner(path)) from None
            if self._is_at_path():
                break
            self._file.close()  # its last holder removed it meanwhile
        else:
            raise OSError(f"{path}: removed {_TRIES} times while it was being locked")
        self._file.truncate(0)
        self._file.write(json.dumps(asdict(Owner.this())).encode())
        self._file.flush()
        self._in_this_process.add(self)

    @classmethod
    def leave(cls) -> None:
        """Closes the files of all locks, which frees those that no other process has open."""
        for hold in cls._in_this_process:
            hold._file.close()

    def _is_at_path(self) -> bool:
        try:
            return os.path.samestat(self._path.stat(), os.fstat(self._file.fileno()))
        except FileNotFoundError:
            return False

    def check(self) -> None:
        pass  # the kernel keeps it

    def release(self) -> None:
        self._path.unlink(missing_ok=True)
        self._file.close()


os.register_at_fork(after_in_child=_KernelHold.leave)


def _kernel_owner(path: Path) -> str:
    try:
        return str(_owner(json.loads(path.read_bytes())))
    except (OSError, ValueError):
        return "another process"  # which has not yet written its name, or has just ended


@dataclass(frozen=True)
class _Beat:
    """What the object says: its holder, and when that was last alive (seconds since 1970)."""

    owner: Owner
    beat: float

    def to_bytes(self) -> bytes:
        # Of one length: a reader that has asked for the size may get the next beat's content.
        data = json.dumps({"owner": asdict(self.owner), "beat": self.beat}).encode()
        return data.ljust(_OBJECT_BYTES)

    def is_stale(self) -> bool:
        return time.time() - self.beat > _STALE_SECONDS or self.owner.is_gone()

    def __str__(self) -> str:
        silent = max(0.0, time.time() - self.beat)
        return (
            f"{self.owner} (last sign of life {silent:.0f} s ago; it counts as dead after "
            f"{_STALE_SECONDS:.0f} s)"
        )


class _BeatingHold(Hold):
    """An object that a thread refreshes."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._owner = Owner.this()
        self._lost: str | None = None
        self._released = threading.Event()
        before = _read_beat(path)
        if before is not None:
            if not before.is_stale():
                raise Locked(path, str(before))
            storage.remove(path)
        self._create()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()

    def _create(self) -> None:
        """Writes the object, unless there is one."""

        def create(fs: Any, inner: str, **limit: float) -> None:
            try:
                if isinstance(fs, LocalFileSystem):
                    self._link(Path(inner))  # fsspec's own is neither exclusive nor whole
                else:
                    fs.pipe_file(inner, self._bytes(), mode="create", **limit)
            except Exception:  # stores have many names for "it is there already"
                if _read_beat(self._path) is None:
                    raise

        storage.ask(self._path, "locking", create)
        # The object tells who has it, not the answer: that of an earlier try may have been lost.
        # Where a store knows no exclusive write, two may begin at once: the last one has it.
        found = _read_beat(self._path)
        if found is None:
            raise OSError(f"{self._path} was removed as soon as it was written")
        if found.owner != self._owner:
            raise Locked(self._path, str(found))

    def _link(self, path: Path) -> None:
        """The file appears whole, or FileExistsError."""
        beside = path.with_name(f".{path.name}.{self._owner.token}.tmp")
        try:
            beside.write_bytes(self._bytes())
            os.link(beside, path)
        finally:
            beside.unlink(missing_ok=True)

    def _bytes(self) -> bytes:
        return _Beat(self._owner, time.time()).to_bytes()

    def _look(self) -> None:
        found = _read_beat(self._path)
        if found is None:
            self._lost = "nobody: it was removed"
        elif found.owner.token != self._owner.token:
            self._lost = str(found)

    def _beat(self) -> None:
        while self._lost is None and not self._released.wait(_BEAT_SECONDS):
            with contextlib.suppress(OSError):  # the next beat tries again
                self._look()
                if self._lost is None:
                    storage.write_bytes(self._path, self._bytes())

    def check(self) -> None:
        if self._lost is not None:
            raise OSError(f"{self._path} was lost, it is now held by {self._lost}")

    def release(self) -> None:
        self._released.set()
        self._thread.join()
        with contextlib.suppress(OSError):  # left behind, it will be stale
            self._look()
            if self._lost is None:
                storage.remove(self._path)


def _read_beat(path: str) -> _Beat | None:
    """What a lock object says, or None if there is none."""
    try:
        data = storage.read_bytes(path)
    except FileNotFoundError:
        return None
    try:
        value = json.loads(data)
        return _Beat(_owner(value["owner"]), float(value["beat"]))
    except (ValueError, TypeError, KeyError):
        raise OSError(f"{path} is no lock that this version knows; remove it by hand") from None


def _owner(value: dict[str, Any]) -> Owner:
    try:
        return Owner(**value)
    except TypeError as error:
        raise ValueError(f"no owner of a lock: {error}") from error


def _pid_namespace() -> str:
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""  # no /proc
