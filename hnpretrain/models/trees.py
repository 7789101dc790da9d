"""open_clip's causal text towers over token trees: equal features from a fraction of the tokens."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

import torch
from open_clip.transformer import ResidualAttentionBlock
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from hnpretrain.data.trees import TokenTrees

Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""(queries, keys, values), each (R, heads, length, width of a head) -> what the queries see."""


class TreeEncoder:
    """Encodes token trees with a tower's own weights and modules.

    The tower's blocks run as they are but for attention, which sees a token's ancestors alone. Of
    the last block only the end tokens are computed, since nothing else is read, unless the features
    of all words are asked for.

    Args:
        tower: open_clip's CLIP or TextTransformer, for which `texts.obstacle_to_trees` finds none.
        attention: of ATTENTIONS.
    """

    def __init__(self, tower: Any, attention: str = "sdpa") -> None:
        self._tower = tower
        self._attention = ATTENTIONS[attention]

    def __call__(self, trees: TokenTrees) -> torch.Tensor:
        """(B, C, D) features of unit norm; of texts that there are not, those of the first."""
        *blocks, last = self._tower.transformer.resblocks
        x_RLD = self._run_all(blocks, trees)
        attend = attend_by(visible(trees.until_RL, trees.query_RQ))
        ends_RQD = self._run(last, x_RLD, attend, trees.query_RQ)
        return self._pool(self._project(ends_RQD), trees)

    def with_words(self, trees: TokenTrees) -> tuple[torch.Tensor, torch.Tensor]:
        """Features as above, and (B, C, W, D), those of each text's words, not of unit norm.

        Args:
            trees: with `word_BCW`.
        """
        x_RLD = self._project(self._run_all(self._tower.transformer.resblocks, trees))
        features_BCD = self._pool(_columns(x_RLD, trees.query_RQ), trees)
        return features_BCD, x_RLD.flatten(0, 1)[trees.word_BCW]

    def _run_all(self, blocks: Iterable[nn.Module], trees: TokenTrees) -> torch.Tensor:
        """What the blocks make of the tokens."""
        tower = self._tower
        dtype = tower.transformer.get_cast_dtype()
        x_RLD = tower.token_embedding(trees.token_RL).to(dtype)
        x_RLD = x_RLD + tower.positional_embedding[trees.position_RL].to(dtype)
        attend = self._attention(trees.until_RL)
        for block in blocks:
            x_RLD = self._run(block, x_RLD, attend)
        return x_RLD

    def _project(self, x: torch.Tensor) -> torch.Tensor:
        x = self._tower.ln_final(x)
        projection = self._tower.text_projection
        if projection is None:
            return x
        return projection(x) if isinstance(projection, nn.Module) else x @ projection

    @staticmethod
    def _pool(ends_RQD: torch.Tensor, trees: TokenTrees) -> torch.Tensor:
        return F.normalize(ends_RQD.flatten(0, 1)[trees.place_BC], dim=-1)

    def _run(self, *arguments: Any) -> torch.Tensor:
        if self._tower.transformer.grad_checkpointing and torch.is_grad_enabled():
            return checkpoint(_block, *arguments, use_reentrant=False)
        return _block(*arguments)


def visible(until_RL: torch.Tensor, query_RQ: torch.Tensor | None = None) -> torch.Tensor:
    """(R, Q, L) bool, True where query q may look at column k: k <= q < until[k].

    Args:
        query_RQ: the columns that look; None for all (Q = L).
    """
    column_L = torch.arange(until_RL.shape[1], device=until_RL.device)
    query_RQ1 = (column_L[None] if query_RQ is None else query_RQ)[..., None]
    return (column_L <= query_RQ1) & (query_RQ1 < until_RL[:, None])


def attend_by(mask_RQL: torch.Tensor) -> Attend:
    """torch's attention, where the mask is True."""
    mask_R1QL = mask_RQL[:, None]
    return lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=mask_R1QL)


def _sdpa(until_RL: torch.Tensor) -> Attend:
    return attend_by(visible(until_RL))


def _flex(until_RL: torch.Tensor) -> Attend:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    def seen(row: torch.Tensor, head: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> Any:
        del head
        return (k <= q) & (q < until_RL[row, k])

    R, L = until_RL.shape
    block_mask = create_block_mask(seen, R, None, L, L, device=until_RL.device.type)
    attention = _compiled(flex_attention) if until_RL.is_cuda else flex_attention
    return lambda q, k, v: attention(q, k, v, block_mask=block_mask)


@functools.cache
def _compiled(function: Callable) -> Any:
    return torch.compile(function, dynamic=True)


ATTENTIONS: dict[str, Callable[[torch.Tensor], Attend]] = {"sdpa": _sdpa, "flex": _flex}
"""From `until` to attention in whole rows: torch's own with a mask, or FlexAttention, which leaves
out blocks that nobody sees, and learns on a GPU alone. `hnpretrain bench text` times both."""


def _block(
    block: ResidualAttentionBlock,
    x_RLD: torch.Tensor,
    attend: Attend,
    query_RQ: torch.Tensor | None = None,
) -> torch.Tensor:
    """What the block makes of the columns in `query`, or of all (Q = L)."""
    attention: nn.MultiheadAttention = block.attn
    weight, bias = attention.in_proj_weight, attention.in_proj_bias
    normed = block.ln_1(x_RLD)
    # Looked up at each call: ZeRO 3 puts a linear into F that keeps no whole weights for backward.
    if query_RQ is None:
        q, k, v = F.linear(normed, weight, bias).chunk(3, dim=-1)
    else:
        D = x_RLD.shape[2]
        q = F.linear(_columns(normed, query_RQ), weight[:D], bias[:D])
        k, v = F.linear(normed, weight[D:], bias[D:]).chunk(2, dim=-1)
        x_RLD = _columns(x_RLD, query_RQ)
    q, k, v = (y.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2) for y in (q, k, v))
    attended = attend(q, k, v).transpose(1, 2).flatten(2)
    x_RLD = x_RLD + block.ls_1(attention.out_proj(attended))
    return x_RLD + block.ls_2(block.mlp(block.ln_2(x_RLD)))


def _columns(x_RLD: torch.Tensor, query_RQ: torch.Tensor) -> torch.Tensor:
    return x_RLD.gather(1, query_RQ[..., None].expand(-1, -1, x_RLD.shape[2]))
