"""Blocks are read while the ones before are given out, and nothing hangs when that ends."""

from __future__ import annotations

import multiprocessing
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hnpretrain.data.background import Background
from hnpretrain.data.loader import Position
from hnpretrain.data.mixture import read_mixture
from hnpretrain.data.plan import Run
from hnpretrain.data.streams import BadShard, BlockReader, ShardSet
from tests.support.datasets import tile, write_dataset
from tests.support.loading import loader

PATIENCE = 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiles")
    write_dataset(folder, (tile(i) for i in range(96)), per_shard=12)
    return folder


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def reading() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "hnpretrain-read"]


def test_the_next_block_of_each_stream_is_read_ahead_and_no_further_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[tuple[int, int, int]] = []
    original = BlockReader.read

    def read(self, epoch, stream, position, quarantine):
        begun.append((epoch, stream, position))
        return original(self, epoch, stream, position, quarantine)

    monkeypatch.setattr(BlockReader, "read", read)
    steps = loader(folder, block_size=8).batches(Position(), 2)
    # Streams of 24 samples, 2 a step; the first block of stream v is short by 2 v.
    next(steps)
    wait_until(lambda: len(begun) == 8)
    assert sorted(begun) == sorted(
        (0, stream, place) for stream in range(4) for place in (0, 8 - 2 * stream)
    )
    # After step 3 all streams are in their second block, and read their third; stream 0 after 4.
    for _ in range(4):
        next(steps)
    wait_until(lambda: len(begun) == 12)
    time.sleep(0.1)
    assert sorted(begun[8:]) == [(0, stream, 16 - 2 * stream) for stream in range(4)]
    # Past the end of the epoch, the first block of the next one.
    for _ in range(7):
        next(steps)
    wait_until(lambda: (1, 0, 0) in begun)
    steps.close()
    wait_until(lambda: not reading())


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_comes_when_the_block_is_needed(tmp_path: Path, workers: int) -> None:
    write_dataset(tmp_path, [tile(i) for i in range(96)], per_shard=12)
    plan = loader(tmp_path).plan
    run = plan.block(0, 0, 13).runs[0]
    (tmp_path / f"{12 * run.shard:06d}.tar").unlink()
    met = min(
        place // 2
        for stream in range(4)
        for place in range(24)
        if any(r.shard == run.shard for r in plan.block(0, stream, place).runs)
    )
    others = multiprocessing.active_children()  # of tests before
    steps = loader(tmp_path, workers=workers).batches(Position(), 1)
    for _ in range(met):
        next(steps)
    with pytest.raises(BadShard) as raised:
        next(steps)
    # Even if somebody keeps the error, the workers have ended.
    assert raised.value.__traceback__ is not None
    assert set(multiprocessing.active_children()) <= set(others)
    wait_until(lambda: not reading())


def test_work_runs_side_by_side_and_in_turn() -> None:
    background = Background(2)
    order: list[int] = []
    go = threading.Event()

    def work(number: int) -> int:
        order.append(number)
        go.wait(PATIENCE)
        return number

    futures = [background.start(lambda number=number: work(number)) for number in range(5)]
    wait_until(lambda: len(order) == 2)
    time.sleep(0.05)
    assert sorted(order) == [0, 1]
    go.set()
    assert [future.result(PATIENCE) for future in futures] == [0, 1, 2, 3, 4]


def test_what_has_not_begun_does_not_begin_after_the_end() -> None:
    background = Background(1)
    go, begun = threading.Event(), threading.Event()
    first = background.start(lambda: begun.set() or go.wait(PATIENCE))
    assert begun.wait(PATIENCE)
    second = background.start(lambda: pytest.fail("it ran"))
    background.close()
    go.set()
    assert first.result(PATIENCE)
    wait_until(second.cancelled)


HANGS = """
import sys, time
from hnpretrain.data import streams
from tests.support.loading import Position, loader

def hang(self, run, read=streams.ShardSet.read):
    if run.passage == 1: time.sleep(1000)  # the blocks of the second epoch, read ahead
    return read(self, run)

streams.ShardSet.read = hang
steps = loader(sys.argv[1], workers=int(sys.argv[2]), block_size=8).batches(Position(), 2)
for _ in range(12): next(steps)
print("reading", flush=True)
if sys.argv[3] == "stop":
    raise ValueError("this rank stops")
for _ in steps: pass
"""


@pytest.mark.parametrize("workers, how", [(0, "stop"), (2, "ctrl-c")])
def test_a_store_that_hangs_does_not_keep_a_process(folder: Path, workers: int, how: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", HANGS, str(folder), str(workers), how],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "reading\n"
    if how == "ctrl-c":
        time.sleep(0.5)  # it waits for a block now
        process.send_signal(signal.SIGINT)
    begin = time.monotonic()
    _, errors = process.communicate(timeout=60)
    assert ("this rank stops" if how == "stop" else "KeyboardInterrupt") in errors
    assert time.monotonic() - begin < 15
    assert process.returncode != 0


def test_a_shard_set_knows_no_thread(folder: Path) -> None:
    """Threads may read one shard at once."""
    shards = ShardSet(read_mixture({str(folder): 1}))
    background = Background(8)
    runs = [Run(shard=number % 8, start=0, stop=12, passage=0) for number in range(32)]
    futures = [background.start(lambda run=run: shards.read(run)) for run in runs]
    for run, future in zip(runs, futures, strict=True):
        assert future.result(PATIENCE) == shards.read(run)
