"""The contrastive loss with hard negatives, exact on any number of ranks.

The package imports torch and nothing else of weight, so that it can be lifted into any trainer.

1. `contrastive` holds the module; `objectives` published mixes by name; `inputs` what is refused.
2. `softmax` and `sigmoid` are the contrastive forms, `terms` what methods add to them, all of one
   batch's `features`.
3. Their large parts are autograd functions (`gaps`, `margins`), computed block by block.
4. `exchange` moves blocks between ranks by the collectives of `distributed`.
5. Engines compute the tiles of a block: `blocked` in plain torch, `kernels` in Triton, `oracle`
   densely in float64; `backends` chooses.
"""

from hnpretrain.losses.contrastive import HardNegativeContrastiveLoss, LossOutput
from hnpretrain.losses.features import TokenFeatures
from hnpretrain.losses.objectives import make_loss

__all__ = ["HardNegativeContrastiveLoss", "LossOutput", "TokenFeatures", "make_loss"]
