"""Section `loss:` of a training config."""

from __future__ import annotations

from dataclasses import dataclass

from hnpretrain.losses.contrastive import HardNegativeContrastiveLoss


@dataclass
class LossSettings:
    """What the loss is.

    Attributes:
        scope: whose negatives an image is scored against: own, local (its rank's) or global.
    """

    scope: str = "own"

    def __post_init__(self) -> None:
        HardNegativeContrastiveLoss(scope=self.scope)  # refuses an unknown scope
