"""Terms that published methods add to the contrastive loss, on the same features.

Each is a module whose `forward(features)` is this rank's mean over its batch, 0-dim: the mean over
ranks, which data-parallel trainers take, is the term of the global batch.
"""

from hnpretrain.losses.terms.choice import LocalChoice, OwnChoice
from hnpretrain.losses.terms.intra_modal import IntraModalContrast
from hnpretrain.losses.terms.rank import CrossModalRank

__all__ = ["CrossModalRank", "IntraModalContrast", "LocalChoice", "OwnChoice"]
