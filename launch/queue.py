"""What Slurm knows of a job: its queue, and where that has forgotten it, its accounting."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass


@dataclass(frozen=True)
class TaskState:
    """A job, or a task of an array.

    Attributes:
        task: number in its array; "" of a job that is none. Tasks that ended before they began are
            one, with brackets.
        state: Slurm's word, in capitals; UNKNOWN if neither queue nor accounting has it.
        is_active: whether the queue has it.
        reason: why it waits.
        nodes: where it is or was.
        elapsed: since it was started last.
        exit_code: STATUS:SIGNAL, once it has ended.
    """

    task: str = ""
    state: str = "UNKNOWN"
    is_active: bool = False
    reason: str = ""
    nodes: str = ""
    elapsed: str = ""
    exit_code: str = ""


def states(job: str) -> list[TaskState]:
    """The states of a job's tasks, of a job that is no array one. Of those alone that the queue
    does not know, the accounting is asked, whose word may be late.

    Raises:
        OSError: Slurm does not answer.
    """
    found: dict[str, TaskState] = {}
    for line in _ask("squeue", "--array", "--noheader", f"--jobs={job}", "--format=%i|%T|%r|%N|%M"):
        name, state, reason, nodes, elapsed = line.split("|")
        task = name.partition("_")[2]
        reason = "" if reason == "None" else reason
        found[task] = TaskState(task, state, True, reason, nodes, elapsed)
    if "" in found:
        return list(found.values())
    fields = "JobID,State,NodeList,Elapsed,ExitCode"
    for line in _ask("sacct", "-X", "-n", "-P", f"--jobs={job}", f"--format={fields}"):
        name, state, nodes, elapsed, exit_code = line.split("|")
        task = name.partition("_")[2]
        state = state.split()[0]  # of "CANCELLED by 1000"
        is_late = state in ("PENDING", "REQUEUED", "RUNNING", "SUSPENDED")
        if task not in found and not is_late:
            found[task] = TaskState(task, state, False, "", nodes, elapsed, exit_code)
    return sorted(found.values(), key=_number) or [TaskState()]


def _number(state: TaskState) -> int:
    digits = re.search(r"\d+", state.task)
    return int(digits[0]) if digits else 0


def partitions() -> list[str]:
    """The cluster's, hidden ones too."""
    return sorted(set(_ask("sinfo", "--all", "--noheader", "--format=%R")))


def run(*command: str) -> str:
    """What one of Slurm's commands prints.

    Raises:
        OSError: it failed; with what it said, in a line.
    """
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"{command[0]}: {' '.join((done.stderr or done.stdout).split())}")
    return done.stdout


def _ask(*command: str) -> list[str]:
    """The lines that a command prints; none where it is missing or does not know the job."""
    if shutil.which(command[0]) is None:
        return []
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    unknown = "Invalid job id" in done.stderr or "storage is disabled" in done.stderr
    if done.returncode and not unknown:
        raise OSError(f"{command[0]}: {' '.join((done.stderr or done.stdout).split())}")
    return [line for line in done.stdout.splitlines() if line.strip()]
