"""How far each pair is ahead of all others: the loss's large parts, as autograd functions.

A *gap* of row i is log sum_j exp(x_ij) - x_ii over all j but i: the log-odds against the pair. The
cross entropy of the row is softplus(gap), its gradient sigmoid(gap). Why the pairs stay out of the
sums: with p_i the softmax of the pair, the loss of a row is -log p_i and its gradient p_i - 1. A
good model at s = 100 has 1 - p_i = 1e-4 and less, of which float32 keeps few digits if p_i is
formed first. From the gap, both come with full relative precision. And gaps of further columns join
by one logaddexp of vectors.

What is between forward and backward: features, log-sum-exps and pairs' similarities, O(b D) on a
ring, O(B D) where blocks are gathered. Arithmetic is float32 (float64 if an input is), whatever the
inputs and autocast say. On several ranks, gradients are those of the sum of all ranks' functions of
their own gaps; docs/loss.md says how that fits data-parallel means.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from hnpretrain.losses.blocked import blocks, budget
from hnpretrain.losses.distributed import Ranks
from hnpretrain.losses.engines import NEG_INF, Block, Engine, Softmax, accumulation_dtype
from hnpretrain.losses.exchange import again, homeward, part_if, visiting
from hnpretrain.losses.margins import margins_of, spread_margins

# Stands for -inf where nothing is against a pair: exp and sigmoid of it are 0, and gradients of
# sums with it are no NaN.
NOTHING = -1e30


@dataclass(frozen=True)
class Machinery:
    """What gaps are computed with: an engine, the ranks, and how blocks travel between them.

    Attributes:
        engine: computes tiles.
        ranks: those that share the batch.
        comm: of exchange.COMMS.
    """

    engine: Engine
    ranks: Ranks
    comm: str


class PairGaps(torch.autograd.Function):
    """(image (b, D), text (b, D), negative (b, K, D), mask (b, K), scale (), machinery)
    -> image gaps (b,), text gaps (b,), margins (b, K).

    With x = s * I @ T^t over the batches of all ranks, from one pass over x: the gaps of each image
    against all texts but its own, and of each text against all images but its own. Negatives stay
    at home: their margins are those of `Margins`, here because then one pair of gradient buffers
    serves both. Negative and mask may be None, which is K = 0.
    """

    @staticmethod
    def forward(
        ctx: Any,
        image: torch.Tensor,
        text: torch.Tensor,
        negative: torch.Tensor | None,
        mask: torch.Tensor | None,
        scale: torch.Tensor,
        machinery: Machinery,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        dtype = accumulation_dtype(image, text, negative)
        ranks, comm = machinery.ranks, machinery.comm
        with torch.autocast(image.device.type, enabled=False):
            s = scale.to(dtype)
            image_lse = s.new_full((image.shape[0],), NEG_INF)
            text_lses = homeward(ranks, comm, "logsumexp")
            seen = []
            for owners, (texts,) in visiting(ranks, comm, [text]):
                seen.append(texts)
                block = Block(texts, paired=owners == ranks.only())
                over_texts, over_images = machinery.engine.forward(image, block, s, both=True)
                assert over_images is not None
                image_lse = torch.logaddexp(image_lse, over_texts)
                with text_lses.part(owners, over_images, dtype) as part:
                    part.copy_(over_images)
            text_lse = text_lses.result()
            positive = _pairs(image, text).to(dtype)
            if negative is None or mask is None:
                margins = s.new_zeros(image.shape[0], 0)
            else:
                margins = margins_of(image, text, negative, mask)
        kept = seen if comm == "gather" else [text]
        vectors = (positive, image_lse, text_lse)
        ctx.save_for_backward(image, text, negative, mask, scale, *vectors, *kept)
        ctx.set_materialize_grads(False)  # margins that nobody uses cost nothing
        ctx.machinery = machinery
        logit = s * positive
        image_gap = (image_lse - logit).clamp_(min=NOTHING)
        return image_gap, (text_lse - logit).clamp_(min=NOTHING), margins

    @staticmethod
    def backward(
        ctx: Any,
        image_grad: torch.Tensor,
        text_grad: torch.Tensor,
        margin_grad: torch.Tensor | None,
    ) -> tuple[Any, ...]:
        refuse_second_derivatives()
        image, text, negative, mask, scale, *vectors = ctx.saved_tensors
        positive, image_lse, text_lse, *kept = vectors
        need_image, need_text, need_negative, _, need_scale, _ = ctx.needs_input_grad
        engine, ranks, comm = ctx.machinery.engine, ctx.machinery.ranks, ctx.machinery.comm
        with torch.autocast(image.device.type, enabled=False):
            s = scale.to(image_lse.dtype)
            image_softmax = Softmax(image_lse, image_grad)
            images = None
            texts_home = homeward(ranks, comm, "sum")
            inner = torch.zeros((), dtype=torch.float64, device=s.device)
            mine = torch.stack([text_lse, text_grad, positive], dim=1)
            for owners, (texts, theirs) in again(ranks, comm, kept, [mine]):
                lse, grad, pairs = theirs.unbind(dim=1)
                block = Block(texts, paired=owners == ranks.only())
                with part_if(need_text, texts_home, owners, texts, s.dtype) as column_sums:
                    spread = engine.backward(
                        image, block, s, image_softmax, Softmax(lse, grad), column_sums
                    )
                images = spread.rows if images is None else images.add_(spread.rows)
                assert spread.col_mass is not None
                # d gap / d s = sum over j of softmax * (cosine - that of the pair), with the very
                # softmaxes of the sums: 1 in their place is equal on paper, but near a solved
                # batch the difference is small against its two parts.
                inner -= _dot(positive, spread.row_mass) + _dot(pairs, spread.col_mass)
                del spread
            assert images is not None
            scale_out = image_out = text_out = negative_out = None
            if need_scale:
                scale_out = (inner + inner_product(image, images)).to(scale.dtype)
            against = (image_grad + text_grad)[:, None]
            if need_image:
                image_out = images.addcmul_(text.to(s.dtype), against, value=-1).mul_(s)
            if need_text:
                text_out = texts_home.result()
                text_out.addcmul_(image.to(s.dtype), against, value=-1).mul_(s)
            if margin_grad is not None and negative is not None:
                negative_out = spread_margins(
                    margin_grad, image, text, negative, mask, image_out, text_out, need_negative
                )
            return (
                None if image_out is None else image_out.to(image.dtype),
                None if text_out is None else text_out.to(text.dtype),
                negative_out,
                None,
                scale_out,
                None,
            )


class RowGaps(torch.autograd.Function):
    """(rows (b, D), partner (b, D), columns (c, D), hidden (c,), scale (), machinery) -> gaps (b,).

    log sum_j exp(s rows_i . columns_j) - s rows_i . partner_i, over the columns of all ranks that
    are not hidden. With the columns at home, give machinery of one rank.
    """

    @staticmethod
    def forward(
        ctx: Any,
        rows: torch.Tensor,
        partner: torch.Tensor,
        columns: torch.Tensor,
        hidden: torch.Tensor,
        scale: torch.Tensor,
        machinery: Machinery,
    ) -> torch.Tensor:
        dtype = accumulation_dtype(rows, partner, columns)
        with torch.autocast(rows.device.type, enabled=False):
            s = scale.to(dtype)
            lse = s.new_full((rows.shape[0],), NEG_INF)
            seen = []
            for _, (features, absent) in visiting(
                machinery.ranks, machinery.comm, [columns, hidden]
            ):
                seen.append(features)
                part, _ = machinery.engine.forward(rows, Block(features, absent), s, both=False)
                lse = torch.logaddexp(lse, part)
            positive = _pairs(rows, partner).to(dtype)
        kept = seen if machinery.comm == "gather" else [columns]
        ctx.save_for_backward(rows, partner, hidden, scale, positive, lse, *kept)
        ctx.machinery = machinery
        return (lse - s * positive).clamp_(min=NOTHING)

    @staticmethod
    def backward(ctx: Any, gap_grad: torch.Tensor) -> tuple[Any, ...]:
        refuse_second_derivatives()
        rows, partner, hidden, scale, positive, lse, *kept = ctx.saved_tensors
        need_rows, need_partner, need_columns, _, need_scale, _ = ctx.needs_input_grad
        engine, ranks, comm = ctx.machinery.engine, ctx.machinery.ranks, ctx.machinery.comm
        with torch.autocast(rows.device.type, enabled=False):
            s = scale.to(lse.dtype)
            softmax = Softmax(lse, gap_grad)
            sums = None
            home = homeward(ranks, comm, "sum")
            inner = torch.zeros((), dtype=torch.float64, device=s.device)
            for owners, (features, absent) in again(ranks, comm, kept, [hidden]):
                block = Block(features, absent)
                with part_if(need_columns, home, owners, features, s.dtype) as column_sums:
                    spread = engine.backward(rows, block, s, softmax, None, column_sums)
                sums = spread.rows if sums is None else sums.add_(spread.rows)
                inner -= _dot(positive, spread.row_mass)
            assert sums is not None
            inner += inner_product(rows, sums)
            against = gap_grad[:, None]
            sums.addcmul_(partner.to(s.dtype), against, value=-1)
            return (
                sums.mul(s).to(rows.dtype) if need_rows else None,
                (-s * against * rows.to(s.dtype)).to(partner.dtype) if need_partner else None,
                home.result().mul_(s).to(kept[0].dtype) if need_columns else None,
                None,
                inner.to(scale.dtype) if need_scale else None,
                None,
            )


def _pairs(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """x_i . y_i as (b,), in the accumulation dtype, without temporaries of (b, D)."""
    dtype = accumulation_dtype(x, y)
    b, D = x.shape
    products = torch.empty(b, dtype=dtype, device=x.device)
    for rows in blocks(b, max(1, budget(x) // D)):
        products[rows] = (x[rows].to(dtype) * y[rows].to(dtype)).sum(dim=1)
    return products


def inner_product(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The sum over all elements of x * y, in float64."""
    return _pairs(x, y).sum(dtype=torch.float64)


def _dot(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    return torch.dot(one.double(), other.double())


def refuse_second_derivatives() -> None:
    """Raises RuntimeError in a backward pass that would itself be differentiated."""
    if torch.is_grad_enabled():
        # create_graph=True. torch's once_differentiable would let this pass where what arrives
        # needs no gradient, and a gradient penalty would then silently be a constant.
        raise RuntimeError(
            "the contrastive loss has no second derivatives: call backward without "
            "create_graph=True"
        )
