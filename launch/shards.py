"""`hnpretrain launch shards`: the offline job as an array of Slurm tasks.

Three jobs, of which each waits for the one before: the words are counted, if they have to be; the
array builds what is not finished; the last one sums up the index.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hnpretrain.config import load
from hnpretrain.shards import storage
from hnpretrain.shards.index import INDEX_NAME
from launch import array, executor, record, snapshot
from launch import settings as launch_settings
from launch.settings import ArrayLaunch
from launch.state import alone
from launch.task import Command
from shard_tools.dry_run import plan
from shard_tools.settings import BuildSettings

_NAME = "hnpretrain-shards"
_BUILD = "build"
_FINISH = "finish"


@dataclass(frozen=True)
class Work:
    """What is to be done.

    Attributes:
        counts: whether words are counted first.
        parts: of the array, those that owe a shard.
        of: how many parts there are.
        owed: shards that are not finished.
        has_index: whether the index is there.
    """

    counts: bool
    parts: tuple[int, ...]
    of: int
    owed: int
    has_index: bool

    @property
    def is_done(self) -> bool:
        return not self.parts and self.has_index


def submit(config: str, overrides: Sequence[str], tasks: int) -> tuple[Work, record.Record | None]:
    """Submits what is not finished of the shards of `config`.

    Returns:
        The work, and the record of the submission; none if all is done.

    Raises:
        ValueError: the settings or the source are wrong; another job works on the output; Slurm is
            not there, or refuses the jobs.
        OSError: storage failed.
    """
    where, settings = _read(config, overrides)
    executor.require_slurm(where)
    base = record.folder_of(settings.output, where.folder)
    jobs: list[str] = []
    with alone(base, settings.output):
        work = _look(settings, tasks)
        if work.is_done:
            return work, None
        with record.new_folder(base) as folder, array.all_or_none(jobs):
            log = _submit_jobs(where, settings, work, folder, jobs)
            written = record.write(folder, where.cluster, "shards", jobs, log, settings.output)
        return work, written


def _submit_jobs(
    where: ArrayLaunch, settings: BuildSettings, work: Work, folder: Path, jobs: list[str]
) -> str:
    """Submits the jobs, and adds their ids to `jobs`; returns the name of their log."""
    snapshot.write(folder, settings)
    log = log_of_finish = str(folder / f"{_FINISH}.log")
    if work.counts:
        counting = array.executor(where, folder, f"{_NAME}-count", str(folder / "count.log"), jobs)
        jobs.append(executor.submit(counting, [array.task(folder, ("shard", "count"))])[0].job_id)
    if work.parts:
        built = [_build(where, settings, folder, part, work.of) for part in work.parts]
        pattern = array.log(folder, len(built), _BUILD)
        building = array.executor(where, folder, f"{_NAME}-{_BUILD}", pattern, jobs)
        jobs.append(executor.submit(building, built)[0].job_id.partition("_")[0])
        log = array.log_of_job(pattern, jobs[-1])
    finishing = array.executor(where, folder, f"{_NAME}-{_FINISH}", log_of_finish, jobs)
    jobs.append(executor.submit(finishing, [_build(where, settings, folder, 0, work.of)])[0].job_id)
    return log


def dry_run(config: str, overrides: Sequence[str], tasks: int) -> str:
    """The array's batch script, of the tasks that would be submitted; writes nothing.

    Raises:
        ValueError, OSError: see `submit`.
    """
    where, settings = _read(config, overrides)
    work = _look(settings, tasks)
    folder = record.next_folder(record.folder_of(settings.output, where.folder))
    pattern = array.log(folder, len(work.parts), _BUILD)
    return array.script(where, folder, f"{_NAME}-{_BUILD}", pattern, len(work.parts))


def _read(config: str, overrides: Sequence[str]) -> tuple[ArrayLaunch, BuildSettings]:
    ours, theirs = launch_settings.split(overrides)
    where = launch_settings.read(ArrayLaunch, config, ours)
    settings = load(BuildSettings, config, theirs)
    if settings.parts != 1:
        raise ValueError(f"parts={settings.parts}: leave part and parts to `launch shards --tasks`")
    return where, settings


def _look(settings: BuildSettings, tasks: int) -> Work:
    if tasks < 1:
        raise ValueError(f"--tasks={tasks} must be at least 1")
    planned = plan(settings)
    parts = min(tasks, len(planned.shards))
    owed = {shard.name for shard in planned.to_do}
    owing = {n % parts for n, shard in enumerate(planned.shards) if shard.name in owed}
    return Work(
        counts=planned.to_count is not None,
        parts=tuple(sorted(owing)),
        of=parts,
        owed=len(owed),
        has_index=storage.exists(storage.join(settings.output, INDEX_NAME)),
    )


def _build(
    where: ArrayLaunch, settings: BuildSettings, folder: Path, part: int, of: int
) -> Command:
    workers = settings.workers or where.cpus
    overrides = (f"part={part}", f"parts={of}", f"workers={workers}")
    return array.task(folder, ("shard", _BUILD), *overrides)
