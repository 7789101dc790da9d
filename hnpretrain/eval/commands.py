"""The command `hnpretrain eval`.

hnpretrain eval runs/a/export --benchmark sugarcrepe=sugarcrepe/data,coco/val2017 --json a.json
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Callable

    from hnpretrain.eval.benchmarks.base import Benchmark
    from hnpretrain.eval.encode import Encoder
    from hnpretrain.eval.report import Result

app = typer.Typer(add_completion=False)

DEVICES = ("auto", "cpu", "cuda")


@app.command("eval")
def evaluate(
    checkpoint: Annotated[
        str,
        typer.Argument(
            help="An export folder, a checkpoint folder of a run, or open_clip's ARCH:TAG."
        ),
    ],
    benchmark: Annotated[
        list[str],
        typer.Option(
            "--benchmark",
            metavar="NAME=DATA[,IMAGES]",
            help="A benchmark (inpaintcoco, retrieval, sugarcrepe), its file or folder, and its "
            "image folder where it needs one. Give it again for more.",
        ),
    ],
    json: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write all results here.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images or captions at a time.")] = 64,
    device: Annotated[str, typer.Option(metavar="auto|cpu|cuda", help="Where to run.")] = "auto",
    ema: Annotated[
        bool, typer.Option("--ema", help="The average of a checkpoint's weights (see `ema`).")
    ] = False,
    allow_missing: Annotated[
        bool,
        typer.Option(
            "--allow-missing", help="Score the items whose images are there; marks it PARTIAL."
        ),
    ] = False,
) -> None:
    """Score a model on benchmarks that lie in local files."""
    from rich.console import Console

    from hnpretrain.eval import benchmarks as known
    from hnpretrain.eval import report
    from hnpretrain.eval.encode import Encoder
    from hnpretrain.models import load

    # All that can be wrong with the request is found before the model is loaded.
    placed = _device(device)
    requests = [known.read_request(text, "--benchmark") for text in benchmark]
    if json is not None:
        _check_writable(json)
    loaded = [known.load(name, data, images, allow_missing) for name, data, images in requests]

    model = load(checkpoint, placed, ema=ema)
    name = report.ModelName(model.name, model.pretrained)
    encoder = Encoder(model.model, model.preprocess_val, model.tokenizer, placed, batch_size)
    results = [_run(each, encoder) for each in loaded]

    if json is not None:
        report.write_json(json, results, name)
    console = Console()
    for result in results:
        report.print_result(result, name, console)
    if json is not None:
        report.print_plain(f"wrote {json}", console)


def _run(benchmark: Benchmark, encoder: Encoder) -> Result:
    """Runs one benchmark with a live count on a terminal, one line elsewhere."""
    from rich.console import Console

    from hnpretrain.eval import report

    console = Console(stderr=True)
    with console.status(benchmark.name) as status:
        encoder.on_progress = _progress(benchmark.name, status.update)
        result = benchmark.run(encoder)
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
    import torch

    from hnpretrain.config import require_one_of

    require_one_of("--device", device, DEVICES)
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: torch sees no CUDA device here; use --device cpu")
    return device


def _check_writable(path: Path) -> None:
    if not path.parent.is_dir():
        raise ValueError(f"--json {str(path)!r}: {str(path.parent)!r} is not a folder")
    if path.is_dir():
        raise ValueError(f"--json {str(path)!r} is a folder; name a file")
