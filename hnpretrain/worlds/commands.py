"""`hnpretrain world`: writes the concept world's train scenes and test pairs.

hnpretrain world scenes /tmp/world --count 1000
hnpretrain world pairs /tmp/pairs.parquet --per-concept 100
hnpretrain world sheet /tmp/sheet.png
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    no_args_is_help=True,
    help="The concept world: rendered scenes with true captions, and test pairs that differ in "
    "one concept.",
)

Seed = Annotated[int, typer.Option(min=0, help="Same seed, same bytes.")]
Size = Annotated[int, typer.Option(min=32, help="Side of the pictures, in pixels.")]


@app.command()
def scenes(
    out: Annotated[Path, typer.Argument(help="Folder for images/ and captions.jsonl.")],
    count: Annotated[int, typer.Option(min=1, help="How many scenes.")] = 1000,
    seed: Seed = 0,
    size: Size = 64,
    split: Annotated[
        str, typer.Option(help="train, valid or test: none shares a scene.")
    ] = "train",
    captions: Annotated[int, typer.Option(min=1, help="Captions a scene.")] = 5,
) -> None:
    """Write pictures with captions, a source for `hnpretrain shard build`."""
    from hnpretrain.worlds.build import write_source

    path = write_source(out, count, seed, size, split, captions)
    typer.echo(f"{count} scenes of {size} x {size} pixels, {captions} captions each: {path}")


@app.command()
def pairs(
    out: Annotated[Path, typer.Argument(help="The parquet to write.")],
    per_concept: Annotated[int, typer.Option(min=1, help="Pairs of each concept.")] = 100,
    seed: Seed = 0,
    size: Size = 64,
) -> None:
    """Write test pairs in InpaintCOCO's format: object, color, size and location."""
    from hnpretrain.worlds.build import write_pairs
    from hnpretrain.worlds.pairs import CONCEPTS

    path = write_pairs(out, per_concept, seed, size)
    typer.echo(f"{per_concept} pairs for each of {', '.join(CONCEPTS)}: {path}")


@app.command()
def sheet(
    out: Annotated[Path, typer.Argument(help="The PNG to write.")],
    columns: Annotated[int, typer.Option(min=1, help="Pictures a row.")] = 6,
    seed: Seed = 0,
    size: Size = 64,
    zoom: Annotated[int, typer.Option(min=1, help="Screen pixels a picture pixel.")] = 2,
) -> None:
    """Write one picture of scenes and pairs with their captions, to look at."""
    from hnpretrain.worlds.build import write_sheet

    typer.echo(f"contact sheet: {write_sheet(out, columns, seed, size, zoom)}")
