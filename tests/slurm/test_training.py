"""Trainings on two nodes of a real Slurm: to the end, preempted, cancelled."""

from pathlib import Path

import pytest

from hnpretrain.runs import latest_checkpoint
from launch import queue
from launch.follow import cancel, log_file, read, status
from tests.slurm.jobs import STEPS, get_on, log_of, start_now, state, wait_for_state
from tests.support.training import loss_lines


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
    get_on(record)
    queue.run("scontrol", "requeue", record.jobs[0])
    start_now(record)
    get_on(record)
    queue.run("scancel", "--signal=USR2", record.jobs[0])
    start_now(record)
    wait_for_state(record, "COMPLETED", "FAILED")
    log = log_of(record)
    assert log.count("and saved: the same command goes on") == 2, log
    assert log.count("going on at epoch") == 2
    assert "it was asked to stop (status 75): back to the queue, requeue 2 of at most 100" in log
    assert "0: \n" not in log  # lines are written whole
    assert loss_lines(Path(record.output)) == undisturbed


def test_a_job_that_is_cancelled_leaves_a_checkpoint_and_does_not_come_back(launched, undisturbed):
    record = launched()
    get_on(record)
    queue.run("scancel", *record.jobs)
    wait_for_state(record, "CANCELLED")
    assert latest_checkpoint(Path(record.output))
    again = launched()  # the same command goes on
    wait_for_state(again, "COMPLETED", "FAILED")
    assert "going on at epoch" in log_of(again)
    assert loss_lines(Path(record.output)) == undisturbed


def test_launch_cancel_saves_first(launched):
    record = launched()
    get_on(record)
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
