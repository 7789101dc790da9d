"""What the ranks tell each other at a step's edge, before the optimizer's step.

One gather of a few numbers and one copy to the host a step, which a step needs anyway to tell
whether its loss and gradients are finite. What a rank alone knows travels with it: that it was
asked to stop, and (the main rank's clock) that it is time to save. So there is no further
collective, and no further wait for the device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.distributed as dist


class Wish(NamedTuple):
    """What one rank asks all for.

    Attributes:
        save: a checkpoint after this step; the main rank's wish counts.
        stop: an end after this step, with a checkpoint; any rank's wish counts.
    """

    save: bool = False
    stop: bool = False


@dataclass(frozen=True)
class Edge:
    """The same on all ranks.

    Attributes:
        loss: of the global batch.
        grad_norm: global norm of the gradients, before clipping; infinite or NaN if any rank's is.
        logit_scale: the multiplier s that the loss was computed with.
        suspects: ranks whose features are not finite.
        save: whether the main rank asked for a checkpoint.
        stop: whether any rank was asked to stop.
    """

    loss: float
    grad_norm: float
    logit_scale: float
    suspects: tuple[int, ...]
    save: bool
    stop: bool

    @property
    def is_finite(self) -> bool:
        return math.isfinite(self.loss) and math.isfinite(self.grad_norm)


_NO_WISH = Wish()


def meet(
    loss: torch.Tensor,
    logit_scale: torch.Tensor,
    features_finite: torch.Tensor,
    gradients: Sequence[torch.Tensor],
    loss_scale: float,
    *,
    in_parts: bool,
    wish: Wish = _NO_WISH,
) -> Edge:
    """Tells all ranks what each knows; collective.

    Args:
        loss, logit_scale: 0-dim, the same on all ranks.
        features_finite: 0-dim bool, of this rank's.
        gradients: this rank's, of the loss times `loss_scale`.
        in_parts: whether each rank has another part of the gradients; else all have all of them.
        wish: this rank's.
    """
    norm = torch.nn.utils.get_total_norm(gradients).to(loss.device)
    values = [loss.detach(), logit_scale.detach(), norm, features_finite]
    # Not torch.tensor(...).to(device), which would wait for the device.
    values += [torch.full((), float(asked), device=loss.device) for asked in wish]
    mine = torch.stack([value.double() for value in values])
    all_ranks = mine.new_empty(dist.get_world_size() * len(mine))
    dist.all_gather_into_tensor(all_ranks, mine)
    rows = all_ranks.view(-1, len(mine)).tolist()
    norms = [row[2] for row in rows]
    grad_norm = math.sqrt(sum(norm * norm for norm in norms)) if in_parts else norms[0]
    if not all(map(math.isfinite, norms)):
        grad_norm = math.nan if any(map(math.isnan, norms)) else math.inf
    return Edge(
        loss=rows[0][0],
        grad_norm=grad_norm / loss_scale,
        logit_scale=rows[0][1],
        suspects=tuple(rank for rank, row in enumerate(rows) if not row[3]),
        save=bool(rows[0][4]),
        stop=any(row[5] for row in rows),
    )
