"""What a training would do and take, before it is started: `hnpretrain plan`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hnpretrain import config
from hnpretrain.data.loader import make_plan
from hnpretrain.data.mixture import Mixture, read_mixture
from hnpretrain.data.plan import Plan
from hnpretrain.models import build
from hnpretrain.runs import latest_checkpoint
from hnpretrain.train.caching import check_micro_batches
from hnpretrain.train.captions import CaptionSample, sample_captions
from hnpretrain.train.evaluation import load_benchmarks
from hnpretrain.train.flops import FlopsCounter
from hnpretrain.train.log import duration
from hnpretrain.train.machine import in_words, local_ranks
from hnpretrain.train.memory import Choice, Job, choose, tensor_bytes
from hnpretrain.train.optimizer import warmup_warning
from hnpretrain.train.peaks import device_peak
from hnpretrain.train.profiling import require_rank
from hnpretrain.train.settings import TrainSettings, require_shards
from hnpretrain.train.towers import lay_out_for
from hnpretrain.train.trackers import require_packages


def foresee(settings: TrainSettings, ranks: int, mfu: float = 0.4) -> dict[str, Any]:
    """What a run with these settings would do if it began now on so many processes.

    Reads the index and a few captions, builds the model, and trains nothing.

    Args:
        mfu: the share of their peak that the devices are taken to compute at.

    Returns:
        JSON values: "settings" as they are resolved, "changed" (those that are no defaults),
        "data", "texts", "model", "compute", "checkpoint", "memory", "warnings" and
        "output_holds_a_run". Sizes are in bytes; those of memory are one rank's. URLs are without
        their secrets.

    Raises:
        ValueError: the settings do not fit together, or with the data.
        OSError: shards could not be read.
    """
    if not 0 < mfu <= 1:
        raise ValueError(f"--mfu={mfu} must be a share above 0 and up to 1")
    require_shards(settings)
    require_rank(settings.profile, ranks)
    require_packages(settings.log)
    load_benchmarks(settings.evaluation)
    mixture = read_mixture(settings.data.weights)
    plan = make_plan(settings.data, mixture, settings.batch_size, settings.seed, ranks)
    model = build(settings.model, with_weights=False)  # they are large, and change no number here
    loss = settings.loss.make(settings.data.negatives)
    chosen = lay_out_for(model.model, loss, settings)
    captions = sample_captions(settings.data, mixture, model.tokenizer, settings.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    job = Job(settings, model.model, loss, chosen.layout, captions, ranks, device)
    if settings.micro_batches:
        check_micro_batches(settings.micro_batches, job.batch_size, model.model)
    choice = choose(job, local_ranks(ranks))

    values = config.to_dict(settings)
    values["data"]["streams"] = plan.streams
    values["micro_batches"] = choice.micro_batches
    parameters = list(model.model.parameters())
    total_steps = plan.steps_per_epoch * settings.epochs
    warning = warmup_warning(settings.optimizer, total_steps)
    tokens = _tokens(job, captions)
    tokens_a_step = tokens["tokens_a_sample"] * settings.batch_size
    return {
        "settings": values,
        "changed": {
            key: new for key, (_, new) in config.changes(TrainSettings(), settings).items()
        },
        "data": {
            "samples": plan.samples,
            "shards": plan.shards,
            "samples_left_out": plan.left_out,
            "samples_left_out_of": {
                config.without_secrets(each.folder): left_out
                for each, left_out in zip(mixture.data_sets, plan.left_out_of, strict=True)
            },
            "steps_per_epoch": plan.steps_per_epoch,
            "total_steps": total_steps,
            "total_samples": total_steps * settings.batch_size,
            "streams": plan.streams,
            "ranks": ranks,
            "batch_size_of_a_rank": job.batch_size,
            "read_ahead": _read_ahead(mixture, plan, ranks),
        },
        "texts": {
            "layout": chosen.layout.kind,
            "reason": chosen.reason,
            **tokens,
            "tokens_a_step": round(tokens_a_step),
            "total_tokens": round(tokens_a_step * total_steps),
        },
        "model": {
            "parameters": sum(p.numel() for p in parameters),
            "trained": sum(p.numel() for p in parameters if p.requires_grad),
            "image_tower": sum(p.numel() for p in model.model.visual.parameters()),
        },
        "compute": _compute(job, captions, tokens_a_step, total_steps, mfu),
        "checkpoint": {"bytes": _checkpoint_bytes(job), "kept": settings.checkpoint.keep},
        "memory": _memory(choice, device),
        "warnings": [warning] if warning else [],
        "output_holds_a_run": latest_checkpoint(Path(settings.output)) is not None,
    }


def _read_ahead(mixture: Mixture, plan: Plan, ranks: int) -> int:
    """Most bytes that a rank holds of its streams, two blocks each, if samples are of mean size."""
    indexes = [each.index for each in mixture.data_sets]
    size = max(sum(shard.bytes for shard in index.shards) / index.samples for index in indexes)
    block = min(plan.block_size, plan.stream_length)
    return round(2 * block * plan.streams / ranks * size)


def _tokens(job: Job, captions: CaptionSample) -> dict[str, float]:
    """Tokens that the text tower computes a sample, and would in padded rows."""
    samples = min(len(captions), job.batch_size)
    mask_BC, padded_length = captions.mask_BC[:samples], captions.token_BCL.shape[2]
    return {
        "samples_looked_at": samples,
        "texts_a_sample": int(mask_BC.sum()) / samples,
        "tokens_a_sample": captions.laid_out(job.layout, samples).tokens / samples,
        "padded_tokens_a_sample": int(mask_BC.sum()) * padded_length / samples,
    }


def _compute(
    job: Job, captions: CaptionSample, tokens: float, total_steps: int, mfu: float
) -> dict[str, Any]:
    """FLOPs of the towers, and the time that they take where the device's peak is known."""
    settings = job.settings
    counter = FlopsCounter(job.model, job.loss.needs_parts())
    samples = min(len(captions), job.batch_size)
    mask_BK = captions.mask_BC[:samples, 1:]
    flops = counter.of_texts(captions.laid_out(job.layout, samples), mask_BK)
    if flops is None:
        return {"note": counter.failure}
    a_step = flops.of(settings.batch_size, round(tokens))
    peak = device_peak(job.device, settings.precision, settings.log.peak_tflops)
    seconds = a_step / (peak * mfu * job.ranks) if peak else None
    return {
        "flops_an_image": flops.per_image,
        "flops_a_text_token": flops.per_token,
        "flops_a_step": a_step,
        "total_flops": a_step * total_steps,
        "mfu": mfu,
        "peak_of_a_rank": peak,
        "seconds_a_step": seconds,
        "total_seconds": seconds * total_steps if seconds else None,
        "note": "",
    }


def _checkpoint_bytes(job: Job) -> int:
    """What one checkpoint takes on disk, of all ranks together."""
    weights = tensor_bytes(job.model.state_dict().values())
    trained = tensor_bytes(p for p in job.model.parameters() if p.requires_grad)
    # Adam's two moments; ZeRO keeps weights of its own with them, for its ranks' parts. In stage 3
    # these and a file with all in one piece are the only ones. The file of averages has all, too.
    whole = 2 * weights if job.settings.ema else weights
    return whole + (3 if job.settings.zero_stage else 2) * trained


def _memory(choice: Choice, device: torch.device) -> dict[str, Any]:
    return {
        "device": device.type,
        "micro_batches": choice.micro_batches,
        "budget": choice.budget,
        "peak": choice.memory.peak if choice.memory else None,
        "parts": dict(choice.memory.parts) if choice.memory else {},
        "note": choice.note,
    }


def show(foreseen: Mapping[str, Any], console: Console | None = None) -> None:
    """Prints what `foresee` gave, the settings first."""
    console = console or Console(highlight=False)
    data, texts, model = foreseen["data"], foreseen["texts"], foreseen["model"]
    settings, memory = foreseen["settings"], foreseen["memory"]
    compute, checkpoint = foreseen["compute"], foreseen["checkpoint"]
    saved = 1 - texts["tokens_a_sample"] / texts["padded_tokens_a_sample"]
    changed = {key: str(value) for key, value in foreseen["changed"].items()}
    resolved = yaml.safe_dump(settings, sort_keys=False, default_flow_style=None, width=200)
    console.print("Settings", style="bold")
    console.print(resolved, markup=False, soft_wrap=True)
    _print_table(console, "Those that are no defaults", changed)
    _print_table(
        console,
        "The run",
        {
            "data": f"{data['samples']:,} samples in {data['shards']:,} shards; an epoch "
            f"leaves {data['samples_left_out']:,} out{_of_each(data['samples_left_out_of'])}",
            "steps": f"{data['total_steps']:,}: {settings['epochs']} epochs of "
            f"{data['steps_per_epoch']:,}, of {settings['batch_size']:,} samples; "
            f"{data['total_samples']:,} samples in all",
            "ranks": f"{data['ranks']}, with {data['batch_size_of_a_rank']:,} samples a step "
            f"from {data['streams'] // data['ranks']} of {data['streams']} streams",
            "read ahead": f"up to {in_words(data['read_ahead'])} of a rank's memory, besides its "
            "workers: two blocks of each stream",
            "parameters": f"{_millions(model['parameters'])}, "
            f"{_millions(model['image_tower'])} in the image tower; "
            f"{_millions(model['trained'])} are trained",
            "texts": f"{texts['layout']}: {texts['reason']}",
            "text tokens": f"{texts['tokens_a_sample']:.1f} a sample of "
            f"{texts['texts_a_sample']:.1f} texts, {saved:.0%} less than the "
            f"{texts['padded_tokens_a_sample']:.1f} of padded rows (mean of "
            f"{texts['samples_looked_at']} samples); {texts['tokens_a_step']:,} a step, "
            f"{texts['total_tokens']:,} in all",
            **_told(compute, data["ranks"]),
            "checkpoint": f"{in_words(checkpoint['bytes'])}; {checkpoint['kept']} are kept, "
            "one more while it is written",
            "micro-batches": f"{memory['micro_batches']}, of "
            f"{data['batch_size_of_a_rank'] // memory['micro_batches']} samples",
        },
    )
    if memory["parts"]:
        rows = {name: in_words(size) for name, size in memory["parts"].items()}
        rows["at the peak"] = in_words(memory["peak"])
        rows["there are"] = in_words(memory["budget"])
        title = f"Memory of a rank in a step on this machine ({memory['device']}), estimated"
        _print_table(console, title, rows)
    for note in (memory["note"], *foreseen["warnings"]):
        if note:
            console.print(note, markup=False)
    if foreseen["output_holds_a_run"]:
        console.print(
            f"{settings['output']} holds a run already, with which `train` would go on if that has "
            "these settings; this is of a run that begins"
        )


def _of_each(left_out: Mapping[str, int]) -> str:
    """What a mixture leaves out of each data set."""
    if len(left_out) == 1:
        return ""
    return f" ({', '.join(f'{count:,} of {place}' for place, count in left_out.items())})"


def _told(compute: Mapping[str, Any], ranks: int) -> dict[str, str]:
    """The rows of FLOPs and time."""
    if compute["note"]:
        return {"compute": compute["note"]}
    rows = {
        "compute": f"{_flops(compute['flops_a_step'])} a step, {_flops(compute['total_flops'])} in "
        "all, of the towers"
    }
    if compute["total_seconds"] is not None:
        peak = f"{ranks} x {compute['peak_of_a_rank'] / 1e12:.5g} TFLOP/s"
        rows["time"] = (
            f"{duration(compute['total_seconds'])}, {compute['seconds_a_step']:.3g} s a step, at "
            f"{compute['mfu']:.0%} (MFU) of {peak}"
        )
    return rows


def _flops(count: float) -> str:
    for unit, size in (("EFLOP", 1e18), ("PFLOP", 1e15), ("TFLOP", 1e12)):
        if count >= size:
            return f"{count / size:,.3g} {unit}"
    return f"{count / 1e9:.3g} GFLOP"


def _print_table(console: Console, title: str, rows: Mapping[str, str]) -> None:
    table = Table(box=None, show_header=False, padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(name, Text(value))  # as it is: brackets are no markup
    console.print(title, style="bold")
    console.print(table)


def _millions(count: int) -> str:
    return f"{count / 1e6:,.1f} M"
