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
            "gradient_clipping": 0.0,  # by default 1; we clip, see `optimizer_step`
            "zero_optimization": _zero_config(model, settings.zero_stage),
            # Our own log line says more, and DeepSpeed's timer waits for the device twice a step.
            "steps_per_print": 2**31,
            "timers": {"throughput": {"enabled": False}},
        },
    )
    return engine


def autocast_dtype(settings: TrainSettings) -> torch.dtype | None:
    """What the towers compute in; None for the weights' own dtype."""
    return {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[settings.precision]


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


def gradients(engine: DeepSpeedEngine) -> list[torch.Tensor]:
    """This rank's gradients between the last backward pass of a step and the optimizer's step.

    They are means over the ranks already. Without ZeRO each rank has all of them; with ZeRO it has
    a part, and no other rank has the same. What is written into them is what the optimizer sees.
    """
    if not engine.zero_optimization():
        return [p.grad for p in engine.module.parameters() if p.grad is not None]
    groups = engine.optimizer.averaged_gradients.values()
    return [gradient for group in groups for gradient in group]


@torch.no_grad()
def optimizer_step(engine: DeepSpeedEngine, factor: float = 1.0) -> None:
    """Steps on the gradients times `factor`, then brings the logit scale back into its range."""
    if factor != 1:
        torch._foreach_mul_(gradients(engine), factor)
    engine.step()
    _clamp_logit_scale(engine)
    _end_of_step(engine)


@torch.no_grad()
def skip_step(engine: DeepSpeedEngine) -> None:
    """Ends a step without taking it: weights and moments stay as they are, gradients are dropped.

    On all ranks together. DeepSpeed must see a step, since it counts them.
    """
    held = gradients(engine)
    if engine.zero_optimization():
        if engine.global_rank == 0:  # whose first gradient is one, and not the padding of a part
            held[0].view(-1)[0] = math.nan
        engine.step()  # DeepSpeed takes no step on a norm that is not finite
        assert engine.optimizer.overflow
        if engine.zero_optimization_stage() == 3:
            torch._foreach_zero_(held)  # the room is kept, and the padding in it
            # Weights that are always whole, which DeepSpeed gathers again after steps it takes.
            engine.optimizer.checkpoint_event_epilogue()
    else:
        engine.zero_grad()
        engine.step()  # AdamW passes over weights without gradients
    _end_of_step(engine)


def clipping(grad_norm: float, max_norm: float) -> float:
    """What gradients of this norm are multiplied by, to be of `max_norm` at most; 0 is no limit."""
    return min(1.0, max_norm / (grad_norm + 1e-6)) if max_norm else 1.0


def _end_of_step(engine: DeepSpeedEngine) -> None:
    if engine.zero_optimization_stage() == 3:
        _forget_unfinished_modules(engine)


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
