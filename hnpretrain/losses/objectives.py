"""Published objectives by name: a form, a scope, and further terms with their weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch.distributed as dist

from hnpretrain.losses.contrastive import HardNegativeContrastiveLoss
from hnpretrain.losses.inputs import one_of
from hnpretrain.losses.terms import (
    CrossModalRank,
    IntraModalContrast,
    LocalChoice,
    OwnChoice,
    Term,
)

TERMS: Mapping[str, Callable[[int], Term]] = {
    "rank": CrossModalRank,
    "intra_modal": lambda _: IntraModalContrast(),
    "own_choice": lambda _: OwnChoice(),
    "focal_choice": lambda _: OwnChoice(focal=2.0, smoothing=0.02),
    "local_choice": lambda _: LocalChoice(focal=2.0, smoothing=0.02),
}
"""Name to what makes the term for K negatives."""


@dataclass(frozen=True)
class Objective:
    """What a name stands for.

    Attributes:
        scope: whose negatives an image is scored against.
        form: softmax or sigmoid.
        terms: weights by name, of TERMS.
    """

    scope: str
    form: str = "softmax"
    terms: Mapping[str, float] = field(default_factory=dict)


OBJECTIVES: Mapping[str, Objective] = {
    # Radford et al. 2021; negatives are looked at in the metrics alone.
    "clip": Objective("none"),
    # Roesch et al. 2024, reconstructed.
    "hn": Objective("own"),
    # Yuksekgonul et al. 2023: every negative is a column for every image.
    "negclip": Objective("global"),
    # Zhang et al. 2024.
    "ceclip": Objective("global", terms={"rank": 0.2, "intra_modal": 0.3}),
    # Doveh et al. 2023.
    "tsvlc": Objective("global", terms={"own_choice": 1.0}),
    # Oh et al. 2024: negatives come in by the further terms alone.
    "fscclip": Objective("none", terms={"focal_choice": 0.5, "local_choice": 0.2}),
    # Zhai et al. 2023, with own negatives as further pairs that do not belong together.
    "siglip": Objective("own", form="sigmoid"),
}


def make_loss(
    objective: str,
    negatives: int,
    *,
    scope: str = "",
    weights: Mapping[str, float] | None = None,
    label_smoothing: float = 0.0,
    comm: str = "gather",
    backend: str = "auto",
    group: dist.ProcessGroup | None = None,
) -> HardNegativeContrastiveLoss:
    """The loss of a published objective.

    Args:
        objective: of OBJECTIVES.
        negatives: K, the most that a caption has.
        scope: in place of the objective's own.
        weights: of terms by name, of TERMS: in place of the objective's, or further ones; a term
            of weight 0 is left out.
        label_smoothing, comm, backend, group: see HardNegativeContrastiveLoss.

    Raises:
        ValueError: a name is unknown, or the choices do not go together.
    """
    one_of("objective", objective, OBJECTIVES)
    known = OBJECTIVES[objective]
    chosen = {**known.terms, **(weights or {})}
    for name, weight in chosen.items():
        one_of("term", name, TERMS)
        if not weight >= 0:
            raise ValueError(f"the weight of {name} is {weight}; it must be 0 or more")
    chosen = {name: weight for name, weight in chosen.items() if weight}
    return HardNegativeContrastiveLoss(
        scope or known.scope,
        group,
        comm=comm,
        backend=backend,
        form=known.form,
        label_smoothing=label_smoothing,
        terms={name: TERMS[name](negatives) for name in chosen},
        weights=chosen,
    )
