"""The loss straight from its formula, dense and in float64. For tests.

`oracle_loss` is the formula, for one process and plain autograd. `Oracle` is the engine that holds
each pair of blocks whole, for looking into what another engine does.
"""

from __future__ import annotations

import torch

from hnpretrain.losses.engines import NEG_INF, Block, Softmax, Spread, existing


def oracle_loss(
    image: torch.Tensor,
    text: torch.Tensor,
    negative: torch.Tensor | None,
    mask: torch.Tensor | None,
    logit_scale: torch.Tensor | float,
    scope: str = "own",
    ranks: int = 1,
) -> torch.Tensor:
    """The contrastive loss of a whole global batch (docs/loss.md, "Formula").

    Args:
        image, text: (B, D), the ranks' batches one after the other.
        negative: (B, K, D), or None.
        mask: (B, K) bool, True where a negative is valid; None if all are.
        logit_scale: the multiplier s.
        scope: whose negatives an image is scored against: own, local or global.
        ranks: into how many equal, consecutive parts the batch is split; matters to `local` only.

    Returns:
        A 0-dim float64 tensor, differentiable in every floating-point input.
    """
    B = image.shape[0]
    image_BD, text_BD = image.double(), text.double()
    s = torch.as_tensor(logit_scale).to(image_BD)
    logits_BB = s * image_BD @ text_BD.T
    positive_B = logits_BB.diagonal()

    columns = [logits_BB]
    if negative is not None and negative.shape[1] > 0:
        K = negative.shape[1]
        valid_BK = torch.ones_like(negative[..., 0], dtype=torch.bool) if mask is None else mask
        # A masked negative is replaced, not multiplied by zero: whatever it holds, NaN included,
        # must not matter.
        negative_BKD = negative.double().masked_fill(~valid_BK[..., None], 0.0)
        logits_BM = s * image_BD @ negative_BKD.flatten(0, 1).T
        row_B = torch.arange(B, device=image.device)
        owner_M = row_B.repeat_interleave(K)
        if scope == "own":
            seen_BM = row_B[:, None] == owner_M
        elif scope == "local":
            per_rank = B // ranks
            seen_BM = (row_B // per_rank)[:, None] == owner_M // per_rank
        else:
            seen_BM = torch.ones_like(logits_BM, dtype=torch.bool)
        columns.append(logits_BM.masked_fill(~(seen_BM & valid_BK.flatten()), float("-inf")))

    image_to_text = torch.cat(columns, dim=1).logsumexp(dim=1) - positive_B
    text_to_image = logits_BB.T.logsumexp(dim=1) - positive_B
    return (image_to_text.sum() + text_to_image.sum()) / (2 * B)


class Oracle:
    """See Engine; holds (r, c) matrices in float64."""

    def forward(
        self, rows: torch.Tensor, block: Block, s: torch.Tensor, both: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """See Engine."""
        logits = _logits(rows, block, s)
        over_rows = logits.logsumexp(dim=0).to(s.dtype) if both else None
        return logits.logsumexp(dim=1).to(s.dtype), over_rows

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
        logits = _logits(rows, block, s)
        by_row = (logits - row_softmax.lse.double()[:, None]).exp().nan_to_num(0.0)
        weights = by_row * row_softmax.grad.double()[:, None]
        row_mass, col_mass = weights.sum(dim=1).to(s.dtype), None
        if col_softmax is not None:
            by_column = (logits - col_softmax.lse.double()).exp().nan_to_num(0.0)
            by_column *= col_softmax.grad.double()
            col_mass = by_column.sum(dim=0).to(s.dtype)
            weights += by_column
        if column_sums is not None:
            column_sums.copy_(weights.T @ rows.double())
        columns = existing(block.features, block.hidden, torch.float64)
        return Spread(
            rows=(weights @ columns).to(s.dtype),
            row_mass=row_mass,
            col_mass=col_mass,
        )


def _logits(rows: torch.Tensor, block: Block, s: torch.Tensor) -> torch.Tensor:
    columns = existing(block.features, block.hidden, torch.float64)
    logits = s.double() * rows.double() @ columns.T
    if block.hidden is not None:
        logits = logits.masked_fill(block.hidden, NEG_INF)
    return logits.fill_diagonal_(NEG_INF) if block.paired else logits
