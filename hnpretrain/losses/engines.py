"""What computes the tiles: backends that agree, behind one small interface.

A rank's features meet those of one other rank (or itself) at a time. An engine folds the matrix
s * rows @ columns^t of such a pair of blocks into log-sum-exps, and later spreads gradients of
those back; it never gives the matrix away, and all but `oracle` never hold it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

NEG_INF = float("-inf")


@dataclass(frozen=True)
class Block:
    """The columns that a rank's rows meet.

    Attributes:
        features: (c, D), in any floating-point dtype.
        hidden: (c,) bool, True where a column does not exist, whatever its features hold; or None.
        paired: whether column i belongs to row i: such pairs stay out of all sums.
    """

    features: torch.Tensor
    hidden: torch.Tensor | None = None
    paired: bool = False


@dataclass(frozen=True)
class Softmax:
    """Weighted softmaxes over rows or columns of the logits x: grad * exp(x - lse).

    Attributes:
        lse: log-sum-exps, -inf where there was nothing to sum.
        grad: what arrives for each of them.
    """

    lse: torch.Tensor
    grad: torch.Tensor


@dataclass(frozen=True)
class Spread:
    """What `Engine.backward` returns: sums over P = row softmaxes + column softmaxes.

    Attributes:
        rows: (r, D), P @ columns.
        row_mass: (r,), the sums of the row softmaxes over columns: `grad`, but for rounding.
        col_mass: (c,), the sums of the column softmaxes over rows; None without them.
    """

    rows: torch.Tensor
    row_mass: torch.Tensor
    col_mass: torch.Tensor | None


class Engine(Protocol):
    """Folds and spreads s * rows @ columns^t: in the dtype of `s`, whatever the features' is."""

    def forward(
        self, rows: torch.Tensor, block: Block, s: torch.Tensor, both: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Log-sum-exps over columns, (r,), and if `both` over rows, (c,)."""

    def backward(
        self,
        rows: torch.Tensor,
        block: Block,
        s: torch.Tensor,
        row_softmax: Softmax,
        col_softmax: Softmax | None,
        column_sums: torch.Tensor | None,
    ) -> Spread:
        """Spreads what arrives for log-sum-exps of these and other blocks over the features.

        Args:
            rows, block, s: as in forward.
            row_softmax, col_softmax: what arrives; the latter None after `both` = False.
            column_sums: (c, D) zeros, contiguous, in the dtype of `s`, to be made P^t @ rows: they
                lie where the ranks' sums are collected, so nothing is copied. None: not needed.
        """


def accumulation_dtype(*tensors: torch.Tensor | None) -> torch.dtype:
    """float64 if any of the tensors is float64, else float32."""
    wide = any(x is not None and x.dtype == torch.float64 for x in tensors)
    return torch.float64 if wide else torch.float32


def existing(
    features: torch.Tensor, hidden: torch.Tensor | None, dtype: torch.dtype
) -> torch.Tensor:
    """Features in `dtype`, hidden ones as zeros.

    A softmax of zero alone would not keep a hidden column out: 0 * NaN is NaN, and a padded slot
    may hold anything.
    """
    cast = features.to(dtype)
    return cast if hidden is None else cast.masked_fill(hidden[..., None], 0.0)
