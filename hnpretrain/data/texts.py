"""How a batch's texts are laid out for a text tower: as token trees, or as padded rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from hnpretrain.data.trees import TokenTrees, plant

ROW_LENGTH = 256
"""The most tokens a row of token trees.

Longer rows break fewer trees, and spend more on attention, which sees whole rows.
"""


@dataclass(frozen=True)
class TextRows:
    """Texts one a row.

    Attributes:
        token_NL: int64 ids of the texts that there are.
        place_BC: int64, the row of text c of sample b. Texts that there are not point where the
            sample's first text does.
    """

    token_NL: torch.Tensor
    place_BC: torch.Tensor

    @property
    def tokens(self) -> int:
        """How many tokens the tower computes, padding included."""
        return self.token_NL.numel()

    def to(self, device: torch.device) -> TextRows:
        """The same on a device; does not wait for copies from pinned memory."""
        return TextRows(
            self.token_NL.to(device, non_blocking=True), self.place_BC.to(device, non_blocking=True)
        )

    def pin_memory(self) -> TextRows:
        """The same in memory that CUDA copies from without waiting."""
        return TextRows(self.token_NL.pin_memory(), self.place_BC.pin_memory())


Texts = TokenTrees | TextRows


@dataclass(frozen=True)
class TextLayout:
    """What a tower reads, and what it may be spared.

    Attributes:
        kind: "trees"; "trimmed", rows as long as the longest text; or "padded", rows as the
            tokenizer gives them.
        causal: whether the tower's states depend on what came before alone, and it is read at the
            end token: texts then stop there.
        end_id: of a causal tower, the end token; None is the highest id of a text.
        pad_id: of another tower, what stands after a text.
        words: whether the places of all tokens are told too; of token trees alone.
    """

    kind: str
    causal: bool = True
    end_id: int | None = None
    pad_id: int = 0
    words: bool = False

    def lay_out(self, token_BCL: torch.Tensor, mask_BC: torch.Tensor) -> Texts:
        """The texts that there are.

        Args:
            token_BCL: int64 ids, C texts a sample, as a tokenizer gives them.
            mask_BC: bool, True where there is a text; always in column 0.
        """
        tokens, mask = token_BCL.numpy(), mask_BC.numpy()
        if self.causal and self.kind != "padded":
            longest_row = max(ROW_LENGTH, tokens.shape[2]) if self.kind == "trees" else 0
            return plant(tokens, self._lengths(tokens), mask, longest_row, self.words)
        token_NL = token_BCL[mask_BC]
        if self.kind == "trimmed":
            longest = int(self._lengths(token_NL.numpy()).max())
            token_NL = token_NL[:, :longest].contiguous()
        place_BC = torch.zeros(mask_BC.shape, dtype=torch.int64)
        place_BC[mask_BC] = torch.arange(len(token_NL))
        return TextRows(token_NL, torch.where(mask_BC, place_BC, place_BC[:, :1]))

    def _lengths(self, tokens: np.ndarray) -> np.ndarray:
        """Of texts (..., L), the end token included; towers read the first, if there are more."""
        if not self.causal:
            there = tokens != self.pad_id
            return np.where(there, np.arange(1, tokens.shape[-1] + 1), 0).max(axis=-1)
        if self.end_id is None:
            return tokens.argmax(axis=-1) + 1
        # open_clip reads the first token where there is no end token.
        return (tokens == self.end_id).argmax(axis=-1) + 1
