"""`hnpretrain bench negatives`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def negatives(
    captions: Annotated[str, typer.Argument(help="A COCO captions json, may be gzipped.")],
    presets: Annotated[str, typer.Option(help="Which, with commas between.")] = "hn,negclip",
    images: Annotated[int, typer.Option(min=0, help="The first so many; 0 takes all.")] = 0,
    seed: Annotated[int, typer.Option(help="Of all random draws.")] = 0,
    json_file: Annotated[str, typer.Option("--json", help="Write the rows here, too.")] = "",
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="A key=value of `negatives:`, for all presets."),
    ] = None,
) -> None:
    """Captions a second of one core, and how far text alone gives the negatives away.

    Ours by preset beside NegCLIP's recipe (spaCy's whole pipeline, swaps) and TSVLC's (lists of
    words), all on one core and in turns.
    """
    from shard_tools.extras import require_sklearn

    require_sklearn()
    from hnpretrain.bench.machine import machine
    from hnpretrain.config import load
    from shard_tools.bench import negatives as bench
    from shard_tools.bench.report import print_rows
    from shard_tools.negatives import NegativeSettings

    names = [name.strip() for name in presets.split(",") if name.strip()]
    chosen = [load(NegativeSettings, None, [f"preset={n}", *(settings or [])]) for n in names]
    if not chosen:
        raise typer.BadParameter("--presets names none")
    samples = bench.read_samples(captions)
    rows = bench.compare(samples[: images or None], chosen, seed)
    values = bench.as_json(rows, machine())
    print_rows(values)
    if json_file:
        Path(json_file).write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
