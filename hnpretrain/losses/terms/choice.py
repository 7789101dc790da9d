"""A caption among its own negatives: one choice an image, by whole captions or by their words."""

from __future__ import annotations

import torch
from torch.nn.functional import normalize, softplus

from hnpretrain.losses.distributed import Ranks
from hnpretrain.losses.engines import existing
from hnpretrain.losses.features import Features
from hnpretrain.losses.gaps import NOTHING
from hnpretrain.losses.terms.base import Term


class OwnChoice(Term):
    """Cross entropy of each image's choice among its caption and its own valid negatives.

    With p over the 1 + n candidates, y_0 = 1 - b + b / (n + 1) and y_k = b / (n + 1):

        mean over i with n > 0 of - sum_k y_k (1 - p_k)^g log p_k

    As it stands (g = b = 0) the term that TSVLC adds (Doveh et al., "Teaching Structured Vision &
    Language Concepts to Vision & Language Models", CVPR 2023); with g = 2, b = 0.02 the global term
    of FSC-CLIP (Oh et al., "Preserving Multi-Modal Capabilities of Pre-trained VLMs for Improving
    Vision-Linguistic Compositionality", EMNLP 2024).
    """

    def __init__(self, focal: float = 0.0, smoothing: float = 0.0) -> None:
        """Args:
        focal: g, by how much sure choices count less.
        smoothing: b, the share of the target that is spread over all candidates.
        """
        super().__init__()
        self.focal = focal
        self.smoothing = smoothing

    def forward(self, features: Features) -> torch.Tensor:
        """0-dim."""
        leads = features.s * features.margins
        ranks = features.machinery.ranks
        return choice(leads, features.valid, self.focal, self.smoothing, ranks)


class LocalChoice(Term):
    """The same choice by how well words fit patches: the local term of FSC-CLIP (see OwnChoice).

    For word w_t and patches v_p: attention a_tp is w_t.v_p moved and scaled to [0, 1] over the
    patches and divided by its sum, without gradient; v_t is the unit vector of sum_p a_tp v_p. A
    caption's score is the log-sum-exp over its words of s <v_t, w_t>.
    """

    needs_parts = True

    def __init__(self, focal: float = 2.0, smoothing: float = 0.02) -> None:
        """Args: as those of OwnChoice."""
        super().__init__()
        self.focal = focal
        self.smoothing = smoothing

    def forward(self, features: Features) -> torch.Tensor:
        """0-dim."""
        parts = features.parts
        assert parts is not None  # see Term.check
        words = existing(parts.tokens, ~parts.token_mask, features.dtype)
        words = normalize(words, dim=-1)
        patches = parts.patches.to(features.dtype)
        with torch.no_grad():
            attention = torch.einsum("bctd,bpd->bctp", words, patches)
            lowest, highest = attention.aminmax(dim=-1, keepdim=True)
            attention = (attention - lowest) / (highest - lowest).clamp(min=1e-6)
            attention = attention / attention.sum(dim=-1, keepdim=True).clamp(min=1e-6)
        seen = normalize(torch.einsum("bctp,bpd->bctd", attention, patches), dim=-1)
        fits = features.s * (seen * words).sum(dim=-1)
        scores = fits.masked_fill(~parts.token_mask, NOTHING).logsumexp(dim=-1)
        wordy = parts.token_mask.any(dim=-1)  # an empty text has no score
        valid = features.valid & wordy[:, 1:] & wordy[:, :1]
        leads = (scores[:, 1:] - scores[:, :1]).masked_fill(~valid, 0.0)
        return choice(leads, valid, self.focal, self.smoothing, features.machinery.ranks)


def choice(
    leads: torch.Tensor, valid: torch.Tensor, focal: float, smoothing: float, ranks: Ranks
) -> torch.Tensor:
    """The mean loss of choices; see OwnChoice. A collective: images with negatives are counted.

    Args:
        leads: (b, K), by how much each negative's logit is ahead of the caption's.
        valid: (b, K) bool, which of them there are.
        focal, smoothing: g and b.
        ranks: those that share the batch.
    """
    chosen = valid.any(dim=1)
    count = ranks.sum(chosen.sum().to(leads.dtype)).clamp(min=1) / ranks.size
    # As in `gaps`: the caption is compared with all others together, so that losses near 0 and
    # their gradients keep their digits.
    candidates = torch.cat([leads.new_full((len(leads), 1), NOTHING), leads], dim=1)
    exist = torch.cat([valid.new_zeros(len(valid), 1), valid], dim=1)
    gap = candidates.masked_fill(~exist, NOTHING).logsumexp(dim=1, keepdim=True)
    rest = softplus(gap, threshold=40)
    log_p = torch.cat([-rest, (leads - rest).masked_fill(~valid, 0.0)], dim=1)
    target = smoothing / (1 + valid.sum(dim=1, keepdim=True)).to(leads.dtype) * valid
    target = torch.cat([1.0 - target.sum(dim=1, keepdim=True), target], dim=1)
    if focal:
        unsure = torch.cat([gap.sigmoid(), -torch.expm1(log_p[:, 1:])], dim=1)
        target = target * unsure.clamp(min=0.0).pow(focal)
    losses = -(target * log_p).sum(dim=1)
    return losses.masked_fill(~chosen, 0.0).sum() / count
