"""Floating point operations of a step's towers, counted without computing them.

Counted are matrix products, convolutions and attention, two operations a multiply-add, of both
towers' forward and backward passes: what the model takes of a batch, once. What gradient caching
and gradient checkpointing compute again is no progress and is not counted, nor are the loss, the
optimizer, norms and activation functions, which are a few percent. Of attention all pairs are
counted that its kernels see, masked ones too; of texts the tokens that the tower computes, padding
too. A locked tower has no backward pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import open_clip
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from hnpretrain.data.samples import Batch
from hnpretrain.data.texts import Texts
from hnpretrain.models.build import one_line
from hnpretrain.train.towers import Towers
from hnpretrain.train.twins import quiet, twin_batch, twin_towers

# Where tensors have shapes alone; as a mode, also those that a tower makes itself.
_META = torch.device("meta")
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Flops:
    """What the towers take, forward and backward.

    Attributes:
        per_image: of an image.
        per_token: of a token that the text tower computes, in rows as long as those it was counted
            with: their attention is in it.
    """

    per_image: float
    per_token: float

    def of(self, images: int, tokens: int) -> float:
        """What so many images and tokens of texts take."""
        return images * self.per_image + tokens * self.per_token


class FlopsCounter:
    """Counts what a model's towers take.

    Args:
        model: whole, as it is before DeepSpeed cuts its weights; it is not changed.
        parts: whether the loss needs features of patches and words.
    """

    def __init__(self, model: open_clip.CLIP, parts: bool) -> None:
        self._parts = parts
        self._flops: Flops | None = None
        self.failure = ""  # why nothing can be counted
        self._is_told = False
        try:
            self._towers = twin_towers(model, None, parts, _META, _META).train()
            if _checkpoints(model):
                self._towers.model.set_grad_checkpointing(False)
        except Exception as error:
            self._fail(error)

    def of_texts(self, texts: Texts, negative_mask_BK: torch.Tensor) -> Flops | None:
        """What the towers take, by the shapes of a batch's texts; None if it cannot be counted."""
        if not self.failure and self._flops is None:
            try:
                self._flops = self._count(texts, negative_mask_BK)
            except Exception as error:
                self._fail(error)
        return self._flops

    def of_step(self, batches: Sequence[Batch]) -> float:
        """What the micro-batches of a step take; 0 if it cannot be counted.

        The first step's texts tell what those of all steps take a token.
        """
        flops = self.of_texts(batches[0].texts, batches[0].negative_mask_BK)
        if flops is None:
            if not self._is_told:
                print(f"no MFU: {self.failure}", flush=True)
                self._is_told = True
            return 0.0
        images = sum(len(batch.image_BCHW) for batch in batches)
        return flops.of(images, sum(batch.texts.tokens for batch in batches))

    def _fail(self, error: Exception) -> None:
        # Of any kind: a tower may ask for values, and there are none.
        what = f"{type(error).__name__}: {one_line(error)[:200]}"
        self.failure = f"FLOPs cannot be counted for this model ({what})"

    def _count(self, texts: Texts, negative_mask_BK: torch.Tensor) -> Flops:
        def total(images: int) -> int:
            batch = twin_batch(towers.model, images, texts, negative_mask_BK, device, mode)
            with mode:
                return _total(towers, batch)

        towers, device = self._towers, _META
        mode: AbstractContextManager = _META
        try:
            one = total(1)
        except Exception:
            # Some towers look at their texts' values. Here only what comes of weights has none,
            # which takes several times longer.
            device, mode = _CPU, FakeTensorMode(allow_non_fake_inputs=True)
            towers = twin_towers(towers.model, None, self._parts, device, mode).train()
            one = total(1)
        # Images and texts do not meet in the towers, so one image more shows what an image takes.
        an_image = total(2) - one
        return Flops(an_image, (one - an_image) / texts.tokens)


def _total(towers: Towers, batch: Batch) -> int:
    # Attention in its products: fused kernels are not all known to the counter, and compute some
    # again in their backward pass.
    attention = sdpa_kernel(SDPBackend.MATH)
    with quiet(), FlopCounterMode(display=False) as counter, attention:
        features = towers(batch)
        sum(x.float().sum() for x in features if x is not None and x.requires_grad).backward()
    return counter.get_total_flops()


def _checkpoints(model: open_clip.CLIP) -> bool:
    return any(getattr(module, "grad_checkpointing", False) for module in model.modules())
