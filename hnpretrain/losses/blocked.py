"""The contrastive loss and its gradients in tiles, forward and backward, in plain torch.

One similarity matrix s * I @ T^t serves both directions. On rank r:

1. T is all-gathered (the only tower that travels; scope `global` also gathers the negatives).
2. s * I_r @ T_all^t is formed tile by tile, the positives in it hidden. Each tile is folded
   into the log-sum-exps of its rows (complete on this rank: it holds every column) and of its
   columns (this rank's part).
3. Negatives are further columns of the rows: b x K logits for scope `own`, tiles for the others.
4. All-reduces of B floats (maximum, then sum) complete the column log-sum-exps; one of four floats
   the loss and the metrics. The ranks' positives, b floats each, are gathered.
5. Backward forms each tile once more: the gradient of the logits is softmax over rows plus softmax
   over columns, less the identity twice. dI and the gradient of s are complete on this rank; dT is
   summed over the ranks and each keeps its share (for `global` likewise dN).

Why the positives stay out of the tiles: with p_i the softmax of the positive, the loss of a row is
-log p_i and its gradient p_i - 1. A good model at s = 100 has 1 - p_i = 1e-4 and less, of which
float32 keeps few digits if p_i is formed first. From the log-sum-exp of the others, o_i, both come
with full relative precision: softplus(o_i - s I_i.T_i) and -sigmoid(o_i - s I_i.T_i).

Between forward and backward only features and log-sum-exp vectors are kept. No b x B buffer exists:
the largest temporary is a tile. Arithmetic is float32 (float64 if an input is), whatever the inputs
and autocast say.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch.nn.functional import softplus

from hnpretrain.losses.distributed import Ranks

CPU_TILE_ELEMENTS = 2**20
"""The most elements of a tile, and of a block of features cast for it: 4 MiB in float32.

The fastest of 2**16, 2**18, ... 2**24 for B=4096, D=512, K=0 on one core, by 10 to 40 %: larger
tiles leave the cache between the passes over them, smaller ones make thin matrix products.
"""

GPU_TILE_ELEMENTS = 2**24
"""The same elsewhere: 64 MiB in float32, so that kernels outlast their launches. Not tuned."""

NEG_INF = float("-inf")


def accumulation_dtype(*tensors: torch.Tensor | None) -> torch.dtype:
    """float64 if any of the tensors is float64, else float32."""
    wide = any(x is not None and x.dtype == torch.float64 for x in tensors)
    return torch.float64 if wide else torch.float32


class BlockedContrastive(torch.autograd.Function):
    """(image, text, negative, mask, scale, scope, ranks) -> (total, sums).

    Shapes and dtypes are checked by the caller and equal on all ranks: image (b, D), text (b, D),
    negative (b, K, D) with K > 0 and mask (b, K), or both None, scale 0-dim.

    `total` is the loss of the global batch, 0-dim, in the accumulation dtype, equal on all ranks.
    `sums` is float64 (3,), not differentiable: over all valid negatives of the global batch the
    sum of I.T - I.N, the number with I.T > I.N, and their number.

    The gradients are W times those of the global loss with respect to this rank's inputs; those of
    `scale` are W times this rank's part. The mean over the ranks is then exact.
    """

    @staticmethod
    def forward(
        ctx: Any,
        image: torch.Tensor,
        text: torch.Tensor,
        negative: torch.Tensor | None,
        mask: torch.Tensor | None,
        scale: torch.Tensor,
        scope: str,
        ranks: Ranks,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        b, D = image.shape
        dtype = accumulation_dtype(image, text, negative)
        with torch.autocast(image.device.type, enabled=False):
            s = scale.to(dtype)
            text_all = ranks.gather(text)
            # Log-sum-exps over everything but the positives.
            row_lse = torch.full((b,), NEG_INF, dtype=dtype, device=image.device)
            col_lse = row_lse.new_full((text_all.shape[0],), NEG_INF)
            sums = torch.zeros(4, dtype=torch.float64, device=image.device)

            positive_b, own_bK = _own_similarities(image, text, negative, dtype)
            if negative is not None and mask is not None:
                margin_bK = (positive_b[:, None] - own_bK).masked_fill_(~mask, 0.0)
                # The zero margin of a masked negative counts as wrong, that is, not at all.
                correct = (margin_bK > 0).sum()
                sums[1:] = torch.stack([margin_bK.double().sum(), correct, mask.sum()])
                if scope == "own":
                    row_lse = (s * own_bK).masked_fill_(~mask, NEG_INF).logsumexp(dim=1)
                else:
                    negative, mask = negative.flatten(0, 1), mask.flatten()
                    if scope == "global":
                        negative, mask = ranks.gather(negative), ranks.gather(mask)

            first_positive = ranks.rank * b  # the column of this rank's first positive
            tile_rows, tile_columns = _tile_shape(b, D, _budget(image))
            for rows in _blocks(b, tile_rows):
                scaled_rows = s * image[rows].to(dtype)
                for columns in _blocks(text_all.shape[0], tile_columns):
                    tile = scaled_rows @ text_all[columns].to(dtype).T
                    _hide_positives(tile, first_positive + rows.start - columns.start)
                    row_lse[rows] = torch.logaddexp(row_lse[rows], tile.logsumexp(dim=1))
                    col_lse[columns] = torch.logaddexp(col_lse[columns], tile.logsumexp(dim=0))
                    del tile  # before the next is made: one tile alive at a time
                if negative is None or mask is None or scope == "own":
                    continue
                for columns in _blocks(negative.shape[0], tile_columns):
                    hidden = ~mask[columns]
                    tile = scaled_rows @ _visible(negative[columns], hidden, dtype).T
                    tile.masked_fill_(hidden, NEG_INF)
                    row_lse[rows] = torch.logaddexp(row_lse[rows], tile.logsumexp(dim=1))
                    del tile

            col_lse = ranks.logsumexp(col_lse)
            logit_b = s * positive_b
            row_gap = row_lse - logit_b
            col_gap = col_lse[first_positive : first_positive + b] - logit_b
            # log(1 + exp(gap)); past the default threshold of 20 it would be gap, 2e-9 too little.
            losses_b = softplus(row_gap, threshold=40) + softplus(col_gap, threshold=40)
            sums[0] = losses_b.double().sum()
            ranks.sum(sums)
            total = (sums[0] / (2 * ranks.size * b)).to(dtype)

            doubt_b = torch.sigmoid(row_gap) + torch.sigmoid(col_gap)  # 2 - 2 softmaxes of i
            positive_all = ranks.gather(positive_b)
            row_lse = torch.logaddexp(row_lse, logit_b)
            col_lse = torch.logaddexp(col_lse, s * positive_all)

        ctx.save_for_backward(
            image, text_all, negative, mask, scale, positive_all, row_lse, col_lse, doubt_b
        )
        ctx.scope, ctx.ranks, ctx.dtype = scope, ranks, dtype
        metrics = sums[1:].clone()
        ctx.mark_non_differentiable(metrics)
        return total, metrics

    @staticmethod
    def backward(ctx: Any, total_grad: torch.Tensor, _: torch.Tensor) -> tuple[Any, ...]:
        if torch.is_grad_enabled():
            # create_graph=True. torch's once_differentiable would let this pass where total_grad
            # needs no gradient, and a gradient penalty would then silently be a constant.
            raise RuntimeError(
                "the contrastive loss has no second derivatives: call backward without "
                "create_graph=True"
            )
        image, text_all, negative, mask, scale, *vectors = ctx.saved_tensors
        positive_all, row_lse, col_lse, doubt_b = vectors
        need_image, need_text, need_negative, _, need_scale = ctx.needs_input_grad[:5]
        scope, ranks, dtype = ctx.scope, ctx.ranks, ctx.dtype
        b, D = image.shape
        with torch.autocast(image.device.type, enabled=False):
            s = scale.to(dtype)
            # d total / d cosine = weight * (row softmax + column softmax), on the diagonal
            # -weight * doubt; weight = W * s / 2B is left out of the sums and applied at the end.
            weight = total_grad.to(dtype) * s / (2 * b)
            image_sum = torch.zeros(b, D, dtype=dtype, device=image.device)
            text_sum = torch.zeros_like(text_all, dtype=dtype) if need_text else None
            row_mass, col_mass = torch.zeros_like(row_lse), torch.zeros_like(col_lse)
            negative_grad = negative_sum = None

            if scope == "own" and negative is not None:
                negative_grad = torch.empty_like(negative) if need_negative else None
                for rows in _blocks(b, _own_rows(negative, _budget(negative))):
                    hidden = ~mask[rows]
                    image_rows = image[rows].to(dtype)
                    negative_rows = _visible(negative[rows], hidden, dtype)
                    logits = s * (image_rows[:, None] * negative_rows).sum(-1)
                    softmax = (logits - row_lse[rows, None]).exp_().masked_fill_(hidden, 0.0)
                    row_mass[rows] = softmax.sum(1)
                    image_sum[rows] = (softmax[..., None] * negative_rows).sum(1)
                    if negative_grad is not None:
                        negative_grad[rows] = weight * softmax[..., None] * image_rows[:, None]
            elif need_negative:
                negative_sum = torch.zeros_like(negative, dtype=dtype)

            first_positive = ranks.rank * b  # the column of this rank's first positive
            tile_rows, tile_columns = _tile_shape(b, D, _budget(image))
            for rows in _blocks(b, tile_rows):
                image_rows = image[rows].to(dtype)
                scaled_rows = s * image_rows
                for columns in _blocks(text_all.shape[0], tile_columns):
                    text_columns = text_all[columns].to(dtype)
                    tile = scaled_rows @ text_columns.T
                    _hide_positives(tile, first_positive + rows.start - columns.start)
                    softmaxes = (tile - row_lse[rows, None]).exp_()
                    row_mass[rows] += softmaxes.sum(1)
                    tile.sub_(col_lse[columns]).exp_()
                    col_mass[columns] += tile.sum(0)
                    softmaxes += tile
                    image_sum[rows].addmm_(softmaxes, text_columns)
                    if text_sum is not None:
                        text_sum[columns].addmm_(softmaxes.T, image_rows)
                    del tile, softmaxes
                if negative is None or scope == "own":
                    continue
                for columns in _blocks(negative.shape[0], tile_columns):
                    hidden = ~mask[columns]
                    negative_columns = _visible(negative[columns], hidden, dtype)
                    tile = scaled_rows @ negative_columns.T
                    softmax = tile.sub_(row_lse[rows, None]).exp_().masked_fill_(hidden, 0.0)
                    row_mass[rows] += softmax.sum(1)
                    image_sum[rows].addmm_(softmax, negative_columns)
                    if negative_sum is not None:
                        negative_sum[columns].addmm_(softmax.T, image_rows)
                    del tile, softmax

            image_grad = text_grad = scale_grad = None
            if need_scale:
                # sum over logits s * I.X of softmax * (I.X - positive), from sums that exist. The
                # positives are weighed by the very softmaxes of the sums, not by `doubt`: equal on
                # paper, but near a solved batch the difference is small against its two parts.
                inner = (image.to(dtype) * image_sum).sum(dtype=torch.float64)
                inner -= torch.dot(positive_all[first_positive:][:b].double(), row_mass.double())
                inner -= torch.dot(positive_all.double(), col_mass.double())
                scale_grad = (total_grad * inner / (2 * b)).to(scale.dtype)

            text = text_all[first_positive : first_positive + b]
            image_sum.addcmul_(text.to(dtype), doubt_b[:, None], value=-1)
            if need_image:
                image_grad = image_sum.mul_(weight).to(image.dtype)
            if text_sum is not None:
                text_sum = ranks.reduce_scatter(text_sum)
                text_sum.addcmul_(image.to(dtype), doubt_b[:, None], value=-1)
                text_grad = text_sum.mul_(weight).to(text_all.dtype)
            if negative_sum is not None:
                if scope == "global":
                    negative_sum = ranks.reduce_scatter(negative_sum)
                negative_grad = negative_sum.mul_(weight).to(negative.dtype).view(b, -1, D)
        return image_grad, text_grad, negative_grad, None, scale_grad, None, None


def _hide_positives(tile: torch.Tensor, diagonal: int) -> None:
    """Puts -inf on the tile's `diagonal`-th diagonal, where the tile has one."""
    if -tile.shape[0] < diagonal < tile.shape[1]:
        tile.diagonal(diagonal).fill_(NEG_INF)


def _own_similarities(
    image: torch.Tensor, text: torch.Tensor, negative: torch.Tensor | None, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """I_i.T_i as (b,) and I_i.N_ik as (b, K), with K = 0 without negatives.

    Both come from one sum over one tensor: products summed in the same order, so that a negative
    equal to its positive is an exact tie.
    """
    candidates = text[:, None] if negative is None else negative
    K = 0 if negative is None else negative.shape[1]
    both = torch.empty(image.shape[0], 1 + K, dtype=dtype, device=image.device)
    for rows in _blocks(image.shape[0], _own_rows(candidates, _budget(image))):
        stacked = text[rows, None].to(dtype)
        if negative is not None:
            stacked = torch.cat([stacked, negative[rows].to(dtype)], dim=1)
        both[rows] = (image[rows, None].to(dtype) * stacked).sum(-1)
    return both[:, 0], both[:, 1:]


def _visible(negative: torch.Tensor, hidden: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Negatives in the accumulation dtype, hidden ones as zeros.

    A softmax of zero alone would not keep a hidden negative out: 0 * NaN is NaN, and a padded slot
    may hold anything.
    """
    return negative.to(dtype).masked_fill(hidden[..., None], 0.0)


def _blocks(length: int, step: int) -> Iterator[slice]:
    for start in range(0, length, step):
        yield slice(start, min(start + step, length))


def _budget(x: torch.Tensor) -> int:
    return CPU_TILE_ELEMENTS if x.device.type == "cpu" else GPU_TILE_ELEMENTS


def _tile_shape(rows: int, width: int, budget: int) -> tuple[int, int]:
    """(rows, columns) of a tile: square if there are rows enough, for the fewest feature casts.

    Neither the tile nor its (rows, width) and (columns, width) blocks of features have more
    elements than `budget`, down to one row and one column.
    """
    longest = max(1, budget // width)
    tile_rows = min(rows, longest, math.isqrt(budget))
    return tile_rows, min(longest, budget // tile_rows)


def _own_rows(candidates: torch.Tensor, budget: int) -> int:
    """How many rows of (b, K, D) negatives, and their positives, make one block of products."""
    _, K, D = candidates.shape
    return max(1, budget // ((1 + K) * D))
