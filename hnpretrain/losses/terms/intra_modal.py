"""CE-CLIP's intra-modal contrast: a caption must be nearer to its image than to any negative."""

from __future__ import annotations

import torch
from torch.nn.functional import softplus

from hnpretrain.losses.features import Features
from hnpretrain.losses.gaps import RowGaps
from hnpretrain.losses.terms.base import Term


class IntraModalContrast(Term):
    """-1/B sum_i log [ exp(s I_i.T_i) / ( exp(s I_i.T_i) + sum_{j,k} exp(s T_i.N_jk) ) ].

    Zhang, Awal, Agrawal, CVPR 2024 (see CrossModalRank), in the paper's form; over the valid
    negatives of the global batch. The (B, B K) similarities of texts are formed in tiles.
    """

    equal_negatives = True
    captions_meet_negatives = True

    def forward(self, features: Features) -> torch.Tensor:
        """0-dim."""
        if features.negative is None or features.mask is None:
            return features.s.new_zeros(())
        if features.shared_visit:
            gaps = features.gaps_to_negatives[1]
        else:
            columns, hidden = features.negative.flatten(0, 1), ~features.mask.flatten()
            gaps = RowGaps.apply(
                features.text, features.image, columns, hidden, features.scale, features.machinery
            )
        return softplus(gaps, threshold=40).mean()
