"""Looking after jobs of the test cluster."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import psutil

from launch import queue
from launch.record import Record
from tests.support.training import lines_of

# Of the training that the tests disturb.
EPOCHS = 24
STEPS = 5 * EPOCHS

_SECONDS = 150.0


def wait(what: str, is_so: Callable[[], bool], log: Path | None = None) -> None:
    """Waits until something is so; fails with the job's log."""
    deadline = time.monotonic() + _SECONDS
    while not is_so():
        if time.monotonic() > deadline:
            told = log.read_text() if log and log.exists() else "no log"
            raise AssertionError(f"{what}: not within {_SECONDS:g} s\n{told}")
        time.sleep(0.1)


def state(record: Record) -> str:
    """Of its first job."""
    return queue.states(record.jobs[0])[0].state


def wait_for_lines(record: Record, lines: int) -> None:
    """Waits until the run's log has this many lines."""
    run = Path(record.output)

    def are_there() -> bool:
        assert queue.states(record.jobs[0])[0].is_active, Path(record.log).read_text()
        return lines_of(run) >= lines

    wait(f"{lines} lines of {run}", are_there, Path(record.log))


def wait_for_state(record: Record, *states: str) -> None:
    wait(f"job {record.jobs[0]}: {states}", lambda: state(record) in states, Path(record.log))


def start_now(record: Record) -> None:
    """Slurm lets a job that goes back to the queue wait for two minutes: not this one."""
    wait_for_state(record, "PENDING")
    time.sleep(2)  # nodes refuse a job in the second in which they have killed it
    queue.run("scontrol", "update", f"JobId={record.jobs[0]}", "StartTime=now")


def ranks_of(config: Path) -> list[int]:
    """The process ids of the ranks that train with these settings, in order."""
    found = {}
    for process in psutil.process_iter():
        try:
            command = process.cmdline()
            if command[1:3] == ["-m", "hnpretrain.train"] and command[-1] == str(config):
                parent = process.parent()
                if parent and parent.cmdline() != command:  # else one of a rank's loader
                    found[int(process.environ()["RANK"])] = process.pid
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
    return [found[rank] for rank in sorted(found)]


def log_of(record: Record) -> str:
    return Path(record.log).read_text()


def get_on(record: Record) -> None:
    """Waits for some more steps, so that the run is met in its middle."""
    wait_for_lines(record, lines_of(Path(record.output)) + 12)
