"""submitit's other clusters: processes in the background, and this process."""

import subprocess
import sys
import time

import pytest

from launch import follow
from launch.training import submit
from tests.support.training import clean_environment, lines_of, loss_lines, write_recipe


@pytest.fixture
def recipe(tmp_path, shards):
    return write_recipe(
        tmp_path / "recipe.yaml", shards, batch_size=8, output=tmp_path / "run",
        launch="{gpus_per_node: 0, cluster: local}",
    )  # fmt: skip


def wait(is_so):
    deadline = time.monotonic() + 150
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def log_of(run, task):
    return "".join(follow.read(*follow.log_file(str(run), "", task), last=0, follow=False))


def is_over(run):
    return "(local): ended" in "\n".join(follow.status(str(run)))


def test_in_the_background(recipe, tmp_path):
    """Two ranks, asked to save and to end."""
    run = tmp_path / "run"
    record = submit(str(recipe), ["launch.ranks_per_node=2", "epochs=2000"])
    assert f"job {record.jobs[0]} (local): running" in follow.status(str(run))  # from the start
    wait(lambda: lines_of(run) >= 5)
    assert f"job {record.jobs[0]} (local): running" in follow.status(str(run))
    with pytest.raises(ValueError, match=rf"the job {record.jobs[0]} of .* is not over"):
        submit(str(recipe), [])
    assert "were asked to save and to end" in follow.cancel(str(run))
    wait(lambda: is_over(run))
    step = loss_lines(run)[-1]["global_step"]
    assert f"stopped at step {step} and saved" in log_of(run, 0)
    assert log_of(run, 1) == ""
    assert f"last checkpoint: step_{step:08d}" in follow.status(str(run))
    with pytest.raises(ValueError, match="is over"):
        follow.cancel(str(run))


def test_in_this_process(recipe, tmp_path):
    """As the command does it: it becomes the training, whose exit status it has."""
    done = subprocess.run(
        [sys.executable, "-m", "hnpretrain.cli", "launch", "slurm", str(recipe),
         "launch.cluster=debug"],
        capture_output=True, text=True, timeout=150, env=clean_environment(), check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "step 16/16" in done.stdout
    assert len(loss_lines(tmp_path / "run")) == 16


def test_nothing_was_launched(tmp_path):
    with pytest.raises(ValueError, match=r"^nothing was launched for .*runs/x: "):
        follow.status(str(tmp_path / "runs/x"))
