"""Slurm jobs as this package sets them up: one log a job, and a check that all nodes see it."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from submitit import DebugExecutor, Job, LocalExecutor
from submitit.core.utils import FailedJobError, environment_variables
from submitit.helpers import clean_env
from submitit.slurm.slurm import SlurmExecutor

from hnpretrain.config import nearest
from launch import snapshot
from launch.queue import partitions
from launch.record import CANCELLED
from launch.settings import ClusterSettings

# Of all jobs; launch.environment goes before them.
_ENVIRONMENT = {
    "NCCL_DEBUG": "WARN",
    # Else Python would find code in the folder that the job starts in before the snapshot.
    "PYTHONSAFEPATH": "1",
    "SUBMITIT_LOG_LEVEL": "WARNING",
}


class DryExecutor(SlurmExecutor):
    """Tells the script on machines without Slurm, too; submits nothing."""

    @classmethod
    def affinity(cls) -> int:
        return 1


def script(executor: SlurmExecutor) -> str:
    """The batch script that the executor would submit, to be shown: without what looks secret."""
    text = executor._make_submission_file_text(executor._submitit_command_str, "")
    return re.sub(r"(?m)^(export \w*(KEY|TOKEN|SECRET|PASSWORD)\w*=).*$", r"\1***", text)


def slurm_parameters(
    settings: ClusterSettings, folder: Path, name: str, log: str, marks: Sequence[Path] = ()
) -> dict[str, Any]:
    """What every Slurm job gets, for SlurmExecutor.update_parameters.

    Args:
        folder: the job's own.
        name: the job's.
        log: the file of all output, with Slurm's patterns.
        marks: files that all nodes must see, beside those in the folder.
    """
    given = {
        "partition": settings.partition,
        "account": settings.account,
        "qos": settings.qos,
        "constraint": settings.constraint,
        "mem": f"{round(settings.mem_gb * 1024)}MB" if settings.mem_gb else "",
    }
    return {
        **{key: value for key, value in given.items() if value},
        "job_name": name,
        "time": settings.minutes,
        "stderr_to_stdout": True,
        "setup": [
            *settings.prelude,
            *_exports(settings, folder),
            *_require_seen(settings, folder, marks),
            f"[ ! -e {shlex.quote(str(folder / CANCELLED))} ] || exit 0",
        ],
        "srun_args": [
            f"--output={log}",
            "--open-mode=append",
            "--label",
            "--kill-on-bad-exit=1",
            *settings.srun,
        ],
        "additional_parameters": {"output": log, "requeue": True, **settings.sbatch_options()},
        "wckey": None,  # submitit's own, which few clusters know
    }


def give_cores(parameters: dict[str, Any], cores: int) -> None:
    """Asks for so many cores a task."""
    parameters["cpus_per_task"] = cores
    # Since Slurm 22.05 srun does not take it from the job.
    parameters["srun_args"] = [f"--cpus-per-task={cores}", *parameters["srun_args"]]


def variables(settings: ClusterSettings, folder: Path, inherited: str) -> dict[str, str]:
    """A job's environment, beside what it has of the shell that submits it.

    Args:
        inherited: PYTHONPATH, unless the settings have one. The snapshot goes before either.
    """
    path = str(folder / snapshot.CODE)
    others = settings.environment.get("PYTHONPATH", inherited)
    if others:
        path += f"{os.pathsep}{others}"
    return _ENVIRONMENT | settings.environment | {"PYTHONPATH": path}


def _exports(settings: ClusterSettings, folder: Path) -> list[str]:
    """Lines of bash that set a job's environment."""
    given = {name: shlex.quote(value) for name, value in variables(settings, folder, "").items()}
    if "PYTHONPATH" not in settings.environment:  # what a prelude has put there stays
        given["PYTHONPATH"] += "${PYTHONPATH:+:$PYTHONPATH}"
    return [f"export {name}={value}" for name, value in given.items()]


def _require_seen(settings: ClusterSettings, folder: Path, marks: Sequence[Path]) -> list[str]:
    """Lines of bash that end the job, in words, if one of its nodes does not see the files."""
    look = shlex.quote('for file; do test -e "$file" || echo $SLURMD_NODENAME: ${file%/*}; done')
    command = [
        "srun --nodes=$SLURM_JOB_NUM_NODES --ntasks=$SLURM_JOB_NUM_NODES --ntasks-per-node=1",
        shlex.join(settings.srun),
        f"bash -c {look} look",
        shlex.join(map(str, (folder / snapshot.CONFIG, *marks))),
    ]
    what_to_do = "set output, or launch.folder, to one that all nodes share"
    return [
        f"blind=$({' '.join(filter(None, command))}) || exit 2",
        f'[ -z "$blind" ] || {{ echo error: not seen on $blind: {what_to_do}; exit 2; }}',
    ]


def require_slurm(settings: ClusterSettings) -> None:
    """Raises ValueError where Slurm's commands are missing, or the partition is unknown."""
    for command in ("sbatch", "srun"):
        if shutil.which(command) is None:
            raise ValueError(
                f"{command} is not on this machine: submit from one of the cluster's; --dry-run "
                "shows the script anywhere, `hnpretrain launch local` trains here"
            )
    known = partitions()
    for name in filter(None, settings.partition.split(",")):
        if name not in known:
            raise ValueError(
                f"launch.partition={name!r} is not one of this cluster's: {', '.join(known)}"
                f"{nearest(name, known)}"
            )


def submit(
    executor: SlurmExecutor | LocalExecutor | DebugExecutor,
    tasks: Sequence[Callable[[], None]],
    environment: Mapping[str, str] = MappingProxyType({}),
) -> list[Job[None]]:
    """Submits one job, or several as an array.

    Args:
        environment: variables of the job, where no script sets them.

    Raises:
        ValueError: Slurm refuses it; with what sbatch says, in a line.
    """
    try:
        with _without_another_job(), environment_variables(**environment):
            if len(tasks) == 1:
                return [executor.submit(tasks[0])]
            with executor.batch():
                return [executor.submit(task) for task in tasks]
    except FailedJobError as error:
        text = " ".join(str(error).split())
        raise ValueError(f"Slurm refuses the job: {text.removeprefix('sbatch: error: ')}") from None


@contextlib.contextmanager
def _without_another_job() -> Iterator[None]:
    """Inside, nothing is left of the job, or the group of ranks, that this process is part of.

    Its options would go before those of the script.
    """
    configuration = os.environ.get("SLURM_CONF")
    with clean_env():
        if configuration:
            os.environ["SLURM_CONF"] = configuration
        yield
