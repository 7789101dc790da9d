"""A checkpoint's weights and moments in one piece, from which any ZeRO stage and W can go on.

One safetensors file: `weight.NAME` for each entry of the model's state dict, `exp_avg.NAME` and
`exp_avg_sq.NAME` for each trained parameter, and in its metadata the number of steps that AdamW has
taken. convert.py writes it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from safetensors import safe_open
from torch import nn

from hnpretrain.train.optimizer import trained_names

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

WHOLE_NAME = "whole_state.safetensors"
MOMENTS = ("exp_avg", "exp_avg_sq")
STEPS = "optimizer_steps"


@torch.no_grad()
def load_whole(engine: DeepSpeedEngine, model: nn.Module, path: Path) -> None:
    """Loads weights and moments into an engine that has taken no step; collective.

    Args:
        model: open_clip's, inside the engine.

    Raises:
        KeyError, RuntimeError, SafetensorError, ValueError: the file is damaged, or of another
            model.
    """
    load = [_load_plain, _load_flat, _load_flat, _load_cut][engine.zero_optimization_stage()]
    with safe_open(path, framework="pt") as file:
        step = torch.tensor(float(file.metadata()[STEPS]), device=engine.device)

        def read(key: str, like: torch.Size) -> torch.Tensor:
            value = file.get_tensor(key)
            if value.shape != like:
                raise ValueError(f"{path}: {key} is {tuple(value.shape)}, not {tuple(like)}")
            return value

        for name, buffer in _buffers(model):
            buffer.copy_(read(f"weight.{name}", buffer.shape))
        for flat, moments in load(engine, model, read):
            engine_state = getattr(engine.optimizer, "optimizer", engine.optimizer).state
            engine_state[flat] = {"step": step.clone(), **moments}


Read = Callable[[str, torch.Size], torch.Tensor]
Loaded = Iterator[tuple[torch.Tensor, dict[str, torch.Tensor]]]


def _buffers(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    kept = model.state_dict().keys()
    return ((name, buffer) for name, buffer in model.named_buffers() if name in kept)


def _load_plain(engine: DeepSpeedEngine, model: nn.Module, read: Read) -> Loaded:
    del engine
    for name, parameter in model.named_parameters():
        parameter.copy_(read(f"weight.{name}", parameter.shape))
    for name in trained_names(model):
        parameter = model.get_parameter(name)
        moments = (read(f"{key}.{name}", parameter.shape) for key in MOMENTS)
        yield parameter, dict(zip(MOMENTS, (x.to(parameter) for x in moments), strict=True))


def _load_flat(engine: DeepSpeedEngine, model: nn.Module, read: Read) -> Loaded:
    """Stages 1 and 2: the parameters of a group lie end to end, cut into W equal parts."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for name, parameter in model.named_parameters():
        parameter.copy_(read(f"weight.{name}", parameter.shape))
    optimizer = engine.optimizer
    optimizer.refresh_fp32_params()
    parts = optimizer.single_partition_of_fp32_groups
    for group, part in zip(optimizer.round_robin_bit16_groups, parts, strict=True):
        moments = {}
        for key in MOMENTS:
            flat = torch.cat([read(f"{key}.{names[id(p)]}", p.shape).flatten() for p in group])
            moments[key] = _part(flat, part)
        yield part, moments


def _load_cut(engine: DeepSpeedEngine, model: nn.Module, read: Read) -> Loaded:
    """Stage 3: each parameter is cut into W equal parts; these lie end to end in groups."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    optimizer = engine.optimizer
    optimizer.checkpoint_event_prologue()  # no weight is whole
    parameter: Any  # DeepSpeed gives it further attributes
    for name, parameter in model.named_parameters():
        whole = read(f"weight.{name}", parameter.ds_shape).flatten()
        parameter.ds_tensor.copy_(_part(whole, parameter.ds_tensor))
    optimizer.checkpoint_event_epilogue()
    groups = zip(optimizer.fp16_groups, optimizer.fp32_partitioned_groups_flat, strict=True)
    for group, flat in groups:
        flat.copy_(torch.cat([parameter.ds_tensor.flatten() for parameter in group]))
        moments = {}
        for key in MOMENTS:
            wholes = ((p, read(f"{key}.{names[id(p)]}", p.ds_shape).flatten()) for p in group)
            moments[key] = torch.cat([_part(whole, p.ds_tensor) for p, whole in wholes])
        yield flat, moments


def _part(flat: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """This rank's of W parts of the size of `like`, with zeros past the end."""
    size = like.numel()
    part = like.new_zeros(size)
    mine = flat[dist.get_rank() * size :][:size]
    part[: len(mine)] = mine.to(part)
    return part
