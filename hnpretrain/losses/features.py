"""What a step's loss is computed from, on this rank: the input of every term."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch

from hnpretrain.losses.engines import accumulation_dtype
from hnpretrain.losses.gaps import Machinery, PairGaps, RowGaps
from hnpretrain.losses.margins import Margins


@dataclass(frozen=True)
class TokenFeatures:
    """What the towers say of parts of their inputs, for terms that look closer than one vector.

    Attributes:
        patches: (b, P, D), the image's patches in the common space.
        tokens: (b, 1 + K, L, D), the words of the caption and its negatives, likewise.
        token_mask: (b, 1 + K, L) bool, True at words and the end token, not at start and padding.
    """

    patches: torch.Tensor
    tokens: torch.Tensor
    token_mask: torch.Tensor


@dataclass
class Features:
    """Checked inputs of the loss.

    Attributes:
        image: (b, D).
        text: (b, D), caption i belongs to image i.
        negative: (b, K, D), K > 0; or None.
        mask: (b, K) bool, True where a negative is valid; None with `negative`.
        scale: 0-dim, the multiplier s.
        bias: 0-dim, added to all logits; or None.
        parts: for terms that need them; or None.
        machinery: how tiles are computed and blocks travel.
        form: softmax or sigmoid.
        shared_visit: whether images and captions both meet all ranks' negatives, which then come
            once for both.
    """

    image: torch.Tensor
    text: torch.Tensor
    negative: torch.Tensor | None
    mask: torch.Tensor | None
    scale: torch.Tensor
    bias: torch.Tensor | None
    parts: TokenFeatures | None
    machinery: Machinery
    form: str
    shared_visit: bool

    @property
    def dtype(self) -> torch.dtype:
        """The accumulation dtype."""
        return accumulation_dtype(self.image, self.text, self.negative)

    @cached_property
    def s(self) -> torch.Tensor:
        """The multiplier in the accumulation dtype."""
        return self.scale.to(self.dtype)

    @cached_property
    def gaps(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Image gaps (b,), text gaps (b,) and margins (b, K): see PairGaps."""
        return PairGaps.apply(
            self.image, self.text, self.negative, self.mask, self.scale, self.machinery
        )

    @cached_property
    def margins(self) -> torch.Tensor:
        """I_i.N_ik - I_i.T_i as (b, K), 0 where masked; K = 0 without negatives."""
        if self.form == "softmax":
            return self.gaps[2]
        if self.negative is None or self.mask is None:
            return self.image.new_zeros(self.image.shape[0], 0, dtype=self.dtype)
        return Margins.apply(self.image, self.text, self.negative, self.mask)

    @cached_property
    def gaps_to_negatives(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Of images and of captions, each (b,), against all ranks' negatives, of which there are
        some: from one visit of them. See RowGaps.
        """
        assert self.negative is not None
        assert self.mask is not None
        gaps = RowGaps.apply(
            torch.cat([self.image, self.text]),
            torch.cat([self.text, self.image]),
            self.negative.flatten(0, 1),
            ~self.mask.flatten(),
            self.scale,
            self.machinery,
        )
        of_images, of_captions = gaps.chunk(2)
        return of_images, of_captions

    @cached_property
    def valid(self) -> torch.Tensor:
        """The mask, (b, K); K = 0 without negatives."""
        if self.mask is None:
            return self.image.new_zeros(self.image.shape[0], 0, dtype=torch.bool)
        return self.mask

    @cached_property
    def positive(self) -> torch.Tensor:
        """I_i.T_i as (b,)."""
        return torch.linalg.vecdot(self.image.to(self.dtype), self.text.to(self.dtype))
