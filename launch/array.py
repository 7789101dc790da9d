"""Jobs of commands on Slurm: single ones, and arrays whose tasks each do their part."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from submitit.slurm.slurm import SlurmExecutor

from launch import executor as executors
from launch import queue, snapshot
from launch.settings import ArrayLaunch
from launch.task import Command, Place


@contextlib.contextmanager
def all_or_none(jobs: Sequence[str]) -> Iterator[None]:
    """Cancels the jobs that were submitted inside, if not all could be."""
    try:
        yield
    except BaseException:
        if jobs:
            queue.run("scancel", *jobs)
        raise


def task(folder: Path, command: tuple[str, ...], *overrides: str) -> Command:
    """A task that runs a command of `hnpretrain` on the folder's settings."""
    place = Place(str(folder / snapshot.CODE), str(Path.cwd()))
    return Command(place, command, str(folder / snapshot.CONFIG), overrides)


def executor(
    where: ArrayLaunch, folder: Path, name: str, log: str, before: Sequence[str] = ()
) -> SlurmExecutor:
    """What submits a job.

    Args:
        folder: the submission's own.
        name: the job's.
        log: the file of all output, with Slurm's patterns.
        before: ids of the jobs before it; it runs once the last one has done its work.
    """
    slurm = SlurmExecutor(folder, python=where.python or None)
    slurm.update_parameters(**_parameters(where, folder, name, log, before))
    return slurm


def script(where: ArrayLaunch, folder: Path, name: str, log: str, tasks: int) -> str:
    """The batch script of an array; nothing is submitted or written."""
    dry = executors.DryExecutor(folder, python=where.python or None)
    dry.update_parameters(**_parameters(where, folder, name, log, ()))
    if tasks > 1:
        dry.parameters["map_count"] = tasks
    return executors.script(dry)


def log(folder: Path, tasks: int, step: str) -> str:
    """The log of an array's tasks, with Slurm's patterns; of a single one that of its step."""
    return str(folder / ("%A_%a.log" if tasks > 1 else f"{step}.log"))


def log_of_job(log: str, job: str) -> str:
    """A log with the job's id in place of Slurm's pattern, and `{task}` for the task."""
    return log.replace("%A_%a", f"{job}_{{task}}")


def _parameters(
    where: ArrayLaunch, folder: Path, name: str, log: str, before: Sequence[str]
) -> dict[str, Any]:
    """Of a job, for SlurmExecutor.update_parameters."""
    parameters = executors.slurm_parameters(where, folder, name, log)
    executors.give_cores(parameters, where.cpus)
    parameters["array_parallelism"] = where.parallel
    parameters["signal_delay_s"] = 30  # there is nothing to do then: what is finished is kept
    if before:
        parameters["dependency"] = f"afterok:{before[-1]}"
        # Else it would wait for ever for a job that has failed.
        parameters["additional_parameters"]["kill-on-invalid-dep"] = "yes"
    return parameters
