"""The sigmoid form: every pair of an image and a caption is a yes-or-no question of its own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.nn.functional import softplus

from hnpretrain.losses.blocked import blocks, budget, columns_of, logits_of, tile_shape
from hnpretrain.losses.engines import Block, accumulation_dtype
from hnpretrain.losses.exchange import again, homeward, part_if, visiting
from hnpretrain.losses.features import Features
from hnpretrain.losses.gaps import Machinery, inner_product, refuse_second_derivatives


def sigmoid_contrast(features: Features) -> torch.Tensor:
    """This rank's mean over its images; the mean over ranks is, with logits z = s cos + bias,

        1/B sum_i [ softplus(-z_ii) + sum_{j != i} softplus(z_ij) + sum_k softplus(z_i,N_ik) ]

    SigLIP (Zhai et al., "Sigmoid Loss for Language Image Pre-Training", ICCV 2023), with an image's
    own negatives as further pairs that do not belong together. Without a bias it is 0.

    Returns:
        0-dim, in the accumulation dtype.
    """
    bias = features.s.new_zeros(()) if features.bias is None else features.bias.to(features.dtype)
    positive = features.s * features.positive + bias
    others = PairsApart.apply(
        features.image, features.text, features.scale, bias, features.machinery
    )
    losses = softplus(-positive, threshold=40) + others
    own = softplus(positive[:, None] + features.s * features.margins, threshold=40)
    losses = losses + own.masked_fill(~features.valid, 0.0).sum(dim=1)
    return losses.sum(dtype=torch.float64).div(len(losses)).to(features.dtype)


class PairsApart(torch.autograd.Function):
    """(image (b, D), text (b, D), scale (), bias (), machinery) -> (b,): sums over j != i of
    softplus(s I_i.T_j + bias), over the texts of all ranks, in tiles of plain torch.
    """

    @staticmethod
    def forward(
        ctx: Any,
        image: torch.Tensor,
        text: torch.Tensor,
        scale: torch.Tensor,
        bias: torch.Tensor,
        machinery: Machinery,
    ) -> torch.Tensor:
        dtype = accumulation_dtype(image, text)
        with torch.autocast(image.device.type, enabled=False):
            s = scale.to(dtype)
            sums = s.new_zeros(image.shape[0])
            seen = []
            for owners, (texts,) in visiting(machinery.ranks, machinery.comm, [text]):
                seen.append(texts)
                block = Block(texts, paired=owners == machinery.ranks.only())
                for i, _, tile, _ in _tiles(image, block, s, bias):
                    sums[i] += softplus(tile, threshold=40).sum(dim=1)
        kept = seen if machinery.comm == "gather" else [text]
        ctx.save_for_backward(image, scale, bias, *kept)
        ctx.machinery = machinery
        return sums

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
        refuse_second_derivatives()
        image, scale, bias, *kept = ctx.saved_tensors
        need_image, need_text, need_scale, need_bias, _ = ctx.needs_input_grad
        ranks, comm = ctx.machinery.ranks, ctx.machinery.comm
        with torch.autocast(image.device.type, enabled=False):
            s = scale.to(grad.dtype)
            images = torch.zeros_like(image, dtype=s.dtype)
            home = homeward(ranks, comm, "sum")
            mass = torch.zeros((), dtype=torch.float64, device=s.device)
            for owners, (texts,) in again(ranks, comm, kept, []):
                block = Block(texts, paired=owners == ranks.only())
                with part_if(need_text, home, owners, texts, s.dtype) as column_sums:
                    for i, j, tile, columns in _tiles(image, block, s, bias):
                        weights = tile.sigmoid_().mul_(grad[i, None])
                        mass += weights.sum(dtype=torch.float64)
                        images[i].addmm_(weights, columns)
                        if column_sums is not None:
                            column_sums[j].addmm_(weights.T, image[i].to(s.dtype))
            inner = inner_product(image, images)
            return (
                images.mul(s).to(image.dtype) if need_image else None,
                home.result().mul_(s).to(kept[0].dtype) if need_text else None,
                inner.to(scale.dtype) if need_scale else None,
                mass.to(bias.dtype) if need_bias else None,
                None,
            )


def _tiles(
    image: torch.Tensor, block: Block, s: torch.Tensor, bias: torch.Tensor
) -> Iterator[tuple[slice, slice, torch.Tensor, torch.Tensor]]:
    """(rows, columns, logits, the columns' features) of every tile; pairs have -inf."""
    tile_rows, tile_columns = tile_shape(image.shape[0], image.shape[1], budget(image))
    for i in blocks(image.shape[0], tile_rows):
        scaled = s * image[i].to(s.dtype)
        for j in blocks(block.features.shape[0], tile_columns):
            columns = columns_of(block, j, s.dtype)
            yield i, j, logits_of(scaled, columns, block, i, j).add_(bias), columns
