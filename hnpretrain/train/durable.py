"""Files of a checkpoint that are on the disk when the checkpoint is said to be there.

DeepSpeed writes its files without waiting for the disk, and a rank whose disk is full raises while
the others wait for it. Here each rank's files are synced as soon as they are written, and what goes
wrong is kept until the ranks can talk about it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

# What torch and safetensors raise where a file cannot be written.
WRITE_ERRORS = (OSError, RuntimeError, SafetensorError)


def sync(path: Path) -> None:
    """Waits until a file or a folder's list of files is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def durable_writes(engine: DeepSpeedEngine) -> Iterator[list[Exception]]:
    """Inside, what the engine writes on this rank is synced, and errors are kept and not raised.

    Yields:
        The errors so far. After the first one nothing more is written.
    """
    files = engine.checkpoint_engine
    errors: list[Exception] = []
    save, makedirs = files.save, files.makedirs

    def kept(write: Callable[[], None], made: Path) -> None:
        if errors:
            return
        try:
            write()
            sync(made)
            sync(made.parent)
        except WRITE_ERRORS as error:
            errors.append(error)

    def save_synced(state_dict: Any, path: str) -> None:
        kept(lambda: save(state_dict, path), Path(path))

    def make_synced(path: str, exist_ok: bool = False) -> None:
        kept(lambda: makedirs(path, exist_ok=exist_ok), Path(path))

    files.save, files.makedirs = save_synced, make_synced
    # `hnpretrain export` makes plain weights; DeepSpeed's script for it would be one more file that
    # a full disk can refuse.
    engine._copy_recovery_script = _nothing
    try:
        yield errors
    finally:
        del files.save, files.makedirs, engine._copy_recovery_script


def _nothing(*_: Any) -> None:
    pass
