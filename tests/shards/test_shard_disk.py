"""A disk that fills up: one line, nothing half-visible, and the job goes on once there is room."""

from __future__ import annotations

import errno
import io
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shard_tools import writer
from shard_tools.job import build
from tests.shards.conftest import PHOTOS, Ran, folder_bytes, photos_settings


class _FullDisk(io.FileIO):
    """A file on a disk that is full after its first bytes."""

    room = 100

    def write(self, data: Any, /) -> int:
        self.room -= len(data)
        if self.room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(data) or 0


def fill_for(monkeypatch: pytest.MonkeyPatch, part: str) -> str:
    """Lets the disk be full for the writing of one part of a shard; returns the place it names."""
    if part == "spool":

        class Spool(tempfile.SpooledTemporaryFile[bytes]):
            def rollover(self) -> None:
                super().rollover()
                full = _FullDisk(os.dup(self._file.fileno()), "r+b")  # type: ignore[attr-defined]
                self._file = io.BufferedRandom(full)  # type: ignore[assignment]

        monkeypatch.setattr(writer, "SPOOL_BYTES", 1000)
        monkeypatch.setattr(tempfile, "SpooledTemporaryFile", Spool)
        return tempfile.gettempdir()
    opened = Path.open

    def open_path(path: Path, mode: str = "r", **options: Any) -> Any:
        if mode == "wb" and path.name.startswith(f".{part}."):
            return io.BufferedWriter(_FullDisk(path, "wb"))
        return opened(path, mode, **options)

    monkeypatch.setattr(Path, "open", open_path)
    return part


@pytest.mark.parametrize("part", ["spool", "00001.tar", "00001.marker.json", "index.json"])
def test_a_disk_that_fills_up(
    tmp_path: Path,
    few_photos: Path,
    command: Callable[..., Ran],
    monkeypatch: pytest.MonkeyPatch,
    part: str,
) -> None:
    build(photos_settings(tmp_path / "good", few_photos, samples_per_shard=4))
    out = tmp_path / "out"
    arguments = (
        "shard", "build", "source.kind=jsonl", f"source.path={few_photos}",
        f"source.images={PHOTOS}", f"output={out}", "samples_per_shard=4", "workers=1",
    )  # fmt: skip
    with monkeypatch.context() as full:
        place = fill_for(full, part)
        ran = command(*arguments)
    assert ran.status == 1
    error = ran.err.splitlines()[-1]
    assert error.startswith("error: [Errno 28] No space left on device: ")
    assert place in error
    assert "Traceback" not in ran.err
    there, good = folder_bytes(out) if out.exists() else {}, folder_bytes(tmp_path / "good")
    assert there.items() <= good.items()  # nothing half-written, no temporary file
    assert part not in there
    assert "index.json" not in there

    assert command(*arguments).status == 0
    assert folder_bytes(out) == good


def test_a_real_disk_of_one_megabyte(tmp_path: Path) -> None:
    """In a mount namespace of its own, where that is allowed."""
    namespace = ["unshare", "--map-root-user", "--mount"]
    if not shutil.which("unshare") or subprocess.run([*namespace, "true"]).returncode:
        pytest.skip("no mount namespaces here")
    build(photos_settings(tmp_path / "good", samples_per_shard=10))
    job = [
        sys.executable, "-m", "hnpretrain.cli", "shard", "build", "source.kind=jsonl",
        f"source.path={PHOTOS / 'data.jsonl'}", "samples_per_shard=10", "workers=2",
    ]  # fmt: skip
    script = """
        mount -t tmpfs -o size=1m tmpfs "$1" && shift
        "$@"; echo "status $?"
        mount -o remount,size=100m "$DISK"; mkdir -p "$COPY"
        cp -a "$DISK/shards/." "$COPY/full"; "$@"; echo "status $?"; cp -a "$DISK/shards" "$COPY"
    """
    disk, copy = tmp_path / "disk", tmp_path / "copy"
    disk.mkdir()
    ran = subprocess.run(
        [*namespace, "sh", "-c", script, "sh", str(disk), *job, f"output={disk}/shards"],
        env={**os.environ, "DISK": str(disk), "COPY": str(copy)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    lines = [line for line in ran.stdout.splitlines() if line.startswith("status")]
    assert lines == ["status 1", "status 0"], ran.stderr
    errors = [line for line in ran.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert errors[0].startswith(f"error: [Errno 28] No space left on device: '{disk}/shards/")
    good, full = folder_bytes(tmp_path / "good"), folder_bytes(copy / "full")
    assert 0 < len(full) < len(good)
    assert full.items() <= good.items()
    assert folder_bytes(copy / "shards") == good
