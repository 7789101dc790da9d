"""AdamW with CLIP's parameter groups, and the learning rate as a function of the step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass
class OptimizerSettings:
    """Section `optimizer:` of a training config.

    Attributes:
        lr: peak learning rate.
        betas: AdamW's; CLIP trains ViTs with 0.9 and 0.98.
        eps: AdamW's; CLIP uses 1e-6 for ViTs.
        weight_decay: of matrices; gains, biases and the logit scale have none.
        warmup_steps: steps of linear warm-up, before the cosine to zero.
        max_grad_norm: gradients are clipped to this global norm; 0 leaves them.
    """

    lr: float = 5e-4
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-6
    weight_decay: float = 0.2
    warmup_steps: int = 500
    max_grad_norm: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.lr < math.inf:
            raise ValueError(f"optimizer.lr={self.lr} must be a number above 0")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(
                f"optimizer.betas={list(self.betas)} must be two numbers from 0 to below 1"
            )
        for name in ("eps", "weight_decay", "warmup_steps", "max_grad_norm"):
            if not 0 <= getattr(self, name) < math.inf:  # also refuses NaN
                raise ValueError(
                    f"optimizer.{name}={getattr(self, name)} must be a number from 0 up"
                )


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """CLIP's two groups: matrices decay; vectors and scalars (gains, biases, logit scale) do not.

    Frozen parameters are left out.
    """
    decays = (weight_decay, 0.0)
    groups = [
        {"params": [model.get_parameter(name) for name in names], "weight_decay": decay}
        for names, decay in zip(_trained_names(model), decays, strict=True)
    ]
    return [group for group in groups if group["params"]]


def trained_names(model: nn.Module) -> list[str]:
    """The names of the trained parameters, in the order in which the optimizer numbers them."""
    matrices, others = _trained_names(model)
    return [*matrices, *others]


def _trained_names(model: nn.Module) -> tuple[list[str], list[str]]:
    """Of matrices, and of vectors and scalars."""
    matrices: list[str] = []
    others: list[str] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            ndim = len(getattr(parameter, "ds_shape", parameter.shape))  # ZeRO 3 leaves parts
            (matrices if ndim >= 2 else others).append(name)
    return matrices, others


def build_optimizer(model: nn.Module, settings: OptimizerSettings) -> torch.optim.AdamW:
    return torch.optim.AdamW(
        parameter_groups(model, settings.weight_decay),
        lr=settings.lr,
        betas=settings.betas,
        eps=settings.eps,
        fused=True,  # one pass over the weights, several times faster, on the CPU too
    )


def warmup_warning(settings: OptimizerSettings, total_steps: int) -> str:
    """What people must hear of a run that ends before its peak rate; empty for others."""
    if settings.warmup_steps < total_steps:
        return ""
    return (
        f"optimizer.warmup_steps={settings.warmup_steps} is not shorter than the run, which has "
        f"{total_steps} steps: the rate only rises, and at most to optimizer.lr={settings.lr}"
    )


def learning_rate(settings: OptimizerSettings, step: int, total_steps: int) -> float:
    """The rate of a step, counted from 0: linear warm-up to the peak, then a cosine to zero.

    A function of the step alone, so there is no schedule's state to save.
    """
    if step < settings.warmup_steps:
        return settings.lr * (step + 1) / settings.warmup_steps
    progress = (step - settings.warmup_steps) / max(1, total_steps - settings.warmup_steps)
    return settings.lr * 0.5 * (1 + math.cos(math.pi * progress))
