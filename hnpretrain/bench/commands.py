"""`hnpretrain bench loss`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def loss(
    batch: Annotated[
        str, typer.Option(help="Global batches B, with commas between.")
    ] = "1024,4096",
    dim: Annotated[str, typer.Option(help="Widths D.")] = "512",
    negatives: Annotated[str, typer.Option(help="Negatives a caption, K.")] = "0,4",
    dtype: Annotated[str, typer.Option(help="Of the features: fp32, bf16, fp16.")] = "fp32",
    ranks: Annotated[str, typer.Option(help="Processes W: gloo on a CPU, else NCCL.")] = "1",
    device: Annotated[str, typer.Option(help="cpu or cuda; empty takes a GPU if any.")] = "",
    repeats: Annotated[int, typer.Option(min=1, help="Of which the median is told.")] = 5,
    json_file: Annotated[str, typer.Option("--json", help="Write the rows here, too.")] = "",
) -> None:
    """Time, memory and error of the loss, forward and backward, over all combinations.

    Ours beside open_clip's ClipLoss without negatives and with all ranks' negatives appended (as
    NegCLIP and CE-CLIP do); on a GPU also inf-cl and memeff, where they are installed.
    """
    import itertools

    import torch

    from hnpretrain.bench.loss import DTYPES, Case, compare
    from hnpretrain.bench.report import print_loss

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device not in ("cpu", "cuda") or (device == "cuda" and not torch.cuda.is_available()):
        raise typer.BadParameter(f"--device {device!r}: give cpu, or cuda where there is a GPU")
    names = [name.strip() for name in dtype.split(",")]
    if unknown := set(names) - DTYPES.keys():
        raise typer.BadParameter(f"--dtype {unknown.pop()!r} is not one of {', '.join(DTYPES)}")
    cases = [
        Case(B, D, K, name, W, device, repeats)
        for B, D, K, name, W in itertools.product(
            _numbers("batch", batch),
            _numbers("dim", dim),
            _numbers("negatives", negatives, least=0),
            names,
            _numbers("ranks", ranks),
        )
    ]
    for case in cases:
        if case.B % case.ranks:
            raise typer.BadParameter(f"--batch {case.B} is no multiple of --ranks {case.ranks}")
        if device == "cuda" and case.ranks > torch.cuda.device_count():
            raise typer.BadParameter(f"--ranks {case.ranks}: one GPU each, and there are fewer")
    rows = compare(cases)
    print_loss(rows)
    if json_file:
        Path(json_file).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def _numbers(name: str, text: str, least: int = 1) -> list[int]:
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < least:
        raise typer.BadParameter(f"--{name} {text!r}: give whole numbers of at least {least}")
    return numbers
