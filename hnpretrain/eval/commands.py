"""The command `hnpretrain eval`.

hnpretrain eval runs/a/export --benchmark sugarcrepe=sugarcrepe/data,coco/val2017 --json a.json
hnpretrain eval compare a.json b.json --html ab.html
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

if TYPE_CHECKING:
    from collections.abc import Callable

    from hnpretrain.eval.benchmarks.base import Benchmark
    from hnpretrain.eval.encode import Encoder, Share
    from hnpretrain.eval.results import ModelName, Result, Withheld
    from hnpretrain.eval.scorers import Scorer
    from hnpretrain.eval.store import FeatureStore
    from hnpretrain.models import LoadedModel

DEVICES = ("auto", "cpu", "cuda")
SCORERS = ("cosine", "random", "comclip")


class _Evaluate(TyperGroup):
    """`eval CHECKPOINT ...` is `eval run CHECKPOINT ...`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] != "--help":
            args = ["run", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_Evaluate,
    help="Score a model on benchmarks, and compare what was found. `eval CHECKPOINT ...` is "
    "`eval run CHECKPOINT ...`.",
    no_args_is_help=True,
    add_completion=False,
)


def _tell_benchmarks(wanted: bool) -> None:
    if not wanted:
        return
    from rich.console import Console

    from hnpretrain.eval import benchmarks, report

    report.print_kinds([kind.about for kind in benchmarks.KINDS.values()], Console())
    raise typer.Exit


@app.command("run")
def run(
    checkpoint: Annotated[
        str,
        typer.Argument(
            help="An export folder, a checkpoint folder of a run, open_clip's ARCH:TAG, or a "
            "Hugging Face CLIP or SigLIP (folder, or hf:NAME)."
        ),
    ],
    benchmark: Annotated[
        list[str],
        typer.Option(
            "--benchmark",
            metavar="NAME=DATA[,IMAGES]",
            help="A benchmark (--list has all), its file or folder (or hub), and its image folder "
            "where it needs one. Give it again for more.",
        ),
    ],
    json: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write all results here.")
    ] = None,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write a page with plots here.")
    ] = None,
    scorer: Annotated[
        str, typer.Option(metavar="|".join(SCORERS), help="What scores an image and a caption.")
    ] = "cosine",
    regions: Annotated[
        Path | None,
        typer.Option("--regions", metavar="JSONL", help="Boxes or masks of words, for comclip."),
    ] = None,
    cache: Annotated[
        Path | None,
        typer.Option("--cache", metavar="FOLDER", help="Keep features here, for later runs."),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images or captions at a time.")] = 64,
    device: Annotated[str, typer.Option(metavar="auto|cpu|cuda", help="Where to run.")] = "auto",
    precision: Annotated[str, typer.Option(metavar="fp32|bf16", help="Of the towers.")] = "fp32",
    ema: Annotated[
        bool, typer.Option("--ema", help="The average of a checkpoint's weights (see `ema`).")
    ] = False,
    partial: Annotated[
        bool,
        typer.Option(
            "--partial", help="Score the items whose images are there and good; marks it PARTIAL."
        ),
    ] = False,
    listing: Annotated[
        bool,
        typer.Option(
            "--list", is_eager=True, callback=_tell_benchmarks, help="Tell all benchmarks."
        ),
    ] = False,
) -> None:
    """Score a model on benchmarks that lie in local files.

    Several GPUs: python -m launch.torchrun --nproc_per_node 8 -m hnpretrain.cli eval ...

    Exit status 1: scores were withheld, for missing or broken images.
    """
    del listing
    from hnpretrain.config import require_one_of
    from hnpretrain.eval import benchmarks as known
    from hnpretrain.eval.encode import PRECISIONS, Encoder
    from hnpretrain.eval.processes import is_main, processes
    from hnpretrain.eval.results import ModelName, Withheld
    from hnpretrain.eval.scorers import make_scorer
    from hnpretrain.eval.store import InMemory, OnDisk
    from hnpretrain.models import load

    # What can be wrong with the request is found before the model is loaded.
    placed = _device(device)
    require_one_of("--precision", precision, PRECISIONS)
    require_one_of("--scorer", scorer, SCORERS)
    requests = [known.read_request(text, "--benchmark") for text in benchmark]
    for option, path in (("--json", json), ("--html", html)):
        if path is not None:
            _check_writable(option, path)
    scoring = make_scorer(scorer, regions)
    results: list[Result] = []
    withheld: list[Withheld] = []
    with processes() as share:
        found = [_load(*request, partial, share, withheld) for request in requests]
        model = load(checkpoint, placed, ema=ema)
        named = ModelName(model.name, model.pretrained)
        store: FeatureStore = InMemory()
        if cache is not None:
            store = OnDisk(cache, _fingerprint(model, placed, precision, batch_size))
        encoder = Encoder(
            model.model,
            model.preprocess_val,
            model.tokenizer,
            placed,
            batch_size,
            precision,
            share=share,
            store=store,
        )
        try:
            for asked in filter(None, found):
                try:
                    results.append(_run(asked, encoder, scoring))
                except Withheld as error:
                    withheld.append(error)
        finally:  # of a failure in a later one, the others' scores are not lost
            if is_main():
                _tell(results, withheld, named, json, html)
    if withheld:
        raise typer.Exit(1)


def _load(
    name: str,
    data: Path,
    images: Path | None,
    partial: bool,
    share: Share,
    withheld: list[Withheld],
) -> Benchmark | None:
    """A benchmark; None in all processes if one of them lacks images, which goes to `withheld`."""
    from hnpretrain.eval import benchmarks as known
    from hnpretrain.eval.results import Withheld

    found: list[Benchmark] = []

    def work() -> list[Withheld]:
        try:
            found.append(known.load(name, data, images, partial))
        except Withheld as error:
            return [error]
        return []

    if lacking := share.joined(work):
        withheld.append(lacking[0])
        return None
    return found[0]


def _fingerprint(model: LoadedModel, device: str, precision: str, batch_size: int) -> str:
    """Of all that features depend on: sums of another device or batch differ in their last bits."""
    import torch

    from hnpretrain.eval.store import fingerprint

    place = torch.cuda.get_device_name(device) if device.startswith("cuda") else device
    settings = (model.config, model.preprocess_val, precision, batch_size, place, torch.__version__)
    return fingerprint(model.model, *settings)


def _tell(
    results: list[Result],
    withheld: list[Withheld],
    named: ModelName,
    json: Path | None,
    html: Path | None,
) -> None:
    from rich.console import Console

    from hnpretrain.eval import report
    from hnpretrain.eval.page import write_html
    from hnpretrain.eval.results import write_json

    for path, write in ((json, write_json), (html, write_html)):
        if path is not None:
            write(path, results, withheld, named)
    console = Console()
    for result in results:
        report.print_result(result, named, console)
    for path in filter(None, (json, html)):
        report.print_plain(f"wrote {path}", console)
    for each in withheld:
        report.print_withheld(each, Console(stderr=True))


@app.command("compare")
def compare(
    files: Annotated[
        list[Path],
        typer.Argument(metavar="A.json B.json ...", help="What --json wrote, of two runs or more."),
    ],
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write a page with plots here.")
    ] = None,
) -> None:
    """Compare runs answer by answer: which differences are more than chance.

    Several files: each against the first. Nothing but the files is needed.
    """
    from rich.console import Console

    from hnpretrain.eval import report
    from hnpretrain.eval.compare import compare_all
    from hnpretrain.eval.page import write_comparison
    from hnpretrain.eval.results import read_json

    if len(files) < 2:
        raise typer.BadParameter("give the files of two runs or more")
    if html is not None:
        _check_writable("--html", html)
    runs = [read_json(path) for path in files]
    console = Console()
    report.print_comparisons(compare_all(runs), console)
    if html is not None:
        write_comparison(html, runs)
        report.print_plain(f"wrote {html}", console)


def _run(benchmark: Benchmark, encoder: Encoder, scorer: Scorer) -> Result:
    """Runs one benchmark with a live count on a terminal, one line elsewhere."""
    import torch
    from rich.console import Console

    from hnpretrain.eval import report
    from hnpretrain.eval.processes import is_main

    console = Console(stderr=True, quiet=not is_main())
    with console.status(benchmark.name) as status:
        encoder.on_progress = _progress(benchmark.name, status.update)
        try:
            result = benchmark.run(encoder, scorer)
        except (RuntimeError, MemoryError) as error:
            # On a CPU torch says so by words alone.
            is_memory = isinstance(error, (torch.OutOfMemoryError, MemoryError))
            if not is_memory and "allocate memory" not in str(error):
                raise
            raise ValueError(f"{benchmark.name}: lower --batch-size: {error}") from error
    if not console.is_terminal:
        report.print_plain(f"{benchmark.name}: done", console)
    return result


def _progress(name: str, show: Callable[[str], None]) -> Callable[[str, int], None]:
    done: dict[str, int] = {}

    def advance(what: str, count: int) -> None:
        done[what] = done.get(what, 0) + count
        show(f"{name}: " + ", ".join(f"{count} {what}" for what, count in done.items()))

    return advance


def _device(device: str) -> str:
    import os

    import torch

    from hnpretrain.config import require_one_of

    require_one_of("--device", device, DEVICES)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: torch sees no CUDA device here; use --device cpu")
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if device == "cuda" else device


def _check_writable(option: str, path: Path) -> None:
    if not path.parent.is_dir():
        raise ValueError(f"{option} {str(path)!r}: {str(path.parent)!r} is not a folder")
    if path.is_dir():
        raise ValueError(f"{option} {str(path)!r} is a folder; name a file")
