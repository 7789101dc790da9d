"""What a further term is."""

from __future__ import annotations

import torch
from torch import nn

from hnpretrain.losses.features import Features, TokenFeatures


class Term(nn.Module):
    """A module whose `forward(features)` is this rank's mean over its batch, 0-dim.

    The mean over the ranks, which data-parallel trainers take, is the term of the global batch.

    Attributes:
        equal_negatives: whether all ranks must have the same K, since ranks exchange something of
            that size.
        captions_meet_negatives: whether it takes `features.gaps_to_negatives` where images meet all
            negatives, too.
        needs_parts: whether it looks at `features.parts`.
    """

    equal_negatives = False
    captions_meet_negatives = False
    needs_parts = False

    def check(self, negatives: int, parts: TokenFeatures | None) -> None:
        """Raises ValueError for what the term cannot work with, before anything is sent.

        Args:
            negatives: K of this rank.
            parts: already checked for shapes.
        """
        del negatives
        if self.needs_parts and parts is None:
            raise ValueError(
                f"{type(self).__name__} needs token features: give parts=TokenFeatures(...)"
            )

    def start_epoch(self) -> None:
        """Is told that a new epoch begins."""

    def forward(self, features: Features) -> torch.Tensor:
        """See the class."""
        raise NotImplementedError
