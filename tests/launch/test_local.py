"""`launch local`: restarts, whose error is told, and that nothing is left after Ctrl-C."""

import os
import signal
import subprocess
import sys

import psutil
import pytest

from launch import local
from tests.support.faults import MESSAGE, fail_once
from tests.support.training import clean_environment, end, loss_lines, wait_for_lines, write_recipe

STEPS = 32


@pytest.fixture
def recipe(tmp_path, shards):
    return write_recipe(
        tmp_path / "recipe.yaml", shards, batch_size=8, epochs=2, checkpoint="{every: 5}",
        output=tmp_path / "run",
    )  # fmt: skip


def start(recipe, *options, **environment):
    command = [sys.executable, "-m", "hnpretrain.cli", "launch", "local", str(recipe), *options]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=clean_environment() | environment, start_new_session=True,
    )  # fmt: skip


def test_a_crash_is_told_by_its_rank_and_the_run_goes_on(recipe, tmp_path):
    run = tmp_path / "run"
    path = f"{fail_once(tmp_path, run)}:{os.environ.get('PYTHONPATH', '')}"
    process = start(recipe, "--nproc", "2", PYTHONPATH=path)
    try:
        output, errors = process.communicate(timeout=200)
    finally:
        end(process)
    assert process.returncode == 0, errors
    assert f"RuntimeError: {MESSAGE}" in errors
    assert "[rank 0]" not in errors
    assert "[rank0]" not in errors  # torch's own mark of a traceback
    assert "launch: the run goes on from step_" in errors
    assert "restart 1 of at most 3" in errors
    assert "going on at epoch" in output
    assert [line["global_step"] for line in loss_lines(run)] == list(range(1, STEPS + 1))


def test_ctrl_c_leaves_no_process(recipe, tmp_path):
    """A terminal sends it to the launcher and its group; ranks have sessions of their own."""
    process = start(recipe, "--nproc", "2", "epochs=2000")
    try:
        wait_for_lines(process, tmp_path / "run", 5)
        family = psutil.Process(process.pid).children(recursive=True)
        assert len(family) >= 4  # two ranks and their loaders
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    finally:
        end(process)
    assert process.returncode == 130
    assert errors == "stopped: the same command goes on from the last checkpoint\n"
    _, alive = psutil.wait_procs(family, timeout=5)
    assert alive == []


class Ends:
    """Stands for torchrun: each start ends with a status, and may have saved before."""

    def __init__(self, checkpoints, *starts):
        self.checkpoints = checkpoints
        self.starts = list(starts)

    def __call__(self, arguments):
        del arguments
        status, saved = self.starts.pop(0)
        if saved:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            (self.checkpoints / "latest").write_text(f"step_{saved:08d}")
        return status


@pytest.mark.parametrize(
    ("starts", "status"),
    [
        ([(0, 5)], 0),
        ([(1, 0)], 1),  # it failed before a checkpoint
        ([(1, 5), (0, 9)], 0),
        ([(1, 5), (1, 0)], 1),  # it got no further
        ([(1, 5), (1, 7), (1, 9)], 1),  # two restarts, and no more
        ([(1, 5), (75, 7)], 75),  # it was asked to stop
        ([(130, 5)], 130),
    ],
)
def test_restarts(recipe, tmp_path, monkeypatch, starts, status):
    ends = Ends(tmp_path / "run/checkpoints", *starts)
    monkeypatch.setattr(local.torchrun, "run", ends)
    assert local.run_local(str(recipe), [], processes=2, restarts=2) == status
    assert ends.starts == []
