"""The further terms straight from their papers' formulas: dense, float64, plain autograd."""

from __future__ import annotations

import torch
from torch.nn.functional import cross_entropy, logsigmoid, normalize, relu

from tests.losses.loss_cases import Case


def similarities(case: Case) -> tuple[torch.Tensor, torch.Tensor]:
    """s I_i.T_i as (B,) and s I_i.N_ik as (B, K), masked ones 0."""
    negative = torch.where(case.mask[..., None], case.negative, 0.0)
    positive = case.logit_scale * (case.image * case.text).sum(-1)
    own = case.logit_scale * (case.image[:, None] * negative).sum(-1)
    return positive, own


def rank(case: Case, thresholds: torch.Tensor) -> torch.Tensor:
    positive, own = similarities(case)
    losses = relu(thresholds + own - positive[:, None])
    return torch.where(case.mask, losses, 0.0).mean()


def next_thresholds(case: Case, before: torch.Tensor, highest: float) -> torch.Tensor:
    positive, own = similarities(case)
    moved = before.clone()
    for k in range(own.shape[1]):
        if case.mask[:, k].any():
            moved[k] = (positive.mean() - own[:, k][case.mask[:, k]].mean()).clamp(0, highest)
    return moved.detach()


def intra_modal(case: Case) -> torch.Tensor:
    positive, _ = similarities(case)
    negatives = case.negative[case.mask]
    against = case.logit_scale * case.text @ negatives.T
    return (torch.cat([positive[:, None], against], dim=1).logsumexp(1) - positive).mean()


def own_choice(case: Case, focal: float, smoothing: float) -> torch.Tensor:
    positive, own = similarities(case)
    return mean_choice(positive, own, case.mask, focal, smoothing)


def mean_choice(
    positive: torch.Tensor,
    own: torch.Tensor,
    mask: torch.Tensor,
    focal: float,
    smoothing: float,
) -> torch.Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for p, n, valid in zip(positive, own, mask, strict=True):
        if not valid.any():
            continue
        log_p = torch.cat([p[None], n[valid]]).log_softmax(0)
        candidates = len(log_p)
        target = torch.full((candidates,), smoothing / candidates, dtype=torch.float64)
        target[0] += 1 - smoothing
        total = total - (target * (1 - log_p.exp()) ** focal * log_p).sum()
    return total / mask.any(dim=1).sum().clamp(min=1)


def local_scores(
    scale: torch.Tensor, patches: torch.Tensor, tokens: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    """The scores (B, 1 + K) of captions by their words."""
    scores = torch.zeros(tokens.shape[:2], dtype=torch.float64)
    for i in range(tokens.shape[0]):
        v = patches[i]
        for c in range(tokens.shape[1]):
            w = normalize(tokens[i, c][mask[i, c]], dim=-1)
            attention = (w @ v.T).detach()
            attention = attention - attention.min(1, keepdim=True).values
            attention = attention / attention.max(1, keepdim=True).values
            attention = attention / attention.sum(1, keepdim=True)
            seen = normalize(attention @ v, dim=-1)
            scores[i, c] = (scale * (seen * w).sum(-1)).logsumexp(0)
    return scores


def sigmoid(case: Case, bias: torch.Tensor) -> torch.Tensor:
    """SigLIP's loss with an image's own negatives as further pairs."""
    logits = case.logit_scale * case.image @ case.text.T + bias
    signs = 2 * torch.eye(len(logits), dtype=torch.float64) - 1
    _, own = similarities(case)
    total = -logsigmoid(signs * logits).sum() - logsigmoid(-(own + bias))[case.mask].sum()
    return total / len(logits)


def smoothed(case: Case, scope: str, smoothing: float, ranks: int = 1) -> torch.Tensor:
    """The softmax form with torch's own label smoothing, image by image."""
    logits = case.logit_scale * case.image @ case.text.T
    b = len(logits) // ranks
    losses = []
    for i in range(len(logits)):
        mine = {
            "own": slice(i, i + 1),
            "local": slice(i // b * b, i // b * b + b),
            "global": slice(None),
            "none": slice(0, 0),
        }[scope]
        negatives = case.negative[mine][case.mask[mine]]
        row = torch.cat([logits[i], case.logit_scale * negatives @ case.image[i]])
        for values in (row, logits[:, i]):
            losses.append(cross_entropy(values[None], torch.tensor([i]), label_smoothing=smoothing))
    return torch.stack(losses).mean()
