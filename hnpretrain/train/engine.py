"""The towers and their optimizer under DeepSpeed."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import open_clip
import torch

from hnpretrain.losses import HardNegativeContrastiveLoss
from hnpretrain.train.distributed import Place
from hnpretrain.train.optimizer import build_optimizer
from hnpretrain.train.settings import TrainSettings
from hnpretrain.train.towers import Towers

if TYPE_CHECKING:  # at run time it is imported once the environment is set, see distributed.py
    from deepspeed import DeepSpeedEngine

# CLIP clamps s at 100: beyond, the softmax saturates and training turns unstable.
MAX_LOGIT_SCALE = 100.0
# Gradients that are reduced together, at most.
MAX_BUCKET = 50_000_000
# Stage 3 has one part in so many of all weights whole at a time, if no module is larger.
LIVE_SHARE = 8


def build_engine(
    model: open_clip.CLIP,
    loss: HardNegativeContrastiveLoss,
    settings: TrainSettings,
    place: Place,
) -> DeepSpeedEngine:
    """Wraps the model, its optimizer and ZeRO into a DeepSpeed engine on this rank's device.

    Args:
        model, loss: which go together (`towers.lay_out_for`).
        settings: with the number of micro-batches chosen.
    """
    import deepspeed

    towers = Towers(model, autocast_dtype(settings), parts=loss.needs_parts()).to(place.device)
    engine, _, _, _ = deepspeed.initialize(
        model=towers,
        optimizer=build_optimizer(model, settings.optimizer),
        dist_init_required=False,
        config={
            "train_batch_size": settings.batch_size,
            "train_micro_batch_size_per_gpu": (
                settings.batch_size // place.world_size // settings.micro_batches
            ),
            "gradient_accumulation_steps": settings.micro_batches,
            "gradient_clipping": settings.optimizer.max_grad_norm,
            "zero_optimization": _zero_config(model, settings.zero_stage),
            # Our own log line says more, and DeepSpeed's timer waits for the device twice a step.
            "steps_per_print": 2**31,
            "timers": {"throughput": {"enabled": False}},
        },
    )
    return engine


def autocast_dtype(settings: TrainSettings) -> torch.dtype | None:
    """What the towers compute in; None for the weights' own dtype."""
    return torch.bfloat16 if settings.precision == "bf16" else None


def _zero_config(model: open_clip.CLIP, stage: int) -> dict[str, Any]:
    config = {"stage": stage, "reduce_bucket_size": reduce_bucket(model, stage)}
    if stage == 3:
        # By default DeepSpeed keeps up to 1e9 weights from their forward to their backward pass:
        # those of any CLIP, which then takes more memory than in stage 2.
        live = max(1, sum(p.numel() for p in model.parameters()) // LIVE_SHARE)
        config |= {
            "stage3_max_reuse_distance": 0,
            "stage3_max_live_parameters": live,
            "stage3_prefetch_bucket_size": live // 2,
            # What is not worth the sending stays whole on every rank.
            "stage3_param_persistence_threshold": min(live // 1000, 100_000),
        }
    return config


def reduce_bucket(model: open_clip.CLIP, stage: int) -> int:
    """How many gradients ZeRO sums over the ranks together; it allocates room for all of them."""
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return max(1, min(trained // LIVE_SHARE if stage == 3 else trained, MAX_BUCKET))


@contextlib.contextmanager
def own_linear() -> Iterator[None]:
    """Gives torch its linear function back, in whose place ZeRO 3 puts another one for good."""
    linear = torch.nn.functional.linear
    try:
        yield
    finally:
        torch.nn.functional.linear = linear


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
    if engine.zero_optimization_stage() == 3:
        _forget_unfinished_modules(engine)
    return norm


def _clamp_logit_scale(engine: DeepSpeedEngine) -> None:
    from deepspeed.utils import (
        safe_get_local_fp32_param,
        safe_set_full_fp32_param,
        safe_set_local_fp32_param,
    )

    most = math.log(MAX_LOGIT_SCALE)
    parameter = engine.module.model.logit_scale
    parameter.clamp_(max=most)  # of no elements, where stage 3 has it in parts alone
    if not engine.zero_optimization() or not parameter.requires_grad:
        return
    # ZeRO steps on a copy of its own, which would undo the clamp.
    if engine.zero_optimization_stage() < 3:
        safe_set_full_fp32_param(parameter, parameter.float())
    else:
        parameter.ds_tensor.clamp_(max=most)
        part = safe_get_local_fp32_param(parameter)
        safe_set_local_fp32_param(parameter, part.clamp(max=most))


def _forget_unfinished_modules(engine: DeepSpeedEngine) -> None:
    """Cuts DeepSpeed's stack of running modules back to what it is between steps.

    Blocks that are computed again for the backward pass stop where all is known that was asked for.
    DeepSpeed never hears of the end of the modules that they stop in, and the stack would grow for
    ever. Without that early stop, it frees weights that the backward pass is about to use.
    """
    from deepspeed.runtime.zero.parameter_offload import FWD_MODULE_STACK

    while FWD_MODULE_STACK[-1] is not engine.module:
        FWD_MODULE_STACK.pop()
