"""`hnpretrain shard build|index|count|adversary|verify|preview|stats`."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from shard_tools.settings import BuildSettings

app = typer.Typer(help="Build, check and look at shards of hard negatives.", no_args_is_help=True)

# What a shell gives for a command that Ctrl-C ended.
_STOPPED = 130

Folder = Annotated[str, typer.Argument(help="Folder or URL of the shards.")]
Workers = Annotated[int, typer.Option(min=1, help="Processes.")]
MaxPixels = Annotated[int, typer.Option(min=1, help="Largest width x height of an image.")]


Arguments = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[CONFIG.yaml] [KEY=VALUE]...",
        help="A settings file, and settings that win over it. All keys: docs/shards.md.",
    ),
]


@app.command()
def build(
    arguments: Arguments = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done; write nothing.")
    ] = False,
) -> None:
    """Make shards with negatives out of captioned images.

    A job that was stopped goes on where it was: finished shards are kept. Several jobs, on any
    machines, share the work with part=0 parts=8, part=1 parts=8 and so on.
    """
    from rich.console import Console

    from shard_tools.dry_run import plan, print_plan
    from shard_tools.job import build as build_shards
    from shard_tools.progress import JobProgress
    from shard_tools.summary import print_summary

    settings = _settings(arguments)
    console = Console()
    if dry_run:
        print_plan(console, settings, plan(settings))
        return
    with (
        _stoppable("finished shards are kept, the same command goes on there"),
        JobProgress(Console(stderr=True)) as progress,
    ):
        result = build_shards(settings, progress)
    print_summary(console, result.index)
    done = f"{result.built} shards built, {result.kept} kept, in {settings.output}"
    if result.owed:
        done += f"; no index.json yet, the other parts owe {result.owed} shards"
    console.print(done, soft_wrap=True, highlight=False, markup=False)


@app.command()
def index(
    folder: Annotated[str, typer.Argument(help="Folder or URL of the tars.")],
    markers: Annotated[
        str,
        typer.Option(
            metavar="FOLDER", help="Folder or URL for markers and index; else beside the tars."
        ),
    ] = "",
    workers: Annotated[int, typer.Option(min=0, help="Processes; 0: one a core.")] = 0,
    max_pixels: MaxPixels = 10**8,
    max_reject_share: Annotated[
        float, typer.Option(min=0, max=1, help="No index if more samples or tars are rejected.")
    ] = 0.1,
) -> None:
    """Make markers and index for tars that others wrote, so that `train` streams them.

    Reads each .tar of WebDataset's kind (img2dataset, DataComp, ...) once; the tars stay as they
    are. A command that was stopped goes on where it was: finished markers are kept.
    """
    from rich.console import Console

    from shard_tools.indexing import index_tars
    from shard_tools.summary import print_summary
    from shard_tools.workers import cores

    with (
        _stoppable("finished markers are kept, the same command goes on there"),
        _bar("indexing") as progress,
    ):
        done = index_tars(
            folder, markers, workers or cores(), max_pixels, max_reject_share, progress
        )
    console = Console()
    print_summary(console, done.index)
    line = f"{done.made} tars indexed, {done.kept} kept: data.shards={markers or folder}"
    console.print(line, soft_wrap=True, highlight=False, markup=False)


@app.command()
def count(arguments: Arguments = None) -> None:
    """Count how often words occur in the captions, for negatives drawn by it.

    `build` does this first where it is needed. For an array of jobs it is better done before, once.
    """
    from rich.console import Console

    from shard_tools.counting import table_path
    from shard_tools.job import count as count_words
    from shard_tools.progress import JobProgress

    settings = _settings(arguments)
    with _stoppable("nothing was written"), JobProgress(Console(stderr=True)) as progress:
        table = count_words(settings, progress)
    print(f"{table.captions} captions counted, in {table_path(settings.output)}")


@app.command()
def adversary(
    file: Annotated[str, typer.Argument(help="Where to write it.")],
    arguments: Arguments = None,
    captions: Annotated[int, typer.Option(min=1, help="About how many are read.")] = 100_000,
    rounds: Annotated[int, typer.Option(min=1, help="Of learning and thinning.")] = 2,
) -> None:
    """Learn to tell negatives from captions by text alone, for negatives.adversary=FILE.

    Takes the settings of the build that is to use it. What its classifier sees through is then
    thinned until it is at chance.
    """
    from hnpretrain.shards import storage
    from shard_tools.extras import require_sklearn
    from shard_tools.learning import learn_adversary

    require_sklearn()
    learned = learn_adversary(_settings(arguments), captions, rounds)
    storage.write_bytes(file, learned.to_bytes())
    print(f"{file}: use it with negatives.adversary={file}")


def _settings(arguments: list[str] | None) -> BuildSettings:
    from hnpretrain.config import load
    from shard_tools.settings import BuildSettings

    files = [argument for argument in arguments or [] if "=" not in argument]
    if len(files) > 1:
        raise typer.BadParameter(f"one config file at most, got {' and '.join(files)}")
    overrides = [argument for argument in arguments or [] if "=" in argument]
    return load(BuildSettings, files[0] if files else None, overrides)


@contextlib.contextmanager
def _stoppable(what_stays: str) -> Iterator[None]:
    """SIGTERM is a Ctrl-C inside (while workers run, the job handles both), and either ends the
    command with one line.
    """
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    except KeyboardInterrupt:
        print(f"stopped: {what_stays}", file=sys.stderr)
        raise typer.Exit(_STOPPED) from None
    finally:
        signal.signal(signal.SIGTERM, before)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


@app.command()
def verify(
    folder: Folder,
    deep: Annotated[
        bool, typer.Option("--deep", help="Decode every image; else its header must do.")
    ] = False,
    max_pixels: MaxPixels = 10**8,
    workers: Workers = 1,
) -> None:
    """Check all bytes against markers and index, and every negative against its caption.

    The problems are listed, at most 20 a shard; exit status 1 if there is any.
    """
    from shard_tools.verify import verify as find_problems

    well = True
    with _bar("checking") as progress:
        for problem in find_problems(folder, max_pixels, workers, deep, progress):
            well = False
            print(problem, file=sys.stderr)
    if not well:
        raise ValueError(f"{folder} has the problems above")
    print(f"{folder}: all is well")


@app.command()
def preview(
    folder: Folder,
    samples: Annotated[
        int | None, typer.Option(min=1, help="How many samples: 5 unless told, in a page 100.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Which samples.")] = 0,
    html: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Write a page with images and filters, for a browser."),
    ] = None,
) -> None:
    """Show samples with their negatives, the changed words marked."""
    from rich.console import Console

    from shard_tools.preview import draw_samples, print_sample
    from shard_tools.summary import read_counts, require_built

    index, _ = read_counts(folder)
    require_built(index, "preview")
    drawn = draw_samples(folder, index, samples or (100 if html else 5), seed)
    if html:
        from shard_tools.preview_page import write_page

        write_page(html, folder, index, seed, drawn)
        print(f"written: {html}")
        return
    console = Console(highlight=False, soft_wrap=True)
    for shard, sample in drawn:
        print_sample(console, shard, sample)


@app.command()
def stats(
    folder: Folder,
    words: Annotated[
        bool, typer.Option("--words", help="Read the texts as well: words, coverage, repeats.")
    ] = False,
    samples: Annotated[
        int | None,
        typer.Option(min=1, help="With --words: draw whole shards until they hold so many."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Which shards are drawn.")] = 0,
    workers: Workers = 1,
    json_file: Annotated[
        str | None, typer.Option("--json", metavar="FILE", help="Write all of it there.")
    ] = None,
) -> None:
    """Show counts of samples, captions, negatives by concept and strategy, and rejects.

    They are in the index. What only the texts can tell, --words reads.
    """
    import dataclasses
    import json

    from rich.console import Console

    from hnpretrain.shards import storage
    from shard_tools.summary import print_summary, print_text_stats, read_counts, require_built
    from shard_tools.text_stats import read_text_stats

    if samples is not None and not words:
        raise ValueError(f"--samples {samples} draws shards for --words: give both or none")
    index, finished = read_counts(folder)
    text = None
    if words:
        require_built(index, "stats --words")
        with _bar("reading") as progress:
            text = read_text_stats(folder, index, samples, seed, workers, progress)
    console = Console()
    print_summary(console, index)
    if text:
        print_text_stats(console, text)
    if not finished:
        console.print("unfinished: no index.json yet; these are the finished shards")
    if json_file:
        content = {
            "folder": folder,
            "finished": finished,
            "index": dataclasses.asdict(index),
            "words": text and text.to_json(),
        }
        storage.write_bytes(json_file, (json.dumps(content, indent=1) + "\n").encode())


@contextlib.contextmanager
def _bar(doing: str) -> Iterator[Callable[[int, int], None]]:
    """Shows shards done of all on a terminal; the result is called with both."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (doing, BarColumn(), MofNCompleteColumn(), "shards", TimeRemainingColumn())
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task(doing, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
