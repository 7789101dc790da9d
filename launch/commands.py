"""`hnpretrain launch`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from launch.record import Record

app = typer.Typer(
    help="Start trainings and shard jobs, on this machine or on a Slurm cluster; look after them.",
    no_args_is_help=True,
)

Config = Annotated[str, typer.Argument(help="The YAML; its `launch` section tells where and how.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...", help="Settings that go before the YAML's, as launch.nodes=2."
    ),
]
Output = Annotated[str, typer.Argument(help="The `output` of what was launched.")]
Folder = Annotated[str, typer.Option(help="launch.folder, if it was set.")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Print script and environment; submit and write nothing.")
]


@app.command()
def local(
    config: str = typer.Argument(help="The run's YAML."),
    overrides: Overrides = None,
    nproc: int = typer.Option(1, help="Processes; one a GPU on a GPU box."),
    restarts: int = typer.Option(
        3, help="How often a run that fails after a new checkpoint goes on from it."
    ),
) -> None:
    """Train on this machine under torchrun.

    Exit status 75: it was asked to stop, and saved; 130: Ctrl-C.
    """
    from launch.local import run_local

    raise typer.Exit(run_local(config, overrides or [], nproc, restarts))


@app.command()
def slurm(config: Config, overrides: Overrides = None, dry_run: DryRun = False) -> None:
    """Submit a training to Slurm.

    The job runs the code and the settings as they are now. It saves before its time limit and when
    it is preempted, and goes back to the queue and on at the exact step.
    """
    from launch.training import dry_run as script
    from launch.training import submit

    if dry_run:
        print(script(config, overrides or []), end="")
        return
    record = submit(config, overrides or [])
    _tell(record)


@app.command()
def shards(
    config: Config,
    overrides: Overrides = None,
    tasks: int = typer.Option(..., min=1, help="Of the array; each builds its part of the shards."),
    dry_run: DryRun = False,
) -> None:
    """Submit `shard build` to Slurm as an array.

    Called again, it submits what is not finished by then.
    """
    from launch.shards import dry_run as script
    from launch.shards import submit

    if dry_run:
        print(script(config, overrides or [], tasks), end="")
        return
    work, record = submit(config, overrides or [], tasks)
    if record is None:
        print("all shards are finished, and index.json is there: nothing to submit")
        return
    print(f"{work.owed} shards are not finished: {len(work.parts)} tasks of {work.of}")
    _tell(record)


@app.command()
def inpaint(
    config: Config,
    overrides: Overrides = None,
    tasks: int = typer.Option(..., min=1, help="Of the array; each makes its part."),
    dry_run: DryRun = False,
) -> None:
    """Submit `inpaint generate` to Slurm as an array.

    Called again, it makes what is not finished by then. `launch.sbatch.gres=gpu:1` gives each task
    a GPU.
    """
    from hnpretrain.inpaint.extra import require

    require("cv2")
    from launch.inpaint import dry_run as script
    from launch.inpaint import submit

    if dry_run:
        print(script(config, overrides or [], tasks), end="")
        return
    _tell(submit(config, overrides or [], tasks))


@app.command()
def status(output: Output, folder: Folder = "") -> None:
    """Tell how the last job of an output stands, and where its log is."""
    from launch.follow import status as lines

    print("\n".join(lines(output, folder)))


@app.command()
def logs(
    output: Output,
    folder: Folder = "",
    task: int = typer.Option(0, min=0, help="Of an array."),
    lines: int = typer.Option(0, "--lines", "-n", min=0, help="So many at the end; 0 is all."),
    follow: bool = typer.Option(False, "--follow", "-f", help="Go on until the job is over."),
) -> None:
    """Print the log of the last job of an output."""
    from launch import follow as jobs

    log, record = jobs.log_file(output, folder, task)
    for text in jobs.read(log, record, lines, follow=follow):
        print(text, end="", flush=True)


@app.command()
def cancel(
    output: Output,
    folder: Folder = "",
    now: bool = typer.Option(False, "--now", help="Do not wait for a training to save."),
) -> None:
    """End the last job of an output; a training saves first."""
    from launch.follow import cancel as end

    print(end(output, folder, now=now))


def _tell(record: Record) -> None:
    from launch.record import DEFAULT

    print(f"submitted: job {', '.join(record.jobs)}; log: {record.log}")
    folder = Path(record.log).parent.parent
    is_elsewhere = folder != Path(record.output) / DEFAULT
    options = f" --folder {folder}" if is_elsewhere else ""
    print(f"hnpretrain launch status|logs|cancel {record.output}{options}")
