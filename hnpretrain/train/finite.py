"""Steps whose loss or gradients are not finite: they are skipped, counted, and bounded in number.

With precision fp16 the loss is multiplied by a scale before the backward pass, so that small
gradients do not vanish, and a gradient that overflows says that the scale is too large: that step
is skipped too, but counted apart, since it says nothing about the run.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

# As torch.amp.GradScaler.
_FIRST_SCALE = 2.0**16
_GROWTH_INTERVAL = 2000


@dataclass(frozen=True)
class LossScale:
    """What the loss is multiplied by before its backward pass.

    Attributes:
        value: a power of two; 1 leaves the loss as it is.
        good_steps: steps without an overflow since it last changed.
    """

    value: float = 1.0
    good_steps: int = 0

    @classmethod
    def first_of(cls, precision: str) -> LossScale:
        return cls(_FIRST_SCALE if precision == "fp16" else 1.0)

    def after(self, overflow: bool) -> LossScale:
        """Of the next step: half after an overflow, double after 2,000 steps without."""
        if overflow:
            return LossScale(self.value / 2)
        if self.good_steps + 1 == _GROWTH_INTERVAL:
            return LossScale(self.value * 2)
        return LossScale(self.value, self.good_steps + 1)


@dataclass(frozen=True)
class Skips:
    """The steps that were skipped so far.

    Attributes:
        total: steps whose loss or gradients were not finite.
        in_a_row: what `named` said of each since the last step that was taken.
        overflows: steps that overflowed in fp16 alone, at a scale above 1.
    """

    total: int = 0
    in_a_row: tuple[str, ...] = ()
    overflows: int = 0

    def taken(self) -> Skips:
        return replace(self, in_a_row=()) if self.in_a_row else self

    def skipped(self, name: str) -> Skips:
        return replace(self, total=self.total + 1, in_a_row=(*self.in_a_row, name))

    def overflowed(self) -> Skips:
        return replace(self, overflows=self.overflows + 1)

    def check(self, max_skipped: int) -> None:
        """Raises ValueError if more steps in a row were skipped than allowed."""
        if len(self.in_a_row) > max_skipped:
            raise ValueError(
                f"{len(self.in_a_row)} steps in a row were not finite, more than "
                f"max_skipped={max_skipped}: {'; '.join(self.in_a_row)}. Look at these samples, "
                "lower optimizer.lr, raise optimizer.warmup_steps or set optimizer.max_grad_norm; "
                "the run goes on from its last checkpoint"
            )


def is_overflow(loss: float, grad_norm: float, scale: LossScale) -> bool:
    """Whether a smaller scale may help: the loss is finite, and its scaled gradients are not.

    At a scale of 1 the gradients themselves are not.
    """
    return math.isfinite(loss) and not math.isfinite(grad_norm) and scale.value > 1


def named(step: int, what: str, value: float, keys: Sequence[tuple[int, Sequence[str]]]) -> str:
    """A skipped step in words.

    Args:
        step: counted from 0.
        what: was not finite.
        keys: (rank, first keys of its batch) of each rank to be named.
    """
    batches = ", ".join(f"{' '.join(first)} (rank {rank})" for rank, first in keys)
    return f"step {step}, the {what} is {value}, of the batch that begins with {batches}"


class Remembered:
    """What a forward pass changes beside the gradients, to be put back if the step is skipped.

    That is what the loss remembers from step to step, and the statistics of batch norm.

    Args:
        loss: its whole state.
        model: its layers with batch norm.
    """

    def __init__(self, loss: nn.Module, model: nn.Module) -> None:
        self._tensors = [*loss.state_dict(keep_vars=True).values(), *_statistics(model)]
        self._values = [tensor.detach().clone() for tensor in self._tensors]

    @torch.no_grad()
    def put_back(self) -> None:
        for tensor, value in zip(self._tensors, self._values, strict=True):
            tensor.copy_(value)


def _statistics(model: nn.Module) -> Iterable[torch.Tensor]:
    for module in model.modules():
        if isinstance(module, _BatchNorm) and module.training:
            yield from module.buffers(recurse=False)


def restored(state: dict[str, Any]) -> tuple[LossScale, Skips]:
    """From a checkpoint's JSON, of `asdict`."""
    skips = state["skips"]
    return LossScale(**state["loss_scale"]), Skips(
        **{**skips, "in_a_row": tuple(skips["in_a_row"])}
    )
