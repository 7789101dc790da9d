"""`hnpretrain launch inpaint`: `inpaint generate` as an array of Slurm tasks."""

from __future__ import annotations

from collections.abc import Sequence

from hnpretrain.config import load
from hnpretrain.inpaint.folder import Folder
from hnpretrain.inpaint.settings import InpaintSettings
from launch import array, executor, record, snapshot
from launch import settings as launch_settings
from launch.settings import ArrayLaunch
from launch.state import alone

_NAME = "hnpretrain-inpaint"
_STEP = "generate"


def submit(config: str, overrides: Sequence[str], tasks: int) -> record.Record:
    """Submits the making of all candidates of `config` that are not finished.

    A task whose part is finished ends at once.

    Returns:
        The record of the submission.

    Raises:
        ValueError: the settings are wrong; there are no proposals; Slurm is not there, or refuses
            the job; another submission is under way.
        OSError: storage failed.
    """
    where, settings, parts = _read(config, overrides, tasks)
    executor.require_slurm(where)
    base = record.folder_of(settings.output, where.folder)
    jobs: list[str] = []
    with (
        alone(base, settings.output),
        record.new_folder(base) as folder,
        array.all_or_none(jobs),
    ):
        snapshot.write(folder, settings)
        log = array.log(folder, parts, _STEP)
        made = [
            array.task(
                folder, ("inpaint", _STEP), f"generate.part={part}", f"generate.parts={parts}"
            )
            for part in range(parts)
        ]
        slurm = array.executor(where, folder, _NAME, log)
        jobs.append(executor.submit(slurm, made)[0].job_id.partition("_")[0])
        log = array.log_of_job(log, jobs[-1])
        return record.write(folder, where.cluster, "inpaint", jobs, log, settings.output)


def dry_run(config: str, overrides: Sequence[str], tasks: int) -> str:
    """The array's batch script; submits and writes nothing.

    Raises:
        ValueError, OSError: see `submit`.
    """
    where, settings, parts = _read(config, overrides, tasks)
    folder = record.next_folder(record.folder_of(settings.output, where.folder))
    return array.script(where, folder, _NAME, array.log(folder, parts, _STEP), parts)


def _read(
    config: str, overrides: Sequence[str], tasks: int
) -> tuple[ArrayLaunch, InpaintSettings, int]:
    """The settings, and how many parts there are: no more than proposals."""
    ours, theirs = launch_settings.split(overrides)
    where = launch_settings.read(ArrayLaunch, config, ours)
    settings = load(InpaintSettings, config, theirs)
    if settings.generate.parts != 1:
        raise ValueError(
            f"generate.parts={settings.generate.parts}: leave part and parts to `launch inpaint "
            "--tasks`"
        )
    proposals = Folder(settings.require_output()).proposals()
    if not proposals:
        raise ValueError(f"{settings.output} has no proposals, so that nothing is to be made")
    return where, settings, min(tasks, len(proposals))
