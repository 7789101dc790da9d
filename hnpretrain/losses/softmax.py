"""The softmax form of the loss: each image among captions, each caption among images."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch.nn.functional import softplus

from hnpretrain.losses.distributed import ALONE, Ranks
from hnpretrain.losses.features import Features
from hnpretrain.losses.gaps import NOTHING, RowGaps


def softmax_contrast(features: Features, scope: str, smoothing: float) -> torch.Tensor:
    """This rank's mean over its pairs; the mean over ranks is L of docs/loss.md.

    Args:
        features: of this rank.
        scope: of inputs.SCOPES.
        smoothing: a share of the target that is spread evenly over all that a pair is scored
            against, itself included (Szegedy et al., "Rethinking the Inception Architecture for
            Computer Vision", CVPR 2016), as torch's cross entropy does.

    Returns:
        0-dim, in the accumulation dtype.
    """
    image_gap, text_gap, _ = features.gaps
    scope = scope if features.negative is not None else "none"
    if scope != "none":
        image_gap = torch.logaddexp(image_gap, _negatives_gap(features, scope))
    # log(1 + exp(gap)); past the default threshold of 20 it would be gap, 2e-9 too little.
    losses = softplus(image_gap, threshold=40) + softplus(text_gap, threshold=40)
    if smoothing:
        losses = losses - smoothing * (_mean_lead(features, scope) + _mean_lead_of_images(features))
    return losses.sum(dtype=torch.float64).div(2 * len(losses)).to(features.dtype)


def _negatives_gap(features: Features, scope: str) -> torch.Tensor:
    """Of each image against the negatives in its scope."""
    if scope == "own":
        logits = (features.s * features.margins).masked_fill(~features.valid, NOTHING)
        return logits.logsumexp(dim=1)
    if features.shared_visit:
        return features.gaps_to_negatives[0]
    columns, hidden, machinery = _columns(features, scope)
    return RowGaps.apply(features.image, features.text, columns, hidden, features.scale, machinery)


def _columns(features: Features, scope: str) -> tuple[torch.Tensor, torch.Tensor, Any]:
    assert features.negative is not None
    assert features.mask is not None
    machinery = (
        features.machinery if scope == "global" else replace(features.machinery, ranks=ALONE)
    )
    return features.negative.flatten(0, 1), ~features.mask.flatten(), machinery


def _mean_lead(features: Features, scope: str) -> torch.Tensor:
    """For each image, the mean over what it is scored against of x_ic - x_ii: a sum of features."""
    ranks, positive = features.machinery.ranks, features.positive
    texts = SumOfAll.apply(features.text.to(features.dtype).sum(dim=0), ranks)
    count = features.text.new_full((), len(positive) * ranks.size, dtype=features.dtype)
    lead = features.image.to(features.dtype) @ texts - count * positive
    if scope == "own":
        lead = lead + features.margins.sum(dim=1)
        count = count + features.valid.sum(dim=1)
    elif scope != "none":
        columns, hidden, machinery = _columns(features, scope)
        present = columns.to(features.dtype).masked_fill(hidden[:, None], 0.0)
        negatives = SumOfAll.apply(present.sum(dim=0), machinery.ranks)
        more = machinery.ranks.sum((~hidden).sum().to(features.dtype))
        lead = lead + features.image.to(features.dtype) @ negatives - more * positive
        count = count + more
    return features.s * lead / count


def _mean_lead_of_images(features: Features) -> torch.Tensor:
    """For each caption, the mean over images of x_ji - x_ii."""
    ranks = features.machinery.ranks
    images = SumOfAll.apply(features.image.to(features.dtype).sum(dim=0), ranks)
    mean = features.text.to(features.dtype) @ images / (len(features.positive) * ranks.size)
    return features.s * (mean - features.positive)


class SumOfAll(torch.autograd.Function):
    """(x, ranks) -> the sum of all ranks' x; its gradient is the sum of all ranks' gradients."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, ranks: Ranks) -> torch.Tensor:
        ctx.ranks = ranks
        return ranks.sum(x.clone())

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        return ctx.ranks.sum(grad.clone()), None
