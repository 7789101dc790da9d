"""The contrastive loss with hard negatives, exact on any number of ranks.

The package imports torch and nothing else of weight, so that it can be lifted into any trainer.
`contrastive` holds the module and its checks, `blocked` the arithmetic, `distributed` the
collectives, and `oracle` the formula in plain float64, for tests.
"""

from hnpretrain.losses.contrastive import HardNegativeContrastiveLoss, LossOutput

__all__ = ["HardNegativeContrastiveLoss", "LossOutput"]
