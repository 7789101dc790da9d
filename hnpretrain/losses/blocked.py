"""The engine in plain torch: tiles small enough for a cache, on any device.

The largest temporary is a tile. Forward makes one matrix product, one exponential and two sums of
it; backward one product, one exponential and two products more.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from hnpretrain.losses.engines import NEG_INF, Block, Softmax, Spread, existing

CPU_TILE_ELEMENTS = 2**19
"""The most elements of a tile, and of a block of features cast for it: 2 MiB in float32.

For B=4096, D=512 on two cores, 2**19 to 2**22 take the same time within 3 %, 2**18 a twentieth and
2**17 a third more: smaller tiles make thin matrix products. So the smallest that is fast.
"""

GPU_TILE_ELEMENTS = 2**24
"""The same elsewhere: 64 MiB in float32, so that kernels outlast their launches. Not tuned."""

# One exponential serves rows and columns if it is taken relative to a common reference. Sums of
# it below this are too near to what float32 rounds to zero.
_SMALLEST_SUM = 1e-20
# Log-sum-exps of rows and columns may lie so far apart for that.
_WIDEST_RANGE = 120.0


class Blocked:
    """See Engine."""

    def forward(
        self, rows: torch.Tensor, block: Block, s: torch.Tensor, both: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """See Engine."""
        r, D = rows.shape
        c = block.features.shape[0]
        row_lse = s.new_full((r,), NEG_INF)
        col_lse = s.new_full((c,), NEG_INF) if both else None
        tile_rows, tile_columns = tile_shape(r, D, budget(rows))
        for i in blocks(r, tile_rows):
            scaled = s * rows[i].to(s.dtype)
            for j in blocks(c, tile_columns):
                columns = columns_of(block, j, s.dtype)
                over_columns, over_rows = _fold(scaled, columns, block, i, j, both)
                row_lse[i] = torch.logaddexp(row_lse[i], over_columns)
                if col_lse is not None and over_rows is not None:
                    col_lse[j] = torch.logaddexp(col_lse[j], over_rows)
        return row_lse, col_lse

    def backward(
        self,
        rows: torch.Tensor,
        block: Block,
        s: torch.Tensor,
        row_softmax: Softmax,
        col_softmax: Softmax | None,
        column_sums: torch.Tensor | None,
    ) -> Spread:
        """See Engine."""
        r, D = rows.shape
        c = block.features.shape[0]
        reference = _reference(row_softmax, col_softmax)
        spread = Spread(
            rows=s.new_zeros(r, D),
            row_mass=s.new_zeros(r),
            col_mass=None if col_softmax is None else s.new_zeros(c),
        )
        tile_rows, tile_columns = tile_shape(r, D, budget(rows))
        for i in blocks(r, tile_rows):
            row_features = rows[i].to(s.dtype)
            scaled = s * row_features
            for j in blocks(c, tile_columns):
                columns = columns_of(block, j, s.dtype)
                tile = logits_of(scaled, columns, block, i, j)
                by_row = Softmax(row_softmax.lse[i], row_softmax.grad[i])
                by_column = None
                if col_softmax is not None:
                    by_column = Softmax(col_softmax.lse[j], col_softmax.grad[j])
                weights, row_mass, col_mass = _softmaxes(tile, by_row, by_column, reference)
                spread.row_mass[i] += row_mass
                if spread.col_mass is not None and col_mass is not None:
                    spread.col_mass[j] += col_mass
                spread.rows[i].addmm_(weights, columns)
                if column_sums is not None:
                    column_sums[j].addmm_(weights.T, row_features)
                del tile, weights  # before the next are made
        return spread


def columns_of(block: Block, j: slice, dtype: torch.dtype) -> torch.Tensor:
    """Features of some columns, absent ones as zeros."""
    hidden = None if block.hidden is None else block.hidden[j]
    return existing(block.features[j], hidden, dtype)


def logits_of(
    scaled: torch.Tensor, columns: torch.Tensor, block: Block, i: slice, j: slice
) -> torch.Tensor:
    """A tile of the logits; -inf where there is no column, or a pair."""
    tile = scaled @ columns.T
    if block.hidden is not None:
        tile.masked_fill_(block.hidden[j], NEG_INF)
    diagonal = i.start - j.start
    if block.paired and -tile.shape[0] < diagonal < tile.shape[1]:
        tile.diagonal(diagonal).fill_(NEG_INF)
    return tile


def _fold(
    scaled: torch.Tensor, columns: torch.Tensor, block: Block, i: slice, j: slice, both: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Log-sum-exps of a tile over its columns, and if `both` over its rows."""
    tile = logits_of(scaled, columns, block, i, j)
    if not both:
        return tile.logsumexp(dim=1), None
    if tile.is_cpu:  # elsewhere, to look at the sums would wait for the device
        top = tile.max()
        tile.sub_(top).exp_()
        sums = tile.sum(dim=1), tile.sum(dim=0)
        if min(sums[0].min(), sums[1].min()) > _SMALLEST_SUM:
            return sums[0].log_().add_(top), sums[1].log_().add_(top)
        del tile
        tile = logits_of(scaled, columns, block, i, j)
    return tile.logsumexp(dim=1), tile.logsumexp(dim=0)


def _reference(row_softmax: Softmax, col_softmax: Softmax | None) -> torch.Tensor | None:
    """What all exponentials may be taken relative to; None if log-sum-exps lie too far apart."""
    if col_softmax is None or not row_softmax.lse.is_cpu:
        return None
    both = torch.cat([row_softmax.lse, col_softmax.lse])
    both = both[both > NEG_INF]
    if both.numel() == 0 or both.max() - both.min() > _WIDEST_RANGE:
        return None
    return (both.max() + both.min()) / 2


def _softmaxes(
    tile: torch.Tensor,
    by_row: Softmax,
    by_column: Softmax | None,
    reference: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """The sum of both softmaxes, their masses by row and column. Overwrites `tile`."""
    if by_column is None:
        tile.sub_(_finite(by_row.lse)[:, None]).exp_().mul_(by_row.grad[:, None])
        return tile, tile.sum(dim=1), None
    if reference is None:
        columns = (tile - _finite(by_column.lse)).exp_().mul_(by_column.grad)
        tile.sub_(_finite(by_row.lse)[:, None]).exp_().mul_(by_row.grad[:, None])
        row_mass, col_mass = tile.sum(dim=1), columns.sum(dim=0)
        return tile.add_(columns), row_mass, col_mass
    of_row = (reference - _finite(by_row.lse)).exp_().mul_(by_row.grad)
    of_column = (reference - _finite(by_column.lse)).exp_().mul_(by_column.grad)
    tile.sub_(reference).exp_()
    row_mass, col_mass = of_row * tile.sum(dim=1), of_column * tile.sum(dim=0)
    return tile.mul_(of_row[:, None] + of_column), row_mass, col_mass


def _finite(lse: torch.Tensor) -> torch.Tensor:
    """0 for -inf: where there was nothing to sum, all logits are -inf themselves."""
    return lse.masked_fill(lse == NEG_INF, 0.0)


def blocks(length: int, step: int) -> Iterator[slice]:
    """Slices of at most `step` that cover `length`."""
    for start in range(0, length, step):
        yield slice(start, min(start + step, length))


def budget(x: torch.Tensor) -> int:
    """The most elements of a temporary on the device of `x`."""
    return CPU_TILE_ELEMENTS if x.is_cpu else GPU_TILE_ELEMENTS


def tile_shape(rows: int, width: int, most: int) -> tuple[int, int]:
    """(rows, columns) of a tile: square if there are rows enough, for the fewest feature casts.

    Neither the tile nor its (rows, width) and (columns, width) blocks of features have more
    elements than `most`, down to one row and one column.
    """
    longest = max(1, most // width)
    tile_rows = min(rows, longest, math.isqrt(most))
    return tile_rows, min(longest, most // tile_rows)
