"""`hnpretrain launch status|logs|cancel`: what became of a submission."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import psutil

from hnpretrain.runs import LOG_NAME, latest_checkpoint
from launch import queue, record
from launch.state import is_active, processes

_POLL_SECONDS = 1.0
# Slurm is not asked more often: thousands of users' loops are what brings it down.
_ASK_SECONDS = 15.0
# Of the end of a run's log: lines are shorter.
_TAIL_BYTES = 65536


def find(output: str, folder: str = "") -> tuple[Path, record.Record]:
    """The last submission for an output.

    Raises:
        ValueError: there is none.
    """
    base = record.folder_of(output, folder)
    found = record.latest(base, output)
    if found is None:
        raise ValueError(
            f"nothing was launched for {output}: {base} holds no submission (another launch.folder "
            "is given as --folder)"
        )
    return found


def status(output: str, folder: str = "") -> list[str]:
    """Lines that tell how the last submission stands.

    Raises:
        ValueError: there is none.
        OSError: Slurm does not answer.
    """
    place, found = find(output, folder)
    lines = [f"{found.kind} of {found.output}, submitted {found.submitted}"]
    for job in found.jobs:
        lines += _job_lines(found, job)
    lines.append(f"log: {found.log}")
    is_job = found.cluster == "slurm" and found.kind == "training"
    if is_job and not Path(found.log).exists() and not is_active(found):
        lines.append(f"it has left no log: do its nodes see {place}?")
    if found.kind == "training":
        lines += _run_lines(Path(found.output))
    return lines


def _job_lines(found: record.Record, job: str) -> list[str]:
    if found.cluster != "slurm":
        state = "running" if processes(found) else "ended"
        return [f"job {job} ({found.cluster}): {state}"]
    tasks = queue.states(job)
    if len(tasks) > 1:
        counts = Counter(each.state for each in tasks)
        told = ", ".join(f"{count} {state}" for state, count in sorted(counts.items()))
        lines = [f"job {job}: {len(tasks)} tasks: {told}"]
        failed = [each for each in tasks if not each.is_active and each.state != "COMPLETED"]
        return lines + [f"  {_in_words(each, f'task {each.task}')}" for each in failed]
    return [_in_words(tasks[0], f"job {job}")]


def _in_words(state: queue.TaskState, name: str) -> str:
    if state.state == "UNKNOWN":
        return f"{name}: no longer in the queue, and not in Slurm's accounting"
    line = f"{name}: {state.state}"
    if state.reason:
        line += f" ({state.reason})"
    if state.nodes and state.nodes != "None assigned":
        line += f" on {state.nodes}"
    if state.elapsed and state.state != "PENDING":
        line += f", {state.elapsed} since its last start"
    status, _, number = state.exit_code.partition(":")
    if status not in ("", "0"):
        line += f", exit status {status}"
    elif number not in ("", "0"):
        line += f", signal {number}"
    return line


def _run_lines(run: Path) -> list[str]:
    latest = latest_checkpoint(run)
    lines = [f"last checkpoint: {latest.name if latest else 'none yet'}"]
    step = _last_step(run)
    if step:
        lines.append(
            f"step {step['global_step']}, epoch {step['epoch']}, loss {step['loss']:.4f}, "
            f"{step['samples_per_second']:.0f} samples/s"
        )
    return lines


def _last_step(run: Path) -> dict[str, float] | None:
    """The last step in a run's log; of its end, as a week's log is long."""
    try:
        with (run / LOG_NAME).open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - _TAIL_BYTES))
            lines = file.read().splitlines()
    except FileNotFoundError:
        return None
    for line in reversed(lines):
        try:
            value = json.loads(line)
        except ValueError:
            continue  # cut in two, by the seek or by a writer
        if value.get("event") == "step" and value["loss"] is not None:
            return dict(value)
    return None


def log_file(output: str, folder: str = "", task: int = 0) -> tuple[Path, record.Record]:
    """Where the output of the last submission is.

    Raises:
        ValueError: there is none, or it has written nothing yet.
    """
    _, found = find(output, folder)
    log = Path(found.log.replace("{task}", str(task)))
    if not log.exists():
        raise ValueError(f"{log} is not there: the job has written nothing yet")
    return log, found


def read(log: Path, found: record.Record, last: int, *, follow: bool) -> Iterator[str]:
    """The last lines of a log (0 is all), and what is written to it until its job is over.

    Args:
        follow: whether to wait for more; else it ends with what is there.
    """
    with log.open("rb") as file:
        file.seek(_start_of_last(file, last))
        asked = -_ASK_SECONDS
        is_over = not follow
        while True:
            text = file.read()
            if text:
                yield text.decode("utf-8", "replace")
            elif is_over:
                return
            else:
                time.sleep(_POLL_SECONDS)
            if not is_over and time.monotonic() - asked > _ASK_SECONDS:
                asked = time.monotonic()
                is_over = not is_active(found)


def _start_of_last(file: BinaryIO, lines: int) -> int:
    """Where the last lines of a file begin; its end is read, in growing parts."""
    size = file.seek(0, os.SEEK_END)
    part = _TAIL_BYTES
    while lines:
        start = max(0, size - part)
        file.seek(start)
        found = file.read(size - start).splitlines(keepends=True)
        if len(found) > lines or start == 0:
            return size - sum(map(len, found[-lines:]))
        part *= 4
    return 0


def cancel(output: str, folder: str = "", *, now: bool = False) -> str:
    """Ends the last submission's jobs; what was done, in a line.

    A training that runs saves first, and does not go back to the queue.

    Args:
        now: it gets no more time than Slurm leaves a job that it ends (KillWait, 30 s mostly).

    Raises:
        ValueError: there is none, or it is over.
        OSError: Slurm does not answer.
    """
    place, found = find(output, folder)
    if not is_active(found):
        raise ValueError(f"the job {', '.join(found.jobs)} of {found.output} is over")
    if found.cluster != "slurm":
        for process in processes(found):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL if now else signal.SIGUSR2)
        return f"the ranks of job {found.jobs[0]} were asked to save and to end"
    (place / record.CANCELLED).touch()  # the job neither begins nor goes back to the queue
    running = [each for job in found.jobs for each in queue.states(job) if each.state == "RUNNING"]
    if found.kind == "training" and running and not now:
        (job,) = found.jobs
        queue.run("scontrol", "update", f"JobId={job}", "Requeue=0")  # nor does Slurm put it there
        queue.run("scancel", "--signal=USR2", job)
        return f"job {job} was asked to save and to end; `launch status {found.output}` tells when"
    queue.run("scancel", *found.jobs)
    return f"cancelled: {', '.join(found.jobs)}"
