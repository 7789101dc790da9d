"""Trainings on two nodes of a real Slurm that lose a node or a rank."""

import contextlib
import os
import signal
import time
from pathlib import Path

from launch import queue
from tests.slurm.jobs import get_on, log_of, ranks_of, start_now, wait_for_lines, wait_for_state
from tests.support.faults import MESSAGE, fail_once
from tests.support.training import loss_lines


def test_a_node_that_fails(launched, undisturbed):
    """Slurm puts the job back by itself; the last checkpoint counts."""
    record = launched()
    get_on(record)
    queue.run("scontrol", "update", "NodeName=n2", "State=DOWN", "Reason=a test")
    try:
        wait_for_state(record, "PENDING")
    finally:
        with contextlib.suppress(OSError):  # it is back by itself
            queue.run("scontrol", "update", "NodeName=n2", "State=RESUME")
    start_now(record)
    wait_for_state(record, "COMPLETED", "FAILED")
    assert loss_lines(Path(record.output)) == undisturbed


def test_a_killed_rank_is_told_first_and_the_job_goes_on(launched, undisturbed):
    record = launched()
    get_on(record)
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
