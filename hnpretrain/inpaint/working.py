"""Who works on a folder: the jobs of one partition side by side, or one that wants it alone."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from hnpretrain.inpaint.folder import Folder
from hnpretrain.shards.lock import Locked, holder, locked, waited

# Held while a job looks who is there, so that of two that come at once one sees the other.
_DOOR = ".door.lock"
_ALONE = ".working-alone.lock"
# Looking takes milliseconds.
_PATIENCE_SECONDS = 60.0


@contextlib.contextmanager
def working_on(folder: Folder, part: int, parts: int) -> Iterator[None]:
    """While a job makes its part of a folder; the other parts of as many may be made meanwhile.

    Raises:
        ValueError: this part is being made, or the folder is worked on in other parts, or alone.
        OSError: the folder cannot be written.
    """
    with _working(folder, f".working-{part}-of-{parts}.lock", f"-of-{parts}.lock"):
        yield


@contextlib.contextmanager
def working_alone(folder: Folder) -> Iterator[None]:
    """While a job changes what all others rely on; errors as `working_on`."""
    with _working(folder, _ALONE, _ALONE):
        yield


@contextlib.contextmanager
def _working(folder: Folder, name: str, beside: str) -> Iterator[None]:
    """Holds a lock; those with other ends than `beside` must be free."""
    with contextlib.ExitStack() as stack:
        with waited(str(folder.root / _DOOR), lambda _: None, _PATIENCE_SECONDS):
            for path in sorted(folder.root.glob(".working-*.lock")):
                owner = None if path.name.endswith(beside) else holder(str(path))
                if owner is not None:
                    raise _in_use(folder, path, owner)
            try:
                stack.enter_context(locked(str(folder.root / name)))
            except Locked as error:
                raise _in_use(folder, Path(error.path), error.owner) from error
        yield


def _in_use(folder: Folder, path: Path, owner: str) -> ValueError:
    what = "it"
    if path.name != _ALONE:
        part, parts = path.stem.removeprefix(".working-").split("-of-")
        what = f"part {part} of {parts}"
    return ValueError(f"{folder.root}: {what} is being made by {owner}; wait for it to end")
