"""Whole training steps: `hnpretrain train`'s own, and open_clip's."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import open_clip
import torch

from hnpretrain.bench.contenders import Inputs
from hnpretrain.bench.models import precision
from hnpretrain.data.samples import Batch, Chunk
from hnpretrain.data.texts import TextLayout, TextRows
from hnpretrain.train.caching import forward_backward
from hnpretrain.train.distributed import Place
from hnpretrain.train.edge import meet
from hnpretrain.train.engine import MAX_LOGIT_SCALE, build_engine, gradients, optimizer_step
from hnpretrain.train.optimizer import OptimizerSettings
from hnpretrain.train.settings import TrainSettings
from hnpretrain.train.towers import lay_out_for


@dataclass(frozen=True)
class Trainer:
    """A model, its optimizer, and how it takes a step.

    Attributes:
        model: what it trains.
        negatives: whether it trains on them, or on captions alone.
        layout: of the texts that it takes.
        step: takes the micro-batches of a step and the learning rate; gives the loss, detached.
    """

    model: open_clip.CLIP
    negatives: bool
    layout: TextLayout
    step: Callable[[Sequence[Batch], float], torch.Tensor]

    def lay_out(self, chunk: Chunk, micro_batches: int) -> list[Batch]:
        """Its part of the samples, as it takes them."""
        if not self.negatives:
            chunk = replace(chunk, token_BCL=chunk.token_BCL[:, :1], mask_BC=chunk.mask_BC[:, :1])
        return [Batch.lay_out(part, self.layout) for part in chunk.split(micro_batches)]


def our_trainer(model: open_clip.CLIP, settings: TrainSettings, place: Place) -> Trainer:
    """As `hnpretrain train` takes its steps.

    Args:
        place: in the process group, which must be there.
    """
    loss = settings.loss.make(settings.data.negatives).to(place.device)
    layout = lay_out_for(model, loss, settings).layout
    engine = build_engine(model, loss, settings, place)

    def step(batches: Sequence[Batch], rate: float) -> torch.Tensor:
        for group in engine.optimizer.param_groups:
            group["lr"] = rate
        output, scale, finite = forward_backward(engine, loss, batches, _seed_draws)
        edge = meet(
            output.total,
            scale,
            finite,
            gradients(engine),
            1.0,
            in_parts=engine.zero_optimization(),
        )
        assert edge.is_finite
        optimizer_step(engine)
        return output.total.detach()

    return Trainer(model, True, layout, step)


def open_clip_trainer(
    model: open_clip.CLIP,
    optimizer: torch.optim.Optimizer,
    loss: Callable[[Inputs], torch.Tensor],
    negatives: bool,
    dtype: str,
) -> Trainer:
    """As open_clip's `train_one_epoch` takes its steps, micro-batches being its `--accum-freq`.

    With negatives as NegCLIP has changed it: they are further rows for the text tower.

    Args:
        optimizer: of `open_clip_optimizer`.
        loss: of the whole batch.
        negatives: whether the loss looks at them.
        dtype: of models.PRECISIONS; bf16 is its `--precision amp_bf16`.
    """

    def encode(batch: Batch) -> Inputs:
        assert isinstance(batch.texts, TextRows), batch.texts
        image_BD, text_ND, scale, *_ = model(batch.image_BCHW, batch.texts.token_NL)
        text_BCD = text_ND.unflatten(0, batch.texts.place_BC.shape)
        return Inputs(image_BD, text_BCD[:, 0], text_BCD[:, 1:], scale)

    def step(batches: Sequence[Batch], rate: float) -> torch.Tensor:
        device = batches[0].image_BCHW.device.type
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
        known: list[Inputs] = []
        if len(batches) > 1:
            with torch.no_grad(), precision(dtype, device):
                known = [encode(batch) for batch in batches]
        for number, batch in enumerate(batches):
            with precision(dtype, device):
                encoded = encode(batch)
                parts = [*known[:number], encoded, *known[number + 1 :]]
                total = loss(_joined(parts, encoded.scale))
            total.backward()
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(MAX_LOGIT_SCALE))
        return total.detach()

    return Trainer(model, negatives, TextLayout("padded"), step)


def open_clip_optimizer(model: open_clip.CLIP) -> torch.optim.AdamW:
    """As open_clip's `main` makes it, with torch's own choice of an implementation."""
    rest: list[torch.nn.Parameter] = []
    gains_and_biases: list[torch.nn.Parameter] = []
    for name, parameter in model.named_parameters():
        excluded = any(part in name for part in ("bn", "ln", "bias", "logit_scale"))
        (gains_and_biases if parameter.ndim < 2 or excluded else rest).append(parameter)
    settings = OptimizerSettings()  # those of open_clip for ViTs, too
    return torch.optim.AdamW(
        [
            {"params": gains_and_biases, "weight_decay": 0.0},
            {"params": rest, "weight_decay": settings.weight_decay},
        ],
        lr=settings.lr,
        betas=settings.betas,
        eps=settings.eps,
    )


def _joined(parts: Sequence[Inputs], scale: torch.Tensor) -> Inputs:
    return Inputs(
        torch.cat([part.image for part in parts]),
        torch.cat([part.text for part in parts]),
        torch.cat([part.negative for part in parts]),
        scale,
    )


def _seed_draws(micro_batch: int) -> None:
    torch.manual_seed(micro_batch)
