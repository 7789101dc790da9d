"""The command `hnpretrain inpaint`: pairs of pictures that differ in one thing, from photos.

hnpretrain inpaint propose configs/inpaint.yaml source.path=photos.jsonl output=pairs
hnpretrain inpaint generate configs/inpaint.yaml output=pairs
hnpretrain inpaint review pairs --reviewer ana
hnpretrain inpaint export pairs pairs/export
hnpretrain eval CHECKPOINT --benchmark inpaintcoco=pairs/export/pairs.parquet
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from hnpretrain.inpaint.generate import GenerateResult

app = typer.Typer(
    help="Make pairs of pictures that differ in one thing, as InpaintCOCO, from photos with "
    "captions: propose edits, generate pictures, let people review them, export a data set.",
    no_args_is_help=True,
)

# What a shell gives for a command that Ctrl-C ended.
_STOPPED = 130

Config = Annotated[str, typer.Argument(help="The YAML; see configs/inpaint.yaml.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...", help="Settings that go before the YAML's, as output=pairs."
    ),
]
Folder = Annotated[Path, typer.Argument(help="The `output` of propose and generate.")]
MaxPixels = Annotated[int, typer.Option(min=1, help="Largest width x height of a picture.")]


@app.command()
def propose(config: Config, overrides: Overrides = None) -> None:
    """Find what could be edited in the photos, and what the captions would be.

    What is left out is told with its reason, in left_out.jsonl.
    """
    from hnpretrain.inpaint.extra import require

    require("cv2")
    from hnpretrain.config import load
    from hnpretrain.inpaint.folder import Folder
    from hnpretrain.inpaint.photos import read_photos
    from hnpretrain.inpaint.propose import propose as make
    from hnpretrain.inpaint.segmenter import masks_of
    from hnpretrain.inpaint.settings import InpaintSettings

    settings = load(InpaintSettings, config, overrides or [])
    result = make(
        Folder(settings.require_output()),
        read_photos(settings.source, settings.max_pixels),
        masks_of(settings.masks),
        settings.propose,
        settings.seed,
        settings.max_pixels,
    )
    print(f"{result.photos:,} photos: {result.proposals.total():,} proposals in {settings.output}")
    _tell("proposals", result.proposals)
    _tell("things to paste", result.donors)
    _tell("left out", result.left_out)


@app.command()
def generate(config: Config, overrides: Overrides = None) -> None:
    """Let editors make pictures for the proposals, and check them.

    A run that was stopped goes on where it was. Several jobs share the work with generate.part=0
    generate.parts=8 and so on; `launch inpaint` starts them on Slurm.
    """
    from hnpretrain.inpaint.extra import require

    require("cv2")
    from rich.console import Console

    from hnpretrain.config import load
    from hnpretrain.inpaint.checks import Checks
    from hnpretrain.inpaint.devices import kind_of
    from hnpretrain.inpaint.folder import Folder
    from hnpretrain.inpaint.generate import editors_of
    from hnpretrain.inpaint.generate import generate as make
    from hnpretrain.inpaint.progress import GenerateProgress
    from hnpretrain.inpaint.settings import InpaintSettings

    settings = load(InpaintSettings, config, overrides or [])
    folder = Folder(settings.require_output())
    folder.proposals()  # what is missing is told before anything is loaded
    device = kind_of(settings.generate.found_devices()[0])
    checks = Checks.of(settings.checks)
    checks.verify()
    editors = editors_of(settings.generate, folder, device)
    progress = GenerateProgress(Console(stderr=True))
    try:
        result = make(
            folder,
            settings.generate,
            editors,
            checks,
            settings.seed,
            settings.max_pixels,
            progress,
        )
    except KeyboardInterrupt:
        print("stopped: finished pictures are kept, the same command goes on there")
        raise typer.Exit(_STOPPED) from None
    _tell_made(settings.output, result)


@app.command()
def review(
    folder: Folder,
    reviewer: Annotated[str, typer.Option(help="Your name; else the page asks for it.")] = "",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes any free one.")] = 8766,
    all_candidates: Annotated[
        bool, typer.Option("--all", help="Show pictures that failed a check, too.")
    ] = False,
    max_pixels: MaxPixels = 100_000_000,
) -> None:
    """Show the pairs on a local page, where people accept or reject them.

    A decision is on disk before the page says so. Ctrl-C ends it.
    """
    from hnpretrain.inpaint.extra import require

    require("starlette", "uvicorn")
    from hnpretrain.inpaint import folder as folders
    from hnpretrain.inpaint.review.server import serve

    only = "all" if all_candidates else "passed"
    serve(folders.Folder(folder), reviewer, port, only, max_pixels)


@app.command()
def export(
    folder: Folder,
    out: Annotated[Path, typer.Argument(help="The folder to write.")],
    kind: Annotated[
        str,
        typer.Option("--format", help="parquet: a benchmark, as InpaintCOCO; shards: to train on."),
    ] = "parquet",
    require: Annotated[
        str,
        typer.Option(help="Of those who judged a pair, so many must accept: any, majority, all."),
    ] = "majority",
    unreviewed: Annotated[
        bool, typer.Option("--unreviewed", help="Take what nobody judged, if it passed all checks.")
    ] = False,
    anonymous: Annotated[
        bool, typer.Option("--anonymous", help="Call reviewers reviewer-1, reviewer-2, ...")
    ] = False,
    max_per_photo: Annotated[int, typer.Option(min=0, help="Pairs of one photo; 0 for all.")] = 0,
    balance: Annotated[
        bool, typer.Option("--balance", help="As many pairs of each concept.")
    ] = False,
    pairs_per_shard: Annotated[int, typer.Option(min=1, help="Two samples each.")] = 500,
    title: Annotated[str, typer.Option(help="Of the data card.")] = "Minimal image pairs",
    max_pixels: MaxPixels = 100_000_000,
) -> None:
    """Write the accepted pairs as a data set with its card."""
    from hnpretrain.inpaint import folder as folders
    from hnpretrain.inpaint.export import ExportSettings
    from hnpretrain.inpaint.export import export as write

    settings = ExportSettings(
        format=kind,
        require=require,
        unreviewed=unreviewed,
        anonymous=anonymous,
        max_per_photo=max_per_photo,
        balance=balance,
        pairs_per_shard=pairs_per_shard,
        max_pixels=max_pixels,
        title=title,
    )
    result = write(folders.Folder(folder), out, settings)
    print(f"{result.pairs:,} pairs: {result.out}")
    _tell("concepts", result.concepts)
    _tell("editors", result.editors)
    _tell("without a pair", result.reasons)
    for line in result.damaged:
        print(f"damaged: {line}")


@app.command()
def sheet(
    folder: Folder,
    out: Annotated[Path, typer.Argument(help="The PNG to write.")],
    unreviewed: Annotated[
        bool, typer.Option("--unreviewed", help="Take what nobody judged, if it passed all checks.")
    ] = False,
    editor: Annotated[str, typer.Option(help="Only this one's; empty for all.")] = "",
    start: Annotated[int, typer.Option(min=0, help="Leave out so many first.")] = 0,
    pairs: Annotated[int, typer.Option(min=1, help="So many.")] = 60,
    columns: Annotated[int, typer.Option(min=1, help="Pairs a row.")] = 3,
    max_pixels: MaxPixels = 100_000_000,
) -> None:
    """Write pairs on one picture, to look at."""
    from hnpretrain.inpaint import folder as folders
    from hnpretrain.inpaint.export import pairs_of
    from hnpretrain.inpaint.sheet import write_sheet

    where = folders.Folder(folder)
    pairs_of_all = pairs_of(where, "majority", unreviewed)
    chosen = [pair for pair in pairs_of_all if editor in ("", pair.candidate.editor)]
    shown = chosen[start : start + pairs]
    write_sheet(where, out, shown, columns, max_pixels)
    print(f"{len(shown):,} of {len(chosen):,} pairs: {out}")


def _tell(what: str, counts: Mapping[str, int]) -> None:
    if counts:
        told = ", ".join(f"{count:,} {name}" for name, count in Counter(counts).most_common())
        print(f"{what}: {told}")


def _tell_made(output: str, result: GenerateResult) -> None:
    for name, counts in result.editors.items():
        took = f" ({counts.seconds_each:.2f} s each)" if counts.made else ""
        anew = f", {counts.rechecked:,} checked anew" if counts.rechecked else ""
        pictures = f"{counts.pictures:,} pictures{took}{anew}"
        print(f"{name}: {pictures}, {counts.passed:,} pass all checks")
        _tell("  fail", counts.failed)
        _tell("  not made", counts.cannot)
    _tell("proposals whose files are broken", result.broken_by_reason)
    for broken in result.broken[:10]:
        print(f"  {broken.proposal}: {broken.detail}")
    if result.without_editor:
        print(f"{result.without_editor:,} proposals are for none of these editors")
    print(f"hnpretrain inpaint review {output}")
