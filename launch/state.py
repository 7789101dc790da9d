"""Whether what was launched still waits or runs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import psutil

from hnpretrain.shards.lock import Locked, locked
from launch import queue, record
from launch.record import Record
from launch.snapshot import CONFIG


def is_active(found: Record) -> bool:
    """Whether a job of the submission waits or runs.

    Raises:
        OSError: Slurm does not answer.
    """
    if found.cluster != "slurm":
        return bool(processes(found))
    return any(each.is_active for job in found.jobs for each in queue.states(job))


def processes(found: Record) -> list[psutil.Process]:
    """What trains on this machine for a submission to it, or is about to."""
    folder = Path(found.log).parent
    alive = []
    for process in psutil.process_iter(["cmdline"]):
        command = process.info["cmdline"] or []
        if str(folder / CONFIG) in command or str(folder) in command:
            alive.append(process)
    return alive


@contextlib.contextmanager
def alone(folder: Path, output: str) -> Iterator[None]:
    """Inside, nobody else submits for an output, and nothing that was submitted is left.

    Args:
        folder: of the output's submissions.

    Raises:
        ValueError: somebody submits; or the last submission's jobs wait or run.
    """
    try:
        with locked(str(folder / ".submit.lock")):
            last = record.latest(folder, output)
            if last and is_active(last[1]):
                _, found = last
                raise ValueError(
                    f"the job {', '.join(found.jobs)} of {found.output} is not over: `hnpretrain "
                    f"launch status {found.output}` tells more, and `launch cancel` ends it"
                )
            yield
    except Locked as error:
        raise ValueError(f"{folder}: {error.owner} submits a job now; try again") from error
