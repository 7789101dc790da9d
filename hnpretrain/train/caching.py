"""Forward and backward of a step, whose batch may be larger than memory: gradient caching.

The loss needs the features of the whole batch at once; the towers need not. Of several
micro-batches, all but the last are encoded without keeping what a backward pass needs. The loss
then gives the gradients of the features. Those of the last micro-batch are sent back through it;
each of the others is encoded again, now to be kept, and its features' gradients are sent back
through it (Gao et al., "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup",
RepL4NLP 2021). The gradients are those of the batch in one piece, for one more forward pass of all
micro-batches but one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from hnpretrain.data.samples import Batch
from hnpretrain.losses import HardNegativeContrastiveLoss, LossOutput
from hnpretrain.train.towers import Features

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine


def possible_micro_batches(batch_size: int) -> list[int]:
    """Into how many equal micro-batches a rank's batch can be split: the divisors, ascending."""
    return [parts for parts in range(1, batch_size + 1) if batch_size % parts == 0]


def learns_batch_statistics(model: nn.Module) -> bool:
    """Whether what the model makes of a sample depends on the batch that it is in."""
    return any(isinstance(module, _BatchNorm) and module.training for module in model.modules())


def check_micro_batches(micro_batches: int, batch_size: int, model: nn.Module) -> None:
    """Refuses micro-batches that are not equal, or that would change the gradients.

    Args:
        batch_size: of one rank.

    Raises:
        ValueError: they do not divide the batch, or the model has batch norm.
    """
    if batch_size % micro_batches:
        allowed = ", ".join(map(str, possible_micro_batches(batch_size)))
        raise ValueError(
            f"micro_batches={micro_batches} must divide the {batch_size} samples of a rank "
            f"(batch_size over the number of processes): set one of {allowed}, or 0 to have it "
            "chosen"
        )
    if micro_batches > 1 and learns_batch_statistics(model):
        raise ValueError(
            f"micro_batches={micro_batches} does not go with batch norm: its statistics would be "
            "those of a micro-batch, and the running ones would be updated twice a step. Set "
            "micro_batches=1, or model.lock_image=true if it is the image tower that has it"
        )


def forward_backward(
    engine: DeepSpeedEngine,
    loss: HardNegativeContrastiveLoss,
    batches: Sequence[Batch],
    seed_draws: Callable[[int], None],
    loss_scale: float = 1.0,
) -> tuple[LossOutput, torch.Tensor, torch.Tensor]:
    """The loss of a step, with gradients in the engine; collective.

    Args:
        engine: expects as many backward passes a step as there are micro-batches.
        batches: this rank's micro-batches of the step, of equal size. They go to its device when
            they are encoded.
        seed_draws: called with a micro-batch's number before each of its forward passes, so that
            dropout and the like draw the same in both.
        loss_scale: what the gradients are multiplied by.

    Returns:
        The loss; the logit scale; whether this rank's features are finite (0-dim bool).
    """

    def encode(number: int) -> Features:
        seed_draws(number)
        return engine(batches[number].to(engine.device))

    assert len(batches) == engine.gradient_accumulation_steps()
    last = len(batches) - 1
    with torch.no_grad():
        parts = [encode(number) for number in range(last)]
    kept = encode(last)
    if not parts:
        output = kept.given_to(loss)
        engine.backward(output.total * loss_scale)
        return _without_graph(output), kept.logit_scale.detach(), kept.finite()

    whole = _joined([*parts, kept])
    del parts
    output = whole.given_to(loss)
    # Already here: features, and so their gradients, may be in fp16.
    (output.total * loss_scale).backward()
    for number in (last, *range(last)):
        if number != last:
            engine.step()  # counts the backward pass before, no more
            kept = encode(number)
        # Gradients of the batch: a mean over micro-batches they are not.
        engine.backward(_sent_back(kept, whole, number, last), scale_wrt_gas=False)
        del kept
    return _without_graph(output), whole.logit_scale.detach(), whole.finite()


def _without_graph(output: LossOutput) -> LossOutput:
    """The graph holds the features of the whole batch, and their gradients."""
    return dataclasses.replace(output, total=output.total.detach())


# Features of the model, not of samples: the same in each micro-batch.
_OF_THE_MODEL = ("logit_scale", "logit_bias")


def _joined(parts: Sequence[Features]) -> Features:
    """The features of all micro-batches, where the graph of the loss begins.

    Args:
        parts: the last one is to be sent back, and knows what needs a gradient.
    """
    joined: dict[str, torch.Tensor | None] = {}
    for name, last in parts[-1]._asdict().items():
        if last is None:
            joined[name] = None
            continue
        tensors = [getattr(part, name).detach() for part in parts]
        x = tensors[0].clone() if name in _OF_THE_MODEL else _stacked(tensors)
        joined[name] = x.requires_grad_(last.requires_grad)
    return Features(**joined)  # type: ignore[arg-type]


def _stacked(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """One after the other along the first axis, padded with zeros along others.

    The words of a micro-batch are as many as its longest text has.
    """
    sizes = zip(*(x.shape[1:] for x in tensors), strict=True)
    stacked = tensors[0].new_zeros(sum(map(len, tensors)), *(max(size) for size in sizes))
    start = 0
    for x in tensors:
        _part_like(x, stacked, start).copy_(x)
        start += len(x)
    return stacked


def _part_like(x: torch.Tensor, stacked: torch.Tensor, start: int) -> torch.Tensor:
    """Where x lies in what `_stacked` made, as a view."""
    return stacked[(slice(start, start + len(x)), *(slice(size) for size in x.shape[1:]))]


def _sent_back(part: Features, whole: Features, number: int, last: int) -> torch.Tensor:
    """0-dim, whose gradients are, through a micro-batch's features, those of the loss."""
    total = part.logit_scale.new_zeros(())
    for name, x in part._asdict().items():
        joined = getattr(whole, name)
        if joined is None or joined.grad is None:
            continue
        if name in _OF_THE_MODEL:
            # Once; by zero else, so that every backward pass reaches the same parameters.
            total = total + (number == last) * joined.grad * x
        else:
            gradient = _part_like(x, joined.grad, number * len(x))
            total = total + (gradient * x).sum(dtype=total.dtype)
    return total
