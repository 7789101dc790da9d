"""CE-CLIP's cross-modal rank: a caption must lead its negatives by a margin that grows with it."""

from __future__ import annotations

import torch
from torch import nn

from hnpretrain.losses.features import Features


class CrossModalRank(nn.Module):
    """mean over (i, k) of v_ik relu( Th_k + s I_i.N_ik - s I_i.T_i ), v_ik 1 if N_ik is valid.

    Zhang, Awal, Agrawal, "Contrasting intra-modal and ranking cross-modal hard negatives to enhance
    visio-linguistic compositional understanding", CVPR 2024. Each place k among the negatives has a
    threshold of its own. After each training step it becomes the lead of captions over their valid
    k-th negatives in that step's global batch, in logits, between 0 and `highest`; `start_epoch`
    puts it back to 0. The thresholds are buffers: they belong into checkpoints.
    """

    thresholds: torch.Tensor

    def __init__(self, negatives: int, highest: float = 10.0) -> None:
        """Args:
        negatives: K, the most that a caption has.
        highest: bound of the thresholds; the paper found 10 better than 5 and 15.
        """
        super().__init__()
        self.highest = highest
        self.register_buffer("thresholds", torch.zeros(negatives))

    def forward(self, features: Features) -> torch.Tensor:
        """0-dim. In training it also moves the thresholds, for the next step.

        Raises:
            ValueError: there are more negatives than thresholds.
        """
        valid, K = features.valid, features.valid.shape[1]
        places = len(self.thresholds)
        if places < K:
            raise ValueError(
                f"CrossModalRank has thresholds for {places} negatives, the batch has {K}: make it "
                f"with negatives={K}"
            )
        if K == 0:
            return features.s.new_zeros(())
        lead = self.thresholds[:K].to(features.dtype) + features.s * features.margins
        losses = lead.relu().masked_fill(~valid, 0.0)
        if self.training and torch.is_grad_enabled():
            self._move(features)
        return losses.mean()

    def start_epoch(self) -> None:
        """Puts the thresholds back to 0."""
        self.thresholds.zero_()

    @torch.no_grad()
    def _move(self, features: Features) -> None:
        valid, positive = features.valid, features.positive.double()
        negative = (features.margins.double() + positive[:, None]).masked_fill(~valid, 0.0)
        K = valid.shape[1]
        # Sums over the global batch: captions, their number, negatives by place, their numbers.
        sums = torch.cat(
            [
                torch.stack([positive.sum(), positive.new_tensor(len(positive))]),
                negative.sum(dim=0),
                valid.sum(dim=0).double(),
            ]
        )
        features.means.ranks.sum(sums)
        counts = sums[2 + K :]
        lead = features.s.double() * (sums[0] / sums[1] - sums[2 : 2 + K] / counts.clamp(min=1))
        moved = torch.where(counts > 0, lead.clamp(0.0, self.highest), self.thresholds[:K])
        self.thresholds[:K] = moved.to(self.thresholds.dtype)
