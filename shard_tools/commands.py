"""`hnpretrain shard build|verify|preview|stats`."""

from __future__ import annotations

import signal
import sys
from types import FrameType
from typing import Annotated

import typer

app = typer.Typer(help="Build, check and look at shards of hard negatives.", no_args_is_help=True)

# What a shell gives for a command that Ctrl-C ended.
_STOPPED = 130

Folder = Annotated[str, typer.Argument(help="Folder or URL of the shards.")]


@app.command()
def build(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[CONFIG.yaml] [KEY=VALUE]...",
            help="A settings file, and settings that win over it. All keys: docs/shards.md.",
        ),
    ] = None,
) -> None:
    """Make shards with negatives out of captioned images.

    A job that was stopped goes on where it was: finished shards are kept.
    """
    from rich.console import Console

    from hnpretrain.config import load
    from shard_tools.job import BuildSettings
    from shard_tools.job import build as build_shards
    from shard_tools.progress import JobProgress
    from shard_tools.summary import print_summary

    files = [argument for argument in arguments or [] if "=" not in argument]
    if len(files) > 1:
        raise typer.BadParameter(f"one config file at most, got {' and '.join(files)}")
    overrides = [argument for argument in arguments or [] if "=" in argument]
    settings = load(BuildSettings, files[0] if files else None, overrides)

    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        with JobProgress(Console(stderr=True)) as progress:
            result = build_shards(settings, progress)
    except KeyboardInterrupt:
        print("stopped: finished shards are kept, the same command goes on there", file=sys.stderr)
        raise typer.Exit(_STOPPED) from None
    finally:
        signal.signal(signal.SIGTERM, before)
    console = Console()
    print_summary(console, result.index)
    console.print(
        f"{result.built} shards built, {result.kept} kept, in {settings.output}",
        soft_wrap=True,
        highlight=False,
        markup=False,
    )


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    """Makes SIGTERM a Ctrl-C before and after shards are built; meanwhile the job handles both."""
    raise KeyboardInterrupt


@app.command()
def verify(
    folder: Folder,
    max_pixels: Annotated[int, typer.Option(help="Largest width x height of an image.")] = 10**8,
    workers: Annotated[int, typer.Option(min=1, help="Processes.")] = 1,
) -> None:
    """Check every byte against markers and index; all problems are listed, exit status 1 if any."""
    from shard_tools.verify import verify as find_problems

    count = 0
    for problem in find_problems(folder, max_pixels, workers):
        count += 1
        print(problem, file=sys.stderr)
    if count:
        raise ValueError(f"{folder}: {count} problems")
    print(f"{folder}: all is well")


@app.command()
def preview(
    folder: Folder,
    samples: Annotated[int, typer.Option(min=1, help="How many samples.")] = 5,
    seed: Annotated[int, typer.Option(help="Which samples.")] = 0,
) -> None:
    """Show samples with their negatives, the changed words marked."""
    from rich.console import Console

    from shard_tools.preview import draw_samples, print_sample

    console = Console(highlight=False, soft_wrap=True)
    for shard, sample in draw_samples(folder, samples, seed):
        print_sample(console, shard, sample)


@app.command()
def stats(folder: Folder) -> None:
    """Show counts of samples, captions, negatives by concept and strategy, and rejects."""
    from rich.console import Console

    from shard_tools.summary import print_summary, read_counts

    index, finished = read_counts(folder)
    console = Console()
    print_summary(console, index)
    if not finished:
        console.print("unfinished: no index.json yet; these are the finished shards")
