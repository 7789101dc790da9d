"""Terms that published methods add to the contrastive loss, on the same features.

Each is a `Term`, a module of a step's `Features`.
"""

from hnpretrain.losses.terms.base import Term
from hnpretrain.losses.terms.choice import LocalChoice, OwnChoice
from hnpretrain.losses.terms.intra_modal import IntraModalContrast
from hnpretrain.losses.terms.rank import CrossModalRank

__all__ = ["CrossModalRank", "IntraModalContrast", "LocalChoice", "OwnChoice", "Term"]
