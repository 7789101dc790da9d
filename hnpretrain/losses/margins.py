"""How far each caption's own negatives are behind it, without (b, K, D) temporaries."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from hnpretrain.losses.blocked import blocks, budget
from hnpretrain.losses.engines import accumulation_dtype, existing


class Margins(torch.autograd.Function):
    """(image (b, D), text (b, D), negative (b, K, D), mask (b, K)) -> I_i.N_ik - I_i.T_i (b, K).

    In the accumulation dtype; 0 where masked.
    """

    @staticmethod
    def forward(
        ctx: Any,
        image: torch.Tensor,
        text: torch.Tensor,
        negative: torch.Tensor,
        mask: torch.Tensor,
    ) -> torch.Tensor:
        ctx.save_for_backward(image, text, negative, mask)
        return margins_of(image, text, negative, mask)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        image, text, negative, mask = ctx.saved_tensors
        need_image, need_text, need_negative, _ = ctx.needs_input_grad
        image_sum = torch.zeros_like(image, dtype=grad.dtype)
        text_sum = torch.zeros_like(text, dtype=grad.dtype)
        negative_grad = spread_margins(
            grad, image, text, negative, mask, image_sum, text_sum, need_negative
        )
        return (
            image_sum.to(image.dtype) if need_image else None,
            text_sum.to(text.dtype) if need_text else None,
            negative_grad,
            None,
        )


def margins_of(
    image: torch.Tensor, text: torch.Tensor, negative: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    """See Margins.

    Both products of a difference come from one sum over one tensor, with terms in the same order,
    so that a negative equal to its caption is an exact 0.
    """
    dtype = accumulation_dtype(image, text, negative)
    margins = torch.empty(mask.shape, dtype=dtype, device=image.device)
    for rows in _row_blocks(negative):
        stacked = torch.cat([text[rows, None].to(dtype), negative[rows].to(dtype)], dim=1)
        both = (image[rows, None].to(dtype) * stacked).sum(-1)
        margins[rows] = both[:, 1:] - both[:, :1]
    return margins.masked_fill_(~mask, 0.0)


def spread_margins(
    grad: torch.Tensor,
    image: torch.Tensor,
    text: torch.Tensor,
    negative: torch.Tensor,
    mask: torch.Tensor,
    image_sum: torch.Tensor | None,
    text_sum: torch.Tensor | None,
    need_negative: bool,
) -> torch.Tensor | None:
    """Adds the gradients of margins to those of images and texts; returns that of the negatives.

    Args:
        grad: (b, K), of the margins.
        image, text, negative, mask: as in forward.
        image_sum, text_sum: (b, D) in the dtype of `grad`, to be added to; or None.
        need_negative: whether negatives want one.
    """
    grad = grad.masked_fill(~mask, 0.0)
    whole = grad.sum(dim=1, keepdim=True)
    negative_grad = torch.empty_like(negative) if need_negative else None
    for rows in _row_blocks(negative):
        each = grad[rows, :, None]
        images = image[rows].to(grad.dtype)
        if image_sum is not None:
            there = existing(negative[rows], ~mask[rows], grad.dtype)
            image_sum[rows] += (each * there).sum(dim=1)
            image_sum[rows].addcmul_(text[rows].to(grad.dtype), whole[rows], value=-1)
        if text_sum is not None:
            text_sum[rows].addcmul_(images, whole[rows], value=-1)
        if negative_grad is not None:
            negative_grad[rows] = (each * images[:, None]).to(negative.dtype)
    return negative_grad


def _row_blocks(negative: torch.Tensor) -> Iterator[slice]:
    """Rows of which the features of captions and negatives together fit a temporary."""
    b, K, D = negative.shape
    return blocks(b, max(1, budget(negative) // ((1 + K) * D)))
