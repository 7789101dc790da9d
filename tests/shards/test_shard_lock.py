"""Locks: had by one, free when its holder is gone, lost when another took it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from hnpretrain.shards import lock, storage
from hnpretrain.shards.lock import Hold, Locked, Owner, holder, locked, waited

HOLDING = """
import sys, time
from hnpretrain.shards.lock import locked
with locked(sys.argv[1]):
    print("held", flush=True)
    time.sleep(600)
"""


def hold_elsewhere(path: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDING, path], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


FORKING = """
import multiprocessing, sys, time
from hnpretrain.shards.lock import locked
with locked(sys.argv[1]):
    child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(600,))
    child.start()
    print("held", child.pid, flush=True)
    time.sleep(600)
"""


@pytest.fixture
def store(tmp_path: Path) -> Iterator[str]:
    """A folder of a file system that knows no flock."""
    folder = f"memory://{tmp_path}"
    yield folder
    fs, inner = storage.filesystem(folder)
    if fs.exists(inner):
        fs.rm(inner, recursive=True)


@pytest.fixture
def fast_beats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "_BEAT_SECONDS", 0.02)


def test_children_that_outlive_their_parent_hold_nothing(tmp_path: Path) -> None:
    """A training's loader processes may wait for a store that hangs."""
    path = str(tmp_path / "lock")
    process = subprocess.Popen(
        [sys.executable, "-c", FORKING, path], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    child = int(process.stdout.readline().removeprefix("held "))
    try:
        assert str(process.pid) in str(holder(path))
        process.kill()
        process.wait()
        until(lambda: holder(path) is None)  # the child may not have run yet
        os.kill(child, 0)  # it lives
    finally:
        os.kill(child, signal.SIGKILL)
        process.communicate()


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def leave_behind(path: str, owner: Owner, beat: float) -> None:
    """A lock object as a holder leaves it that could not remove it."""
    storage.write_bytes(path, lock._Beat(owner, beat).to_bytes())


def test_a_killed_holder_s_lock_is_free_at_once(tmp_path: Path) -> None:
    path = str(tmp_path / "new" / ".lock")
    process = hold_elsewhere(path)
    owner = rf"process {process.pid} on {socket.gethostname()} since 20\d\d-"
    with pytest.raises(Locked, match=owner), locked(path):
        pass
    assert (holder(path) or "").startswith(f"process {process.pid} on ")
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (tmp_path / "new" / ".lock").exists()
    assert holder(path) is None
    with locked(path):
        assert (holder(path) or "").startswith(f"process {os.getpid()} on ")
    assert not (tmp_path / "new" / ".lock").exists()


def test_a_folder_that_a_lock_made_goes_with_it(tmp_path: Path) -> None:
    with locked(str(tmp_path / "a" / ".lock")):
        pass
    assert not (tmp_path / "a").exists()
    (tmp_path / "b").mkdir()
    with locked(str(tmp_path / "b" / ".lock")):
        pass
    assert (tmp_path / "b").exists()


@pytest.mark.parametrize("place", ["file system", "store"])
def test_of_many_that_begin_together_one_has_it(tmp_path: Path, bucket: str, place: str) -> None:
    path = str(tmp_path / ".lock") if place == "file system" else f"{bucket}/locks/.lock"
    ready = threading.Barrier(8)
    tried = threading.Barrier(8)

    def attempt(_: int) -> bool:
        ready.wait()
        try:
            with locked(path):
                tried.wait()
                return True
        except Locked:
            tried.wait()
            return False

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(attempt, range(8))) == 1
    assert not storage.exists(path)


def test_a_lock_in_a_store_says_who_has_it(store: str) -> None:
    path = f"{store}/.lock"
    with locked(path):
        message = rf"process {os.getpid()} on .* \(last sign of life \d s ago; it counts as dead"
        with pytest.raises(Locked, match=message), locked(path):
            pass
        assert holder(path)
    assert not storage.exists(path)
    assert holder(path) is None


def test_which_locks_in_a_store_are_left_behind(store: str) -> None:
    path, this, now = f"{store}/.lock", Owner.this(), time.time()
    ended = subprocess.Popen(["true"])
    ended.wait()
    elsewhere = replace(this, host="elsewhere")
    dead = replace(this, pid=ended.pid)
    for owner, beat, is_left in (
        (elsewhere, now, False),
        (elsewhere, now - lock._STALE_SECONDS - 1, True),
        (dead, now, True),
        (replace(dead, namespace="of another container"), now, False),
    ):
        leave_behind(path, owner, beat)
        assert (holder(path) is None) == is_left
        if is_left:
            with locked(path) as hold:
                hold.check()
        else:
            with pytest.raises(Locked, match=f"process {owner.pid} on {owner.host}"), locked(path):
                pass
            storage.remove(path)


@pytest.mark.usefixtures("fast_beats")
def test_a_holder_gives_signs_of_life(store: str) -> None:
    def beat() -> float:
        return float(json.loads(storage.read_bytes(f"{store}/.lock"))["beat"])

    with locked(f"{store}/.lock") as hold:
        first = beat()
        until(lambda: beat() > first)
        hold.check()


@pytest.mark.usefixtures("fast_beats")
@pytest.mark.parametrize("other", ["removed", "taken"])
def test_a_lock_that_is_lost_is_noticed(store: str, other: str) -> None:
    path = f"{store}/.lock"

    def check_fails(hold: Hold) -> bool:
        try:
            hold.check()
        except OSError as error:
            return "was lost" in str(error)
        return False

    with locked(path) as hold:
        if other == "taken":
            leave_behind(path, replace(Owner.this(), host="elsewhere"), time.time())
        else:
            storage.remove(path)
        until(lambda: check_fails(hold))
    # It is not ours to remove.
    assert storage.exists(path) == (other == "taken")


def test_waiting_ends_when_the_lock_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "_ASK_AGAIN_SECONDS", 0.01)
    path = str(tmp_path / ".lock")
    process = hold_elsewhere(path)
    told: list[str] = []

    def tell(owner: str) -> None:
        told.append(owner)
        process.kill()

    with waited(path, tell):
        process.wait()
    assert told[0].startswith(f"process {process.pid} on ")


def test_waiting_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "_ASK_AGAIN_SECONDS", 0.01)
    monkeypatch.setattr(lock, "_PATIENCE_SECONDS", 0.05)
    path = str(tmp_path / ".lock")
    with (
        locked(path),
        pytest.raises(OSError, match=f"is held by process {os.getpid()} on"),
        waited(path, lambda _: None),
    ):
        pass


def test_a_file_system_without_flock_gets_a_lock_that_beats(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As some cluster file systems are mounted."""

    def flock(*_: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", flock)
    path = str(tmp_path / ".lock")
    with locked(path), pytest.raises(Locked, match="last sign of life"), locked(path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_lock_without_flock_is_exclusive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight threads that begin together, many times: one has it, and nobody finds half a lock."""
    monkeypatch.setattr("hnpretrain.shards.lock._has_flock", lambda _: False)
    path = str(tmp_path / ".lock")
    (tmp_path / "stays").touch()
    inside = 0
    together = threading.Barrier(8)

    def take() -> str:
        nonlocal inside
        together.wait()
        try:
            with locked(path):
                inside += 1
                alone = inside == 1
                together.wait()  # until all have tried
                inside -= 1
                return "had it" if alone else "shared it"
        except Locked:
            together.wait()
            return "refused"

    for _ in range(20):
        with ThreadPoolExecutor(8) as pool:
            found = sorted(future.result() for future in [pool.submit(take) for _ in range(8)])
        assert found == ["had it"] + ["refused"] * 7
