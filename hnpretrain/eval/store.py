"""Features that were computed before: within a process, and on disk.

A feature is told by what it is of (the digest of an image's bytes, or a caption's tokens) and by
the model. On disk each model has one SQLite file, so that a second evaluation, of another benchmark
with the same photos or after a kill, computes only what is new. Several processes may use one file.
"""

from __future__ import annotations

import contextlib
import hashlib
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

FORMAT = 1
_MOST_VARIABLES = 500  # of a statement; SQLite has taken 999 in all versions
_WAIT = 60.0  # seconds, for another process that writes


class FeatureStore(Protocol):
    """Keeps features: (D,) float32, by key."""

    def get(self, keys: Iterable[bytes]) -> dict[bytes, Tensor]:
        """Those that it has."""
        ...

    def put(self, features: Mapping[bytes, Tensor]) -> None:
        """Keeps more; what it has already stays."""
        ...


class InMemory:
    """For as long as the process lives."""

    def __init__(self) -> None:
        self._features: dict[bytes, Tensor] = {}

    def get(self, keys: Iterable[bytes]) -> dict[bytes, Tensor]:
        return {key: self._features[key] for key in keys if key in self._features}

    def put(self, features: Mapping[bytes, Tensor]) -> None:
        for key, feature in features.items():
            self._features.setdefault(key, feature)


class OnDisk:
    """In a file of a folder, one for each model.

    Args:
        folder: is made if it is not there.
        fingerprint: of the model (`fingerprint`).

    Raises:
        ValueError: the folder cannot be used, or the file is damaged or another program's.
    """

    def __init__(self, folder: Path, fingerprint: str) -> None:
        self.path = folder / f"features-{FORMAT}-{fingerprint}.sqlite"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with self._open() as file:
                file.execute(
                    "CREATE TABLE IF NOT EXISTS features (key BLOB PRIMARY KEY, value BLOB) "
                    "WITHOUT ROWID"
                )
        except (sqlite3.Error, OSError) as error:
            raise ValueError(f"feature cache {self.path}: {error}; delete the file") from error

    def get(self, keys: Iterable[bytes]) -> dict[bytes, Tensor]:
        wanted = list(keys)
        found: dict[bytes, Tensor] = {}
        try:
            with self._open() as file:
                for start in range(0, len(wanted), _MOST_VARIABLES):
                    some = wanted[start : start + _MOST_VARIABLES]
                    marks = ", ".join("?" * len(some))
                    rows = file.execute(
                        f"SELECT key, value FROM features WHERE key IN ({marks})", some
                    )
                    for key, value in rows:
                        found[key] = torch.from_numpy(np.frombuffer(value, np.float32).copy())
        except (sqlite3.Error, ValueError) as error:
            raise ValueError(f"feature cache {self.path}: {error}; delete the file") from error
        return found

    def put(self, features: Mapping[bytes, Tensor]) -> None:
        rows = [(key, feature.numpy().tobytes()) for key, feature in features.items()]
        try:
            with self._open() as file:
                file.executemany("INSERT OR IGNORE INTO features VALUES (?, ?)", rows)
        except sqlite3.Error as error:
            raise ValueError(f"feature cache {self.path}: {error}") from error

    @contextlib.contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """A transaction in a connection of its own: it may be used from any thread."""
        with contextlib.closing(sqlite3.connect(self.path, timeout=_WAIT)) as file, file:
            yield file


def fingerprint(model: nn.Module, *settings: object) -> str:
    """32 hex digits that two models share if they give equal features.

    Args:
        model: its weights count, by name, and its class.
        settings: what else features depend on (preprocessing, precision), by its repr.
    """
    digest = hashlib.blake2b(digest_size=16)
    digest.update(repr((FORMAT, type(model).__qualname__, *settings)).encode())
    for name, tensor in sorted(model.state_dict().items()):
        plain = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {plain.dtype} {tuple(plain.shape)}\n".encode())
        digest.update(plain.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
