"""`hnpretrain bench loss`, `bench text`, `bench step` and `bench loader`."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Annotated, Any

import typer

CaptionsFile = Annotated[str, typer.Argument(help="A COCO captions json, may be gzipped.")]
Architectures = Annotated[
    str, typer.Option(help="open_clip's names, or json files with a model config; commas between.")
]
Precisions = Annotated[str, typer.Option(help="fp32, or bf16: autocast. Weights are fp32.")]
Device = Annotated[str, typer.Option(help="cpu or cuda; empty takes a GPU if any.")]
JsonFile = Annotated[str, typer.Option("--json", help="Write the rows here, too.")]


def loss(
    batch: Annotated[
        str, typer.Option(help="Global batches B, with commas between.")
    ] = "1024,4096",
    dim: Annotated[str, typer.Option(help="Widths D.")] = "512",
    negatives: Annotated[str, typer.Option(help="Negatives a caption, K.")] = "0,4",
    dtype: Annotated[str, typer.Option(help="Of the features: fp32, bf16, fp16.")] = "fp32",
    ranks: Annotated[str, typer.Option(help="Processes W: gloo on a CPU, else NCCL.")] = "1",
    device: Device = "",
    repeats: Annotated[int, typer.Option(min=1, help="Of which the median is told.")] = 5,
    json_file: JsonFile = "",
) -> None:
    """Time, memory and error of the loss, forward and backward, over all combinations.

    Ours beside open_clip's ClipLoss without negatives and with all ranks' negatives appended (as
    NegCLIP and CE-CLIP do); on a GPU also inf-cl and memeff, where they are installed.
    """
    import torch

    from hnpretrain.bench.loss import DTYPES, Case, compare
    from hnpretrain.bench.report import print_loss

    device = _device(device)
    cases = [
        Case(B, D, K, name, W, device, repeats)
        for B, D, K, name, W in itertools.product(
            _numbers("batch", batch),
            _numbers("dim", dim),
            _numbers("negatives", negatives, least=0),
            _names("dtype", dtype, DTYPES),
            _numbers("ranks", ranks),
        )
    ]
    for case in cases:
        if case.B % case.ranks:
            raise typer.BadParameter(f"--batch {case.B} is no multiple of --ranks {case.ranks}")
        if device == "cuda" and case.ranks > torch.cuda.device_count():
            raise typer.BadParameter(f"--ranks {case.ranks}: one GPU each, and there are fewer")
    _show(compare(cases), print_loss, json_file)


def text(
    captions: CaptionsFile,
    arch: Architectures = "ViT-B-32",
    batch: Annotated[str, typer.Option(help="Captions B, with commas between.")] = "64",
    negatives: Annotated[str, typer.Option(help="Negatives a caption, K.")] = "0,1,3,4,8",
    dtype: Precisions = "fp32",
    device: Device = "",
    repeats: Annotated[int, typer.Option(min=1, help="Of which the median is told.")] = 5,
    compiled: Annotated[
        bool, typer.Option("--compile", help="Also under torch.compile, ours and its.")
    ] = False,
    json_file: JsonFile = "",
) -> None:
    """Time, memory and error of the text tower, forward and backward, over all combinations.

    Ours (token trees, trimmed rows) beside open_clip's encode_text of the captions alone and of all
    texts in padded rows. Each caption is of another image. Negatives stand in for real ones: one
    word, at a random place, is replaced by one of the other captions, which leaves about as long a
    common prefix.
    """
    from hnpretrain.bench.captions import read_captions
    from hnpretrain.bench.encoders import obstacle_to_compilation
    from hnpretrain.bench.models import PRECISIONS
    from hnpretrain.bench.report import print_text
    from hnpretrain.bench.text import Case, compare

    device = _device(device)
    cases = [
        Case(architecture, B, K, name, device, repeats, compiled)
        for architecture, B, K, name in itertools.product(
            _architectures(arch),
            _numbers("batch", batch),
            _numbers("negatives", negatives, least=0),
            _names("dtype", dtype, PRECISIONS),
        )
    ]
    if compiled and (obstacle := obstacle_to_compilation(device)):
        typer.echo(f"nothing is compiled: {obstacle}", err=True)
    _show(compare(cases, read_captions(captions)), print_text, json_file)


def step(
    captions: CaptionsFile,
    arch: Architectures = "ViT-B-32",
    batch: Annotated[str, typer.Option(help="Samples B, with commas between.")] = "64",
    negatives: Annotated[str, typer.Option(help="Negatives a caption, K.")] = "0,4",
    dtype: Precisions = "fp32",
    device: Device = "",
    micro_batches: Annotated[
        int, typer.Option(min=1, help="Parts of a batch for the towers (gradient caching).")
    ] = 1,
    repeats: Annotated[int, typer.Option(min=1, help="Of which the median is told.")] = 3,
    check_steps: Annotated[
        int, typer.Option(min=0, help="Compare so many losses with those of padded rows.")
    ] = 0,
    json_file: JsonFile = "",
) -> None:
    """Time and memory of a whole training step, over all combinations.

    As `hnpretrain train` takes it, with its default settings, beside open_clip's own training
    without negatives, and with K as NegCLIP does: further padded rows, that all images are scored
    against. Images are random; captions and negatives are as in `bench text`. --check-steps trains
    so many steps on other captions each, once with texts as `train` lays them out and once with
    padded rows, and tells how far the losses are apart.
    """
    from hnpretrain.bench.captions import read_captions
    from hnpretrain.bench.models import PRECISIONS
    from hnpretrain.bench.report import print_step
    from hnpretrain.bench.step import Case, compare

    device = _device(device)
    cases = [
        Case(architecture, B, K, name, device, micro_batches, repeats)
        for architecture, B, K, name in itertools.product(
            _architectures(arch),
            _numbers("batch", batch),
            _numbers("negatives", negatives, least=0),
            _names("dtype", dtype, PRECISIONS),
        )
    ]
    for case in cases:
        if case.B % micro_batches:
            raise typer.BadParameter(
                f"--batch {case.B} is no multiple of --micro-batches {micro_batches}"
            )
    _show(compare(cases, read_captions(captions), check_steps), print_step, json_file)


def loader(
    shards: Annotated[str, typer.Argument(help="Folder or URL of shards with an index.")],
    workers: Annotated[
        str, typer.Option(help="Loader processes, each on a core; commas between.")
    ] = "1",
    batch: Annotated[str, typer.Option(help="Images a batch B, with commas between.")] = "64",
    size: Annotated[int, typer.Option(min=1, help="Of images, in pixels.")] = 224,
    samples: Annotated[
        int, typer.Option(min=1, help="An epoch is of the first shards with so many samples.")
    ] = 5000,
    repeats: Annotated[int, typer.Option(min=1, help="Epochs, of which the median is told.")] = 3,
    resume: Annotated[
        bool, typer.Option(help="Of local shards, also the time to resume in 100,000 samples.")
    ] = True,
    json_file: JsonFile = "",
) -> None:
    """Images a second for each core: our loader beside those that one would take else.

    Ours with data.decode=exact and fast, open_clip's own webdataset pipeline, and a plain one of
    webdataset's, with the same shards, transform and tokenizer, on the same cores.
    """
    from hnpretrain.bench.loader import Case, compare
    from hnpretrain.bench.report import print_loader

    cases = [
        Case(shards, count, B, size, samples, repeats, resume)
        for count, B in itertools.product(_numbers("workers", workers), _numbers("batch", batch))
    ]
    _show(compare(cases), print_loader, json_file)


def _device(name: str) -> str:
    import torch

    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    if name not in ("cpu", "cuda") or (name == "cuda" and not torch.cuda.is_available()):
        raise typer.BadParameter(f"--device {name!r}: give cpu, or cuda where there is a GPU")
    return name


def _architectures(text: str) -> list[str]:
    from hnpretrain.bench.models import model_config

    names = [name.strip() for name in text.split(",")]
    for name in names:
        try:
            model_config(name)
        except ValueError as error:
            raise typer.BadParameter(f"--arch {error}") from error
    return names


def _names(option: str, text: str, known: Collection[str]) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in known:
            raise typer.BadParameter(f"--{option} {name!r} is not one of {', '.join(known)}")
    return names


def _numbers(option: str, text: str, least: int = 1) -> list[int]:
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < least:
        raise typer.BadParameter(f"--{option} {text!r}: give whole numbers of at least {least}")
    return numbers


def _show(
    found: Iterable[Sequence[Mapping[str, Any]]],
    show: Callable[[Sequence[Mapping[str, Any]]], None],
    json_file: str,
) -> None:
    """Shows and writes the rows of each case once they are there, beside those before."""
    from hnpretrain.shards import storage

    rows: list[Mapping[str, Any]] = []
    for of_case in found:
        show(of_case)
        rows += of_case
        if json_file:
            storage.write_bytes(json_file, json.dumps(rows, indent=1).encode() + b"\n")
