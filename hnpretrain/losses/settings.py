"""Section `loss:` of a training config."""

from __future__ import annotations

from dataclasses import dataclass, field

from hnpretrain.losses.contrastive import HardNegativeContrastiveLoss
from hnpretrain.losses.objectives import make_loss


@dataclass
class LossSettings:
    """What the loss is.

    Attributes:
        objective: clip, hn, negclip, ceclip, tsvlc, fscclip or siglip.
        scope: whose negatives an image is scored against: own, local (its rank's), global or
            none; empty takes the objective's.
        weights: of further terms by name (rank, intra_modal, own_choice, focal_choice,
            local_choice), in place of the objective's own; 0 leaves a term out.
        label_smoothing: share of the target that is spread over all candidates.
        comm: how captions travel between ranks: gather (all at once) or ring (one rank's at a
            time, in memory that does not grow with the ranks).
        backend: what computes: auto, blocked, triton (CUDA) or oracle (float64, for tests).
    """

    objective: str = "hn"
    scope: str = ""
    weights: dict[str, float] = field(default_factory=dict)
    label_smoothing: float = 0.0
    comm: str = "gather"
    backend: str = "auto"

    def __post_init__(self) -> None:
        try:
            self.make(negatives=1)
        except ValueError as error:
            raise ValueError(f"section loss: {error}") from error

    def make(self, negatives: int) -> HardNegativeContrastiveLoss:
        """The loss for K negatives a caption."""
        return make_loss(
            self.objective,
            negatives,
            scope=self.scope,
            weights=self.weights,
            label_smoothing=self.label_smoothing,
            comm=self.comm,
            backend=self.backend,
        )
