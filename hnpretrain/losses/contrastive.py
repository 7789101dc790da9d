"""The module: checks the inputs on this rank, then across the ranks, then calls the arithmetic."""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn

from hnpretrain.losses.blocked import BlockedContrastive, accumulation_dtype
from hnpretrain.losses.distributed import Ranks

SCOPES = ("own", "local", "global")
FEATURE_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@dataclass(frozen=True)
class LossOutput:
    """What the loss returns.

    Attributes:
        total: 0-dim, the loss of the global batch: the same value on every rank, differentiable.
            float32, or float64 if an input is.
        terms: the parts of `total` by name, 0-dim, detached; "contrastive" here.
        metrics: 0-dim, detached, over the valid negatives of the global batch:
            "negative_margin": mean of I_i.T_i - I_i.N_ik (cosines, if the features are normalised);
            "negative_accuracy": share with I_i.T_i > I_i.N_ik; a tie is wrong;
            "negatives": their number. All three are 0 where there is no valid negative.
    """

    total: torch.Tensor
    terms: dict[str, torch.Tensor]
    metrics: dict[str, torch.Tensor]


class HardNegativeContrastiveLoss(nn.Module):
    """CLIP's symmetric contrastive loss with hard negative captions, over all ranks of a group.

    With B = W * b images I and captions T, and K negatives N_ik of caption i where mask M_ik:

        L = 1/(2B) sum_i [ -s I_i.T_i + log( sum_j exp(s I_i.T_j)
                                             + sum_{(j,k) in scope(i)} exp(s I_i.N_jk) ) ]
          + 1/(2B) sum_i [ -s I_i.T_i + log   sum_j exp(s T_i.I_j) ]

    Negatives are further captions that an image must tell from its own; no image is asked for by a
    negative. With K = 0 this is CLIP's loss (Radford et al. 2021). Scope `own` is the
    reconstruction of Roesch et al. 2024, `global` L_HN of CE-CLIP (Zhang et al. 2024).

    Gradients are those of L times W (for `logit_scale`: this rank's part of it, times W), so that
    the mean over ranks, which DistributedDataParallel and DeepSpeed take of parameter gradients,
    is the exact gradient of L. Do not multiply by W again. All ranks take part in forward, and in
    backward with the same `total.backward()`.

    Args:
        scope: whose negatives image i is scored against: "own" {(i, k)}, nothing is sent;
            "local" all of its rank; "global" all of the group.
        group: the ranks that share the batch; None is the world, or this process alone if
            torch.distributed is not initialised.

    Raises:
        ValueError: the scope is unknown.
    """

    def __init__(self, scope: str = "own", group: dist.ProcessGroup | None = None) -> None:
        super().__init__()
        if scope not in SCOPES:
            near = difflib.get_close_matches(str(scope), SCOPES, n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"scope={scope!r} is not one of {', '.join(SCOPES)}{hint}")
        self.scope = scope
        self.group = group

    def forward(
        self,
        image: torch.Tensor,
        text: torch.Tensor,
        negative: torch.Tensor | None = None,
        negative_mask: torch.Tensor | None = None,
        logit_scale: torch.Tensor | float | None = None,
    ) -> LossOutput:
        """The loss of the global batch from this rank's part of it.

        Args:
            image: (b, D) float; b is the same on every rank. Nothing is normalised here.
            text: (b, D) float; caption i belongs to image i.
            negative: (b, K, D) float, K >= 0; None is K = 0. Scope `global` wants the same K on
                every rank.
            negative_mask: (b, K) bool, True where a negative is valid; None if all are. What
                masked slots hold, NaN included, does not matter.
            logit_scale: the multiplier s itself, exp(...) already taken: a 0-dim float tensor, or
                a positive number.

        Returns:
            See LossOutput. Features may be bf16, fp16, fp32 or fp64 and may differ in dtype;
            arithmetic is at least float32, under autocast too; gradients have the inputs' dtypes.

        Raises:
            ValueError: shapes, dtypes or devices do not fit together, or the ranks disagree on
                them. It is raised on all ranks, before any feature is sent.
        """
        ranks = Ranks.of(self.group)
        try:
            scale = _check_inputs(image, text, negative, negative_mask, logit_scale)
        except Exception:
            ranks.exchange([0] * (1 + len(_AGREED)))  # the others wait for this rank's word
            raise
        if negative is None or negative.shape[1] == 0:
            negative = negative_mask = None
        elif negative_mask is None:
            negative_mask = torch.ones(negative.shape[:2], dtype=torch.bool, device=image.device)
        _check_agreement(ranks, image, text, negative, self.scope)

        total, sums = BlockedContrastive.apply(
            image, text, negative, negative_mask, scale, self.scope, ranks
        )
        margin_sum, correct, count = sums.to(total.dtype)
        at_least_one = count.clamp(min=1)
        metrics = {
            "negative_margin": margin_sum / at_least_one,
            "negative_accuracy": correct / at_least_one,
            "negatives": count,
        }
        return LossOutput(total, terms={"contrastive": total.detach()}, metrics=metrics)

    def extra_repr(self) -> str:
        return f"scope={self.scope!r}"


def _check_inputs(
    image: torch.Tensor,
    text: torch.Tensor,
    negative: torch.Tensor | None,
    mask: torch.Tensor | None,
    logit_scale: torch.Tensor | float | None,
) -> torch.Tensor:
    """Checks this rank's inputs against each other; returns the scale as a 0-dim tensor."""
    if image.ndim != 2 or image.shape != text.shape or image.numel() == 0:
        raise ValueError(
            f"image {_shape(image)} and text {_shape(text)} must have one shape (b, D), with at "
            "least one row"
        )
    b, D = image.shape
    if negative is not None and (
        negative.ndim != 3 or negative.shape[0] != b or negative.shape[2] != D
    ):
        raise ValueError(
            f"negative {_shape(negative)} must have shape (b, K, D) with b={b} and D={D}, as image "
            f"{_shape(image)} has"
        )
    if mask is not None:
        if negative is None:
            raise ValueError(f"negative_mask {_shape(mask)} was given without negatives")
        if mask.dtype != torch.bool or mask.shape != negative.shape[:2]:
            raise ValueError(
                f"negative_mask {_shape(mask)} of {mask.dtype} must be (b, K) of torch.bool for "
                f"negative {_shape(negative)}"
            )
    for name, x in (("image", image), ("text", text), ("negative", negative)):
        if x is not None and x.dtype not in FEATURE_DTYPES:
            allowed = ", ".join(str(dtype) for dtype in FEATURE_DTYPES)
            raise ValueError(f"{name} {_shape(x)} is {x.dtype}; it must be one of {allowed}")

    dtype = accumulation_dtype(image, text, negative)
    if isinstance(logit_scale, torch.Tensor):
        if logit_scale.ndim != 0 or not logit_scale.is_floating_point():
            raise ValueError(
                f"logit_scale {_shape(logit_scale)} of {logit_scale.dtype} must be a 0-dim "
                "floating-point tensor: the multiplier s itself"
            )
        scale = logit_scale
    elif logit_scale is None:
        raise ValueError("logit_scale is missing: give the multiplier s, as in logit_scale=100.0")
    else:
        if not (math.isfinite(logit_scale) and logit_scale > 0):
            raise ValueError(f"logit_scale={logit_scale!r} must be a finite positive number")
        scale = torch.full((), logit_scale, dtype=dtype, device=image.device)

    for name, x in (
        ("text", text),
        ("negative", negative),
        ("negative_mask", mask),
        ("logit_scale", scale),
    ):
        if x is not None and x.device != image.device:
            raise ValueError(
                f"{name} {_shape(x)} is on {x.device}, image {_shape(image)} on {image.device}; "
                "move them to one device"
            )
    return scale


_AGREED = {
    "scope": "give every rank the same one",
    "batch b": "drop or pad the last partial batch",
    "width D": "use one model on all ranks",
    "text dtype": "use one precision on all ranks",
    "accumulation dtype": "use one precision on all ranks",
    "whether text needs a gradient": "lock the text tower on all ranks or on none",
    "negatives per caption K": "pad to one K and mask, as scope 'global' gathers negatives",
    "negative dtype": "use one precision on all ranks",
    "whether negatives need a gradient": "lock the text tower on all ranks or on none",
}
"""What must be equal on all ranks, lest a collective hang or mix up shapes; what to do if not."""


def _check_agreement(
    ranks: Ranks,
    image: torch.Tensor,
    text: torch.Tensor,
    negative: torch.Tensor | None,
    scope: str,
) -> None:
    """Raises ValueError on every rank if one of them failed its checks or has other shapes."""
    if ranks.size == 1:
        return
    travels = negative if scope == "global" else None
    mine = {
        "scope": SCOPES.index(scope),
        "batch b": image.shape[0],
        "width D": image.shape[1],
        "text dtype": FEATURE_DTYPES.index(text.dtype),
        "accumulation dtype": FEATURE_DTYPES.index(accumulation_dtype(image, text, negative)),
        "whether text needs a gradient": int(_needs_grad(text)),
        "negatives per caption K": 0 if travels is None else travels.shape[1],
        "negative dtype": 0 if travels is None else FEATURE_DTYPES.index(travels.dtype),
        "whether negatives need a gradient": int(travels is not None and _needs_grad(travels)),
    }
    assert list(mine) == list(_AGREED)
    table = ranks.exchange([1, *mine.values()])
    failed = [rank for rank, row in enumerate(table) if not row[0]]
    if failed:
        raise ValueError(f"the loss's inputs were refused on rank(s) {failed}; see the error there")
    for place, (what, remedy) in enumerate(_AGREED.items(), start=1):
        values = [row[place] for row in table]
        if len(set(values)) > 1:
            shown: list[object] = list(values)
            if what == "scope":
                shown = [SCOPES[value] for value in values]
            elif what.endswith("dtype"):
                shown = [FEATURE_DTYPES[value] for value in values]
            raise ValueError(f"the ranks differ in {what}: {shown} (rank 0 first); {remedy}")


def _needs_grad(x: torch.Tensor) -> bool:
    return torch.is_grad_enabled() and x.requires_grad


def _shape(x: torch.Tensor) -> str:
    return str(tuple(x.shape))
