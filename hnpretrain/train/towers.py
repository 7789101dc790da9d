"""The two towers as one module, as DeepSpeed wraps it."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, NamedTuple

import open_clip
import torch
from torch import nn

from hnpretrain.data.samples import Batch
from hnpretrain.data.trees import TokenTrees
from hnpretrain.losses import HardNegativeContrastiveLoss, LossOutput, TokenFeatures
from hnpretrain.models.parts import PatchRecorder, require_patches
from hnpretrain.models.texts import ChosenLayout, TextEncoder, choose_layout

if TYPE_CHECKING:  # the settings of evaluation stand beside code that needs this module
    from hnpretrain.train.settings import TrainSettings


class Features(NamedTuple):
    """What the loss needs of one rank's batch; features of images and texts are of unit norm.

    A flat tuple, since DeepSpeed looks for the tensors of a forward pass in tuples, lists and dicts
    alone, and hooks its work before a backward pass to those it finds.

    Attributes:
        image_BD, text_BD: images and captions.
        negative_BKD: negatives; where masked, the caption's feature. None if K = 0.
        negative_mask_BK: True where there is a negative; None with `negative_BKD`.
        patch_BPD: features of patches, if the loss needs them; these three come together.
        word_BCWD: features of the words of each caption and its negatives.
        word_mask_BCW: True where there is a word.
        logit_scale: the multiplier s.
        logit_bias: added to all logits, if the model has one.
    """

    image_BD: torch.Tensor
    text_BD: torch.Tensor
    negative_BKD: torch.Tensor | None
    negative_mask_BK: torch.Tensor | None
    patch_BPD: torch.Tensor | None
    word_BCWD: torch.Tensor | None
    word_mask_BCW: torch.Tensor | None
    logit_scale: torch.Tensor
    logit_bias: torch.Tensor | None

    def given_to(self, loss: HardNegativeContrastiveLoss) -> LossOutput:
        """The loss of these features; collective."""
        parts = None
        if self.patch_BPD is not None:
            assert self.word_BCWD is not None
            assert self.word_mask_BCW is not None
            parts = TokenFeatures(self.patch_BPD, self.word_BCWD, self.word_mask_BCW)
        return loss(
            self.image_BD,
            self.text_BD,
            self.negative_BKD,
            self.negative_mask_BK,
            self.logit_scale,
            self.logit_bias,
            parts,
        )

    def finite(self) -> torch.Tensor:
        """0-dim bool: whether all of them are."""
        found = [x.detach().isfinite().all() for x in self if x is not None]
        return torch.stack(found).all()


def lay_out_for(
    model: open_clip.CLIP, loss: HardNegativeContrastiveLoss, settings: TrainSettings
) -> ChosenLayout:
    """How texts are laid out for a model and a loss, which must go together.

    Raises:
        ValueError: the loss needs what the model has not, or `model.text_layout` does not do.
    """
    if loss.form == "sigmoid" and model.logit_bias is None:
        raise ValueError(
            f"loss.objective={settings.loss.objective} needs a model with a logit bias: a SigLIP "
            "architecture, or init_logit_bias in model.config (SigLIP begins with -10)"
        )
    if loss.needs_parts():
        require_patches(model)
    return choose_layout(model, settings.model.text_layout, loss.needs_parts())


class Towers(nn.Module):
    """Encodes a batch in one forward call, which is what DeepSpeed's hooks need.

    Args:
        model: an open_clip model.
        autocast: dtype that the towers compute in; None for the weights' own.
        parts: whether to give the features of patches and words, too. Texts must then be token
            trees with the places of words.
    """

    def __init__(
        self, model: open_clip.CLIP, autocast: torch.dtype | None, parts: bool = False
    ) -> None:
        super().__init__()
        self.model = model
        self._autocast = autocast
        self._texts = TextEncoder(model)
        self._patches = PatchRecorder(model) if parts else None

    def forward(self, batch: Batch) -> Features:
        patch_BPD = word_BCWD = word_mask_BCW = None
        with self._precision(batch.image_BCHW.device.type):
            image_BD = self.model.encode_image(batch.image_BCHW, normalize=True)
            if self._patches is None:
                text_BCD = self._texts(batch.texts)
            else:
                assert isinstance(batch.texts, TokenTrees)
                text_BCD, word_BCWD = self._texts.with_words(batch.texts)
                patch_BPD = self._patches.patches()
                word_mask_BCW = batch.texts.word_mask_BCW
        with_negatives = text_BCD.shape[1] > 1
        bias = self.model.logit_bias
        return Features(
            image_BD,
            text_BCD[:, 0],
            text_BCD[:, 1:] if with_negatives else None,
            batch.negative_mask_BK if with_negatives else None,
            patch_BPD,
            word_BCWD,
            word_mask_BCW,
            self.model.logit_scale.exp().squeeze(),
            None if bias is None else bias.squeeze(),
        )

    def _precision(self, device: str) -> contextlib.AbstractContextManager:
        if self._autocast is None:
            return contextlib.nullcontext()
        return torch.autocast(device, self._autocast)
