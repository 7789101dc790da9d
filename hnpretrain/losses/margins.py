"""How far each caption's own negatives are behind it: differentiable, without (b, K, D) buffers."""

from __future__ import annotations

from typing import Any

import torch

from hnpretrain.losses.blocked import blocks, budget
from hnpretrain.losses.engines import accumulation_dtype, existing


class Margins(torch.autograd.Function):
    """(image (b, D), text (b, D), negative (b, K, D), mask (b, K)) -> I_i.N_ik - I_i.T_i (b, K).

    In the accumulation dtype; 0 where masked. Both products of a difference come from one sum over
    one tensor, with terms in the same order, so that a negative equal to its caption is an exact 0.
    The gradient of the negatives is the only result or temporary of b x K x D elements.
    """

    @staticmethod
    def forward(
        ctx: Any,
        image: torch.Tensor,
        text: torch.Tensor,
        negative: torch.Tensor,
        mask: torch.Tensor,
    ) -> torch.Tensor:
        dtype = accumulation_dtype(image, text, negative)
        margins = torch.empty(mask.shape, dtype=dtype, device=image.device)
        for rows in _row_blocks(negative):
            stacked = torch.cat([text[rows, None].to(dtype), negative[rows].to(dtype)], dim=1)
            both = (image[rows, None].to(dtype) * stacked).sum(-1)
            margins[rows] = both[:, 1:] - both[:, :1]
        ctx.save_for_backward(image, text, negative, mask)
        return margins.masked_fill_(~mask, 0.0)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        image, text, negative, mask = ctx.saved_tensors
        need_image, need_text, need_negative, _ = ctx.needs_input_grad
        grad = grad.masked_fill(~mask, 0.0)
        whole = grad.sum(dim=1, keepdim=True)
        image_grad = torch.empty_like(image) if need_image else None
        negative_grad = torch.empty_like(negative) if need_negative else None
        for rows in _row_blocks(negative):
            each = grad[rows, :, None]
            if image_grad is not None:
                present = existing(negative[rows], ~mask[rows], grad.dtype)
                spread = (each * present).sum(dim=1)
                spread -= whole[rows] * text[rows].to(grad.dtype)
                image_grad[rows] = spread.to(image.dtype)
            if negative_grad is not None:
                negative_grad[rows] = (each * image[rows, None].to(grad.dtype)).to(negative.dtype)
        text_grad = (-whole * image.to(grad.dtype)).to(text.dtype) if need_text else None
        return image_grad, text_grad, negative_grad, None


def _row_blocks(negative: torch.Tensor) -> Any:
    """Rows of which the features of captions and negatives together fit a temporary."""
    b, K, D = negative.shape
    return blocks(b, max(1, budget(negative) // ((1 + K) * D)))
