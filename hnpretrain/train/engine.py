"""The two towers as one module, under DeepSpeed."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import open_clip
import torch
from torch import nn

from hnpretrain.data.samples import Batch
from hnpretrain.losses import HardNegativeContrastiveLoss, TokenFeatures
from hnpretrain.models.parts import PartsRecorder, word_mask
from hnpretrain.train.distributed import Place
from hnpretrain.train.optimizer import build_optimizer
from hnpretrain.train.settings import TrainSettings

if TYPE_CHECKING:  # at run time it is imported once the environment is set, see distributed.py
    from deepspeed import DeepSpeedEngine

# CLIP clamps s at 100: beyond, the softmax saturates and training turns unstable.
MAX_LOGIT_SCALE = 100.0
# Gradients that are reduced together, at most.
_MAX_BUCKET = 50_000_000


@dataclass(frozen=True)
class Features:
    """What the loss needs of one rank's batch; all features are of unit norm.

    Attributes:
        image_BD, text_BD: images and captions.
        negative_BKD: negatives, zeros where masked; None if K = 0.
        logit_scale: the multiplier s.
        logit_bias: added to all logits, if the model has one.
        parts: features of patches and words, if the loss needs them.
    """

    image_BD: torch.Tensor
    text_BD: torch.Tensor
    negative_BKD: torch.Tensor | None
    logit_scale: torch.Tensor
    logit_bias: torch.Tensor | None
    parts: TokenFeatures | None


class Towers(nn.Module):
    """Encodes a batch in one forward call, which is what DeepSpeed's hooks need.

    Args:
        model: an open_clip model.
        autocast: dtype that the towers compute in; None for the weights' own.
        parts: whether to give the features of patches and words, too.
    """

    def __init__(
        self, model: open_clip.CLIP, autocast: torch.dtype | None, parts: bool = False
    ) -> None:
        super().__init__()
        self.model = model
        self._autocast = autocast
        self._recorder = PartsRecorder(model) if parts else None

    def forward(self, batch: Batch) -> Features:
        mask_BK = batch.negative_mask_BK
        with self._precision(batch.image_BCHW.device.type):
            image_BD = self.model.encode_image(batch.image_BCHW, normalize=True)
            # Captions and negatives go through the text tower together; masked rows are not
            # encoded at all.
            tokens_NL = torch.cat([batch.text_BL, batch.negative_BKL[mask_BK]])
            text_ND = self.model.encode_text(tokens_NL, normalize=True)
            parts = None
            if self._recorder is not None:
                parts = _parts(self._recorder, tokens_NL, mask_BK)
        size = len(batch.text_BL)
        negative_BKD = None
        if mask_BK.shape[1]:
            negative_BKD = text_ND.new_zeros(*mask_BK.shape, text_ND.shape[1])
            negative_BKD[mask_BK] = text_ND[size:]
        scale = self.model.logit_scale.exp().squeeze()
        bias = self.model.logit_bias.squeeze() if self.model.logit_bias is not None else None
        return Features(image_BD, text_ND[:size], negative_BKD, scale, bias, parts)

    def _precision(self, device: str) -> contextlib.AbstractContextManager:
        if self._autocast is None:
            return contextlib.nullcontext()
        return torch.autocast(device, self._autocast)


def _parts(
    recorder: PartsRecorder, tokens_NL: torch.Tensor, mask_BK: torch.Tensor
) -> TokenFeatures:
    """The parts of a batch whose captions come first in `tokens_NL`, then its valid negatives."""
    words_NLD, mask_NL = recorder.words(), word_mask(tokens_NL)
    # Every caption, and the negatives that there are.
    there_BC = torch.cat([mask_BK.new_ones(len(mask_BK), 1), mask_BK], dim=1)
    row_BC = there_BC.new_zeros(there_BC.shape, dtype=torch.long)
    row_BC[:, 0] = torch.arange(len(mask_BK), device=mask_BK.device)
    row_BC[:, 1:][mask_BK] = torch.arange(len(mask_BK), len(tokens_NL), device=mask_BK.device)
    return TokenFeatures(
        recorder.patches(), words_NLD[row_BC], mask_NL[row_BC] & there_BC[..., None]
    )


def build_engine(
    model: open_clip.CLIP,
    loss: HardNegativeContrastiveLoss,
    settings: TrainSettings,
    place: Place,
) -> DeepSpeedEngine:
    """Wraps the model, its optimizer and ZeRO into a DeepSpeed engine on this rank's device.

    Raises:
        ValueError: the loss needs what the model has not.
    """
    import deepspeed

    if loss.form == "sigmoid" and model.logit_bias is None:
        raise ValueError(
            f"loss.objective={settings.loss.objective} needs a model with a logit bias: a SigLIP "
            "architecture, or init_logit_bias in model.config (SigLIP begins with -10)"
        )
    autocast = torch.bfloat16 if settings.precision == "bf16" else None
    towers = Towers(model, autocast, parts=loss.needs_parts()).to(place.device)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    engine, _, _, _ = deepspeed.initialize(
        model=towers,
        optimizer=build_optimizer(model, settings.optimizer),
        dist_init_required=False,
        config={
            "train_batch_size": settings.batch_size,
            "train_micro_batch_size_per_gpu": settings.batch_size // place.world_size,
            "gradient_clipping": settings.optimizer.max_grad_norm,
            "zero_optimization": {
                "stage": settings.zero_stage,
                # ZeRO allocates a whole bucket, of 5e8 gradients if not told otherwise.
                "reduce_bucket_size": min(trained, _MAX_BUCKET),
            },
            # Our own log line says more, and DeepSpeed's timer waits for the device twice a step.
            "steps_per_print": 2**31,
            "timers": {"throughput": {"enabled": False}},
        },
    )
    return engine


@torch.no_grad()
def optimizer_step(engine: DeepSpeedEngine) -> torch.Tensor:
    """Steps after a backward, then brings the logit scale back into its range.

    Returns:
        The global norm of the gradients, before clipping; on the device.
    """
    if engine.zero_optimization():
        engine.step()
        norm = torch.as_tensor(engine.get_global_grad_norm(), device=engine.device)
    else:
        # DeepSpeed keeps no norm without ZeRO; the gradients are averaged and whole here.
        gradients = [p.grad for p in engine.module.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        engine.step()
    _clamp_logit_scale(engine)
    return norm


def _clamp_logit_scale(engine: DeepSpeedEngine) -> None:
    from deepspeed.utils import safe_set_full_fp32_param

    parameter = engine.module.model.logit_scale
    parameter.clamp_(max=math.log(MAX_LOGIT_SCALE))
    if engine.zero_optimization() and parameter.requires_grad:
        # ZeRO steps on a copy of its own, which would undo the clamp.
        safe_set_full_fp32_param(parameter, parameter.float())
