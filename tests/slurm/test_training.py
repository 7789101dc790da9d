"""Trainings on two nodes of a real Slurm: to the end, preempted, cancelled, with a rank killed."""

import contextlib
import os
import signal
import time
from pathlib import Path

import pytest

from hnpretrain.runs import latest_checkpoint
from launch import queue
from launch.follow import cancel, log_file, read, status
from launch.training import submit
from tests.slurm.jobs import ranks_of, start_now, state, wait_for_lines, wait_for_state
from tests.support.faults import MESSAGE, fail_once
from tests.support.training import lines_of, loss_lines, train, write_recipe

EPOCHS = 24
STEPS = 5 * EPOCHS


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, shards):
    return write_recipe(
        tmp_path_factory.mktemp("recipe") / "recipe.yaml", shards, batch_size=8, epochs=EPOCHS,
        checkpoint="{every: 10}", launch="{nodes: 2, gpus_per_node: 0, minutes: 10}",
    )  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed(recipe, tmp_path_factory):
    """The losses of two ranks that nobody disturbs, without Slurm."""
    run = tmp_path_factory.mktemp("undisturbed")
    train(recipe, f"output={run}")
    lines = loss_lines(run)
    assert len(lines) == STEPS
    return lines


@pytest.fixture
def launched(request, recipe, tmp_path):
    """Submits the training; whatever becomes of it, it is gone at the end."""
    request.getfixturevalue("cluster")
    records = []

    def launch(*overrides):
        records.append(submit(str(recipe), [f"output={tmp_path / 'run'}", *overrides]))
        return records[-1]

    yield launch
    for record in records:
        queue.run("scancel", "--quiet", *record.jobs)


def log_of(record):
    return Path(record.log).read_text()


def slow(record):
    """So that a run of two minutes' steps can be met in its middle: wait for some of them."""
    wait_for_lines(record, lines_of(Path(record.output)) + 12)


@pytest.mark.parametrize("task", ["rank", "node"])
def test_two_nodes_train(launched, undisturbed, task):
    record = launched(f"launch.task={task}")
    wait_for_state(record, "COMPLETED", "FAILED")
    assert state(record) == "COMPLETED", log_of(record)
    assert loss_lines(Path(record.output)) == undisturbed
    assert f"last checkpoint: step_{STEPS:08d}" in status(record.output)
    told = "".join(read(*log_file(record.output), 3, follow=True))
    assert told.count("\n") == 3
    assert f"step {STEPS}/{STEPS}" in told


def test_preempted_twice_it_goes_on_at_the_exact_step(launched, undisturbed):
    record = launched()
    slow(record)
    queue.run("scontrol", "requeue", record.jobs[0])
    start_now(record)
    slow(record)
    queue.run("scancel", "--signal=USR2", record.jobs[0])
    start_now(record)
    wait_for_state(record, "COMPLETED", "FAILED")
    log = log_of(record)
    assert log.count("and saved: the same command goes on") == 2, log
    assert log.count("going on at epoch") == 2
    assert "it was asked to stop (status 75): back to the queue, requeue 2 of at most 100" in log
    assert "0: \n" not in log  # lines are written whole
    assert loss_lines(Path(record.output)) == undisturbed


def test_a_node_that_fails(launched, undisturbed):
    """Slurm puts the job back by itself; the last checkpoint counts."""
    record = launched()
    slow(record)
    queue.run("scontrol", "update", "NodeName=n2", "State=DOWN", "Reason=a test")
    try:
        wait_for_state(record, "PENDING")
    finally:
        with contextlib.suppress(OSError):  # it is back by itself
            queue.run("scontrol", "update", "NodeName=n2", "State=RESUME")
    start_now(record)
    wait_for_state(record, "COMPLETED", "FAILED")
    assert loss_lines(Path(record.output)) == undisturbed


def test_a_job_that_is_cancelled_leaves_a_checkpoint_and_does_not_come_back(launched, undisturbed):
    record = launched()
    slow(record)
    queue.run("scancel", *record.jobs)
    wait_for_state(record, "CANCELLED")
    assert latest_checkpoint(Path(record.output))
    again = launched()  # the same command goes on
    wait_for_state(again, "COMPLETED", "FAILED")
    assert "going on at epoch" in log_of(again)
    assert loss_lines(Path(record.output)) == undisturbed


def test_launch_cancel_saves_first(launched):
    record = launched()
    slow(record)
    told = cancel(record.output)
    assert "was asked to save and to end" in told
    wait_for_state(record, "FAILED", "PENDING", "CANCELLED")
    assert state(record) == "FAILED"  # Slurm's word for a status that is not 0
    log = log_of(record)
    assert "and saved: the same command goes on" in log
    assert "launch: cancelled; the same command goes on from step_" in log
    assert "back to the queue" not in log
    with pytest.raises(ValueError, match="is over"):
        cancel(record.output)


def test_a_killed_rank_is_told_first_and_the_job_goes_on(launched, undisturbed):
    record = launched()
    slow(record)
    ranks = ranks_of(Path(record.log).parent / "config.yaml")
    assert len(ranks) == 2
    started = time.monotonic()
    os.kill(ranks[1], signal.SIGKILL)
    wait_for_state(record, "PENDING")
    assert time.monotonic() - started < 60
    errors = [line for line in log_of(record).splitlines() if "error" in line]
    assert errors[0] == "srun: error: n2: task 1: Killed"
    assert "it failed (status 137) after step_" in log_of(record)
    start_now(record)
    wait_for_state(record, "COMPLETED", "FAILED")
    assert loss_lines(Path(record.output)) == undisturbed


def test_a_rank_that_raises_is_told_alone(launched, tmp_path):
    """Not that others have lost it; here under a torchrun a node."""
    path = fail_once(tmp_path, tmp_path / "run")
    record = launched("launch.task=node", f"launch.environment.PYTHONPATH={path}")
    wait_for_lines(record, 1)
    wait_for_state(record, "PENDING")
    log = log_of(record)
    assert f"RuntimeError: {MESSAGE}" in log
    assert "another rank is gone" not in log
    assert "[rank 0]" not in log
    assert "[rank0]" not in log  # torch's own mark of a traceback
    assert "it failed (status 1) after step_" in log
    assert "back to the queue, requeue 1 of at most 100" in log
