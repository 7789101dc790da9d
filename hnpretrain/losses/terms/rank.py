"""CE-CLIP's cross-modal rank: a caption must lead its negatives by a margin that grows with it."""

from __future__ import annotations

import torch

from hnpretrain.losses.features import Features, TokenFeatures
from hnpretrain.losses.terms.base import Term


class CrossModalRank(Term):
    """mean over (i, k) of v_ik relu( Th_k + s I_i.N_ik - s I_i.T_i ), v_ik 1 if N_ik is valid.

    Zhang, Awal, Agrawal, "Contrasting intra-modal and ranking cross-modal hard negatives to enhance
    visio-linguistic compositional understanding", CVPR 2024. Each place k among the negatives has a
    threshold of its own. After each training step it becomes the lead of captions over their valid
    k-th negatives in that step's global batch, in logits, between 0 and `highest`; `start_epoch`
    puts it back to 0. The thresholds are buffers: they belong into checkpoints.
    """

    equal_negatives = True
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
        """0-dim. In training it also moves the thresholds, for the next step."""
        valid, K = features.valid, features.valid.shape[1]
        if K == 0:
            return features.s.new_zeros(())
        lead = self.thresholds[:K].to(features.dtype) + features.s * features.margins
        losses = lead.relu().masked_fill(~valid, 0.0)
        if self.training and torch.is_grad_enabled():
            self._move(features)
        return losses.mean()

    def check(self, negatives: int, parts: TokenFeatures | None) -> None:
        """See Term."""
        super().check(negatives, parts)
        places = len(self.thresholds)
        if places < negatives:
            raise ValueError(
                f"CrossModalRank has thresholds for {places} negatives, the batch has {negatives}: "
                f"make it with negatives={negatives}"
            )

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
        features.machinery.ranks.sum(sums)
        counts = sums[2 + K :]
        lead = features.s.double() * (sums[0] / sums[1] - sums[2 : 2 + K] / counts.clamp(min=1))
        moved = torch.where(counts > 0, lead.clamp(0.0, self.highest), self.thresholds[:K])
        self.thresholds[:K] = moved.to(self.thresholds.dtype)
