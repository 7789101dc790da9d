"""What a training would do and take, before it is started: `hnpretrain plan`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from hnpretrain import config
from hnpretrain.data.loader import make_plan
from hnpretrain.models import build
from hnpretrain.models.store import latest_checkpoint
from hnpretrain.shards.index import read_index
from hnpretrain.train.caching import check_micro_batches
from hnpretrain.train.captions import CaptionSample, sample_captions
from hnpretrain.train.machine import local_ranks
from hnpretrain.train.memory import Choice, Job, choose, in_words
from hnpretrain.train.settings import TrainSettings, require_shards
from hnpretrain.train.towers import lay_out_for


def foresee(settings: TrainSettings, ranks: int) -> dict[str, Any]:
    """What a run with these settings would do if it began now on so many processes.

    Reads the index and a few captions, builds the model, and trains nothing.

    Returns:
        JSON values: "settings" as they are resolved, "changed" (those that are no defaults),
        "data", "texts", "model", "memory" and "output_holds_a_run". Sizes are in bytes, of one
        rank.

    Raises:
        ValueError: the settings do not fit together, or with the data.
        OSError: shards could not be read.
    """
    require_shards(settings)
    index = read_index(settings.data.shards)
    plan = make_plan(settings.data, index, settings.batch_size, settings.seed, ranks)
    model = build(settings.model)
    loss = settings.loss.make(settings.data.negatives)
    chosen = lay_out_for(model.model, loss, settings)
    captions = sample_captions(settings.data, index, model.tokenizer, settings.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    job = Job(settings, model.model, loss, chosen.layout, captions, ranks, device)
    if settings.micro_batches:
        check_micro_batches(settings.micro_batches, job.batch_size, model.model)
    choice = choose(job, local_ranks(ranks))

    values = config.to_dict(settings)
    values["data"]["streams"] = plan.streams
    values["micro_batches"] = choice.micro_batches
    parameters = list(model.model.parameters())
    return {
        "settings": values,
        "changed": {
            key: new for key, (_, new) in config.changes(TrainSettings(), settings).items()
        },
        "data": {
            "samples": plan.samples,
            "shards": len(plan.shard_samples),
            "samples_left_out": plan.left_out,
            "steps_per_epoch": plan.steps_per_epoch,
            "total_steps": plan.steps_per_epoch * settings.epochs,
            "streams": plan.streams,
            "ranks": ranks,
            "batch_size_of_a_rank": job.batch_size,
        },
        "texts": {
            "layout": chosen.layout.kind,
            "reason": chosen.reason,
            **_tokens(job, captions),
        },
        "model": {
            "parameters": sum(p.numel() for p in parameters),
            "trained": sum(p.numel() for p in parameters if p.requires_grad),
            "image_tower": sum(p.numel() for p in model.model.visual.parameters()),
        },
        "memory": _memory(choice, device),
        "output_holds_a_run": latest_checkpoint(Path(settings.output)) is not None,
    }


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
    """Prints what `foresee` gave."""
    console = console or Console(highlight=False)
    data, texts, model = foreseen["data"], foreseen["texts"], foreseen["model"]
    settings, memory = foreseen["settings"], foreseen["memory"]
    saved = 1 - texts["tokens_a_sample"] / texts["padded_tokens_a_sample"]
    changed = {key: str(value) for key, value in foreseen["changed"].items()}
    _print_table(console, "Settings that are no defaults", changed)
    _print_table(
        console,
        "The run",
        {
            "data": f"{data['samples']:,} samples in {data['shards']:,} shards; an epoch "
            f"leaves {data['samples_left_out']:,} out",
            "steps": f"{data['total_steps']:,}: {settings['epochs']} epochs of "
            f"{data['steps_per_epoch']:,}, of {settings['batch_size']:,} samples",
            "ranks": f"{data['ranks']}, with {data['batch_size_of_a_rank']:,} samples a step "
            f"from {data['streams'] // data['ranks']} of {data['streams']} streams",
            "parameters": f"{_millions(model['parameters'])}, "
            f"{_millions(model['image_tower'])} in the image tower; "
            f"{_millions(model['trained'])} are trained",
            "texts": f"{texts['layout']}: {texts['reason']}",
            "text tokens": f"{texts['tokens_a_sample']:.1f} a sample of "
            f"{texts['texts_a_sample']:.1f} texts, {saved:.0%} less than the "
            f"{texts['padded_tokens_a_sample']:.1f} of padded rows (mean of "
            f"{texts['samples_looked_at']} samples)",
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
    if memory["note"]:
        console.print(memory["note"])
    if foreseen["output_holds_a_run"]:
        console.print(
            f"{settings['output']} holds a run already, with which `train` would go on if that has "
            "these settings; this is of a run that begins"
        )


def _print_table(console: Console, title: str, rows: Mapping[str, str]) -> None:
    table = Table(box=None, show_header=False, padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(name, value)
    console.print(title, style="bold")
    console.print(table)


def _millions(count: int) -> str:
    return f"{count / 1e6:,.1f} M"
