"""Token trees: the texts of a batch with all that they begin alike stored once.

A causal text tower gives a prefix the same states, whatever follows it. So texts are sorted by
their tokens, and of each only what follows the prefix that it shares with the one before is kept:
the nodes of a trie, in the order of a walk that visits parents before children. The walk is cut
into rows of about equal length; a row's first text is whole. A caption shares with its negatives
what comes before the changed word, all texts of a row share the start token, and many more.

In such an order the descendants of a node are the tokens right after it. One number a token, the
column where its subtree ends, therefore is the attention mask: column k is visible to column q if
k <= q < until[k], that is, to itself and its descendants.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

MULTIPLE = 8
"""Rows are so many tokens long, or a multiple: what fast attention kernels want of a mask."""


@dataclass(frozen=True)
class TokenTrees:
    """Texts in R rows of L tokens; B * C texts are read at Q tokens a row.

    Attributes:
        token_RL: int64 ids; 0 after a row's last token.
        position_RL: int64, how many tokens of its text come before each.
        until_RL: int64, the column where each token's subtree ends.
        query_RQ: int64, the columns of end tokens; 0 where a row has fewer.
        place_BC: int64, where text c of sample b ends, among the R * Q of `query_RQ`. Texts that
            there are not point where the sample's first text does.
        word_BCW: int64, the tokens of each text, start token first, among the R * L; or None if
            not asked for. Past a text's end they point anywhere.
        word_mask_BCW: True from after the start token to the end token; or None with `word_BCW`.
    """

    token_RL: torch.Tensor
    position_RL: torch.Tensor
    until_RL: torch.Tensor
    query_RQ: torch.Tensor
    place_BC: torch.Tensor
    word_BCW: torch.Tensor | None = None
    word_mask_BCW: torch.Tensor | None = None

    @property
    def tokens(self) -> int:
        """How many tokens the tower computes, padding included."""
        return self.token_RL.numel()

    def to(self, device: torch.device) -> TokenTrees:
        """The same on a device; does not wait for copies from pinned memory."""
        return self._each(lambda x: x.to(device, non_blocking=True))

    def pin_memory(self) -> TokenTrees:
        """The same in memory that CUDA copies from without waiting."""
        return self._each(lambda x: x.pin_memory())

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> TokenTrees:
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        changed = {name: change(x) for name, x in fields.items() if x is not None}
        return dataclasses.replace(self, **changed)


def plant(
    token_BCL: np.ndarray,
    length_BC: np.ndarray,
    mask_BC: np.ndarray,
    row_length: int,
    words: bool = False,
) -> TokenTrees:
    """Token trees of the texts that there are.

    Args:
        token_BCL: ids, C texts a sample; what stands past a text's length does not matter.
        length_BC: tokens of each text, the end token included.
        mask_BC: True where there is a text; always in column 0.
        row_length: the most tokens a row, rounded up to MULTIPLE; 0 gives each text a row of its
            own and shares nothing.
        words: whether to tell where each text's tokens are.

    Raises:
        ValueError: a text is longer than a row.
    """
    row_length = _rounded_up(row_length)
    length_N = length_BC[mask_BC]
    longest = int(length_N.max())
    if 0 < row_length < longest:
        raise ValueError(f"a text of {longest} tokens does not fit into a row of {row_length}")
    depth_W = np.arange(longest)
    token_NW = np.where(depth_W < length_N[:, None], token_BCL[mask_BC][:, :longest], -1)
    if row_length:
        order_N = np.lexsort(token_NW.T[::-1])
        token_NW, length_N = token_NW[order_N], length_N[order_N]
        shared_N = _shared_with_the_one_before(token_NW, length_N)
        starts, L = _cut(length_N, shared_N, row_length)
    else:
        order_N = np.arange(len(token_NW))
        starts, L = order_N, _rounded_up(longest)
        shared_N = np.zeros_like(length_N)
    R = len(starts)

    first_N = np.zeros(len(length_N), dtype=bool)
    first_N[starts] = True
    row_N = np.cumsum(first_N) - 1
    shared_N = np.where(first_N, 0, shared_N)
    new_N = length_N - shared_N
    before_N = np.cumsum(new_N) - new_N
    # Among all R * L tokens, where each text's own begin.
    start_N = row_N * L + before_N - before_N[starts][row_N]

    own_NW = (depth_W >= shared_N[:, None]) & (depth_W < length_N[:, None])
    at_NW = (start_N - shared_N)[:, None] + depth_W
    # A token's subtree ends where the next text begins that shares less than the token's depth.
    ends_NW = np.where(depth_W >= shared_N[:, None], start_N[:, None], R * L)
    until_NW = np.full_like(ends_NW, R * L)
    until_NW[:-1] = np.minimum.accumulate(ends_NW[:0:-1])[::-1]

    at = at_NW[own_NW]
    tokens, positions = np.zeros(R * L, dtype=np.int64), np.zeros(R * L, dtype=np.int64)
    tokens[at] = token_NW[own_NW]
    positions[at] = np.broadcast_to(depth_W, own_NW.shape)[own_NW]
    # Padding sees itself at least: a softmax over nothing is NaN.
    until = np.arange(1, R * L + 1)
    until[at] = until_NW[own_NW]
    until_RL = until.reshape(R, L) - np.arange(R)[:, None] * L

    # Equal texts have one end token.
    new_texts_N = np.cumsum(new_N > 0)
    query_N = new_texts_N - new_texts_N[starts][row_N]
    Q = int(query_N.max()) + 1
    query_RQ = np.zeros((R, Q), dtype=np.int64)
    query_RQ[row_N, query_N] = start_N + new_N - 1 - row_N * L
    place_BC = _by_text(row_N * Q + query_N, order_N, mask_BC)

    word_BCW = word_mask_BCW = None
    if words:
        path_NW = np.maximum.accumulate(np.where(own_NW, at_NW, 0))
        word_BCW = torch.from_numpy(_by_text(path_NW, order_N, mask_BC))
        inside = (depth_W > 0) & (depth_W < length_BC[..., None]) & mask_BC[..., None]
        word_mask_BCW = torch.from_numpy(inside)
    return TokenTrees(
        torch.from_numpy(tokens.reshape(R, L)),
        torch.from_numpy(positions.reshape(R, L)),
        torch.from_numpy(np.minimum(until_RL, L)),
        torch.from_numpy(query_RQ),
        torch.from_numpy(place_BC),
        word_BCW,
        word_mask_BCW,
    )


def _rounded_up(length: int) -> int:
    return -(-length // MULTIPLE) * MULTIPLE


def _shared_with_the_one_before(token_NW: np.ndarray, length_N: np.ndarray) -> np.ndarray:
    """How many tokens each text begins with as the text before it; all, if they are equal."""
    differ = token_NW[1:] != token_NW[:-1]
    shared = np.where(differ.any(axis=1), differ.argmax(axis=1), length_N[1:])
    return np.concatenate([[0], shared])


def _cut(length_N: np.ndarray, shared_N: np.ndarray, most: int) -> tuple[np.ndarray, int]:
    """(the first text of each row, the length of rows): the fewest rows, then the shortest.

    Texts fill a row in order until one does not fit. None is longer than `most`, a MULTIPLE.
    """
    stored_N = np.cumsum(length_N - shared_N)

    def cut(row_length: int) -> list[int]:
        # The first text of a row is whole, so of what is stored a little more fits.
        room_N = stored_N + row_length - length_N
        following = np.searchsorted(stored_N, room_N, side="right").tolist()
        starts = [0]
        while (start := following[starts[-1]]) < len(length_N):
            starts.append(start)
        return starts

    fewest = cut(most)
    least = max(-(-int(stored_N[-1]) // len(fewest)), int(length_N.max()))
    for row_length in range(_rounded_up(least), most, MULTIPLE):
        starts = cut(row_length)
        if len(starts) <= len(fewest):
            return np.array(starts), row_length
    return np.array(fewest), most


def _by_text(x_N: np.ndarray, order_N: np.ndarray, mask_BC: np.ndarray) -> np.ndarray:
    """(B, C, ...): of sorted texts, what belongs to each; of none, what belongs to the first."""
    values = np.empty_like(x_N)
    values[order_N] = x_N
    result = np.zeros((*mask_BC.shape, *x_N.shape[1:]), dtype=x_N.dtype)
    result[mask_BC] = values
    absent = np.broadcast_to(result[:, :1], result.shape)
    missing = ~mask_BC.reshape(*mask_BC.shape, *(1,) * (x_N.ndim - 1))
    return np.where(missing, absent, result)
