"""`hnpretrain launch slurm`: a training as a job of a cluster."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from submitit import DebugExecutor, LocalExecutor
from submitit.slurm.slurm import SlurmExecutor

from hnpretrain.config import load
from hnpretrain.train.settings import TrainSettings
from hnpretrain.train.setup import require_fit
from launch import executor, record, snapshot
from launch import settings as launch_settings
from launch.settings import TrainingLaunch
from launch.state import alone
from launch.task import Place, Training


def submit(config: str, overrides: Sequence[str]) -> record.Record:
    """Submits the training of `config`.

    Raises:
        ValueError: the settings are wrong, or do not fit the data; Slurm is not there, or refuses
            the job; the run's last job is not over.
        OSError: the run's folder cannot be written.
    """
    where, settings = _read(config, overrides)
    if where.cluster == "slurm":
        executor.require_slurm(where)
    base = record.folder_of(settings.output, where.folder)
    with alone(base, settings.output), record.new_folder(base) as folder:
        snapshot.write(folder, settings)
        mark = _mark(settings)
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.write_text(f"{folder}\n", encoding="utf-8")
        environment = {}
        if where.cluster != "slurm":  # there the script has it
            inherited = os.environ.get("PYTHONPATH", "")
            environment = executor.variables(where, folder, inherited)
        chosen = _executor(where, settings, folder)
        job = executor.submit(chosen, [_task(where, folder)], environment)[0]
        log = _log(folder, job.job_id)
        if where.cluster != "slurm":
            log = str(job.paths.stdout).replace("_0_log", "_{task}_log")
        jobs = [job.job_id]
        written = record.write(folder, where.cluster, "training", jobs, log, settings.output)
    if where.cluster == "debug":
        job.wait()  # becomes the training
    return written


def dry_run(config: str, overrides: Sequence[str]) -> str:
    """The batch script of a training, and what its ranks get of the environment; writes nothing.

    Raises:
        ValueError: the settings are wrong, or do not fit the data.
    """
    where, settings = _read(config, overrides)
    folder = record.next_folder(record.folder_of(settings.output, where.folder))
    dry = executor.DryExecutor(folder, python=where.python or None)
    dry.update_parameters(**_parameters(where, settings, folder))
    ranks, local = where.ranks, where.ranks_of_node
    cores = where.cpus_per_rank or "an equal part of the node's cores"
    environment = [
        "# What each rank gets beside the exports above:",
        f"#   WORLD_SIZE={ranks} LOCAL_WORLD_SIZE={local}",
        f"#   RANK=0..{ranks - 1} LOCAL_RANK=0..{local - 1}",
        "#   MASTER_ADDR=the first of the job's nodes",
        "#   MASTER_PORT=20000..31999, the same for a job id",
        f"#   OMP_NUM_THREADS={cores}, unless it is set",
    ]
    return executor.script(dry).rstrip() + "\n\n" + "\n".join(environment) + "\n"


def _read(config: str, overrides: Sequence[str]) -> tuple[TrainingLaunch, TrainSettings]:
    ours, theirs = launch_settings.split(overrides)
    where = launch_settings.read(TrainingLaunch, config, ours)
    settings = load(TrainSettings, config, theirs)
    require_fit(settings, where.ranks)
    return where, settings


def _task(where: TrainingLaunch, folder: Path) -> Training:
    under_torchrun = where.task == "node"
    return Training(
        place=Place(str(folder / snapshot.CODE), str(Path.cwd())),
        config=str(folder / snapshot.CONFIG),
        ranks=where.ranks_of_node if under_torchrun else 1,
        nodes=where.nodes,
        under_torchrun=under_torchrun,
    )


def _executor(
    where: TrainingLaunch, settings: TrainSettings, folder: Path
) -> SlurmExecutor | LocalExecutor | DebugExecutor:
    if where.cluster == "debug":
        return DebugExecutor(folder)
    if where.cluster == "local":
        local = LocalExecutor(folder, python=where.python or None)
        local.update_parameters(
            timeout_min=where.minutes,
            signal_delay_s=where.signal_seconds,
            gpus_per_node=where.gpus_per_node,
            tasks_per_node=1 if where.task == "node" else where.ranks_of_node,
            visible_gpus=_visible_gpus(),
            stderr_to_stdout=True,
        )
        return local
    slurm = SlurmExecutor(folder, python=where.python or None)
    slurm.update_parameters(**_parameters(where, settings, folder))
    return slurm


def _visible_gpus() -> list[int]:
    """Those that this process is told to use; none where it is told nothing."""
    told = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return [int(number) for number in told.split(",") if number.isdecimal()]


def _parameters(where: TrainingLaunch, settings: TrainSettings, folder: Path) -> dict[str, Any]:
    """Of the Slurm job, for SlurmExecutor.update_parameters."""
    run = Path(settings.output).absolute()
    log = _log(folder, "%j")
    name = f"hnpretrain-{run.name}"
    parameters = executor.slurm_parameters(where, folder, name, log, [_mark(settings)])
    tasks = 1 if where.task == "node" else where.ranks_of_node
    parameters |= {
        "nodes": where.nodes,
        "ntasks_per_node": tasks,
        "signal_delay_s": where.signal_seconds,
    }
    if where.gpus_per_node:
        parameters["gpus_per_node"] = where.gpus_per_node
    if where.cpus_per_rank:
        executor.give_cores(parameters, where.cpus_per_rank * where.ranks_of_node // tasks)
    arguments = [run, folder, where.requeues, where.failures]
    parameters["teardown"] = [
        f"bash {shlex.quote(str(folder / snapshot.CODE / 'launch' / 'requeue.sh'))} $? "
        + shlex.join(map(str, arguments))
    ]
    return parameters


def _mark(settings: TrainSettings) -> Path:
    """A file in the run's folder, by which nodes can tell that it is the one of this machine."""
    return Path(settings.output).absolute() / ".launched"


def _log(folder: Path, job: str) -> str:
    return str(folder / f"{job}.log")
