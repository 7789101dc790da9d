"""Two trainings never write into one folder at the same time."""

import contextlib
import json
import os
import time

import pytest

from hnpretrain.shards import lock
from hnpretrain.shards.lock import holder, locked
from hnpretrain.train import alone, loop
from hnpretrain.train.log import read_log
from tests.support.datasets import tile, write_dataset
from tests.support.training import train_here, write_recipe


@pytest.fixture
def recipe(tmp_path):
    write_dataset(tmp_path / "shards", (tile(i) for i in range(16)), per_shard=8)
    return write_recipe(tmp_path / "recipe.yaml", tmp_path / "shards", batch_size=8)


def test_a_run_that_does_not_leave_is_named(tmp_path, recipe, monkeypatch):
    monkeypatch.setattr(alone, "_PATIENCE_SECONDS", 0.0)
    run = tmp_path / "run"
    held = rf"{run}/\.train\.lock is held by process {os.getpid()} on .*; see what it does"
    with locked(str(run / alone.LOCK_NAME)), pytest.raises(OSError, match=held):
        train_here(recipe, f"output={run}")
    assert not run.exists()  # nothing was written


def test_a_run_whose_lock_was_taken_ends_and_saves_nothing(tmp_path, recipe, monkeypatch):
    """Where there is no flock, and it has stood still for so long that it counted as gone."""
    monkeypatch.setattr(lock, "_has_flock", lambda _: False)
    monkeypatch.setattr(lock, "_BEAT_SECONDS", 0.02)
    run = tmp_path / "run"
    take = loop.train_step

    def robbed(*arguments):
        path = run / alone.LOCK_NAME
        beat = json.loads(path.read_bytes())
        beat["owner"]["token"] = "another"
        for _ in range(20):  # its own next beat may come between looking and writing
            path.write_text(json.dumps(beat))
            time.sleep(0.03)
        return take(*arguments)

    monkeypatch.setattr(loop, "train_step", robbed)
    with pytest.raises(OSError, match=r"\.train\.lock was lost, it is now held by process"):
        train_here(recipe, f"output={run}", "checkpoint.every=1")
    assert not (run / "checkpoints").exists()


def test_a_run_that_leaves_is_waited_for(tmp_path, recipe, monkeypatch, capsys):
    """And this one holds the folder while it trains, and not after it."""
    run = tmp_path / "run"
    path = str(run / alone.LOCK_NAME)
    take, holders = loop.train_step, []

    def looking(*arguments):
        holders.append(holder(path))
        return take(*arguments)

    monkeypatch.setattr(loop, "train_step", looking)
    before = contextlib.ExitStack()
    before.enter_context(locked(path))

    def printing(*values, **options):
        print(*values, **options)
        before.close()

    monkeypatch.setattr(alone, "print", printing, raising=False)
    train_here(recipe, f"output={run}")
    owner = f"process {os.getpid()} on "
    assert capsys.readouterr().out.count(f"{run} is trained into by {owner}") == 1
    assert len(read_log(run, "step")) == len(holders) == 2
    assert all(each.startswith(owner) for each in holders)
    assert holder(path) is None
    assert not (run / alone.LOCK_NAME).exists()
