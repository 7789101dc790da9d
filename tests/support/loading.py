"""Loaders of small data sets, with a transform and a tokenizer that take no time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from hnpretrain.data.ledger import Tally
from hnpretrain.data.loader import DataSettings, Loader, Position, make_plan
from hnpretrain.data.mixture import read_mixture
from hnpretrain.data.plan import Plan
from hnpretrain.data.samples import Batch
from hnpretrain.data.texts import TextLayout

LENGTH = 6
END = 10**9
PADDED = TextLayout("padded")


def transform(image: Image.Image) -> torch.Tensor:
    # One random number an image stands for the augmentation.
    pixels = torch.tensor(np.asarray(image.resize((2, 2)))).permute(2, 0, 1).float()
    return pixels + torch.rand(())


def tokenize(texts: list[str]) -> torch.Tensor:
    rows = torch.zeros(len(texts), LENGTH, dtype=torch.int64)
    for row, text in zip(rows, texts, strict=True):
        row[0] = sum(ord(c) * (i + 1) for i, c in enumerate(text))
        row[1] = END
    return rows


def loader(
    folder: Path | str | dict[str, float],
    rank: int = 0,
    world_size: int = 1,
    layout: TextLayout = PADDED,
    micro_batches: int = 1,
    batch_size: int = 8,
    **settings: Any,
) -> Loader:
    fields = {"negatives": 2, "streams": 4, "block_size": 6, "workers": 0, **settings}
    place = {"mixture": folder} if isinstance(folder, dict) else {"shards": str(folder)}
    data = DataSettings(**place, **fields)
    mixture = read_mixture(data.weights)
    plan = make_plan(data, mixture, batch_size, seed=5, world_size=world_size)
    return Loader(data, mixture, plan, transform, tokenize, layout, rank, world_size, micro_batches)


def batches(
    the_loader: Loader,
    start: Position = Position(),  # noqa: B008
    epochs: int = 2,
) -> list[tuple[Position, Batch, Tally]]:
    """Of loaders whose steps have one batch."""
    return [
        (position, batch, tally) for position, (batch,), tally in the_loader.batches(start, epochs)
    ]


def same(a: Batch, b: Batch) -> bool:
    return (
        a.keys == b.keys
        and torch.equal(a.image_BCHW, b.image_BCHW)
        and all(
            torch.equal(x, getattr(b.texts, name))
            for name, x in vars(a.texts).items()
            if x is not None
        )
        and torch.equal(a.negative_mask_BK, b.negative_mask_BK)
    )


def number_at(plan: Plan, epoch: int, stream: int, position: int) -> int:
    """Which sample of the line of all shards the plan gives there, where nothing is broken."""
    _, first, _ = plan.block_at(stream, position)
    block = plan.block(epoch, stream, position)
    place = block.order[position - first]
    samples = [(run.shard, number) for run in block.runs for number in range(run.start, run.stop)]
    shard, number = samples[place]
    return sum(plan.parts[0].shard_samples[:shard]) + number
