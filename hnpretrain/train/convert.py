"""`hnpretrain checkpoint convert`: makes a checkpoint fit every ZeRO stage and number of ranks.

It reads the files that the ranks wrote, one part of AdamW's moments each, and puts them together
under the names of the parameters, in one process and without the model.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from hnpretrain.models.store import WEIGHTS_NAME, save_tensors
from hnpretrain.runs import latest_checkpoint
from hnpretrain.train.checkpoint import STATE_NAME, readable
from hnpretrain.train.durable import sync
from hnpretrain.train.whole import MOMENTS, STEPS, WHOLE_NAME

_MODEL_STATES = "mp_rank_00_model_states.pt"
_PREFIX = "model."  # of the towers' state dict


def convert(source: Path) -> Path:
    """Writes `whole_state.safetensors` into a checkpoint; what is there stays.

    Args:
        source: a checkpoint's folder, or a run's (its latest checkpoint).

    Returns:
        The checkpoint's folder.

    Raises:
        ValueError: it is neither, or its files cannot be read.
        OSError: the file cannot be written.
    """
    checkpoint = latest_checkpoint(source) or source
    if not (checkpoint / STATE_NAME).is_file():
        raise ValueError(
            f"{checkpoint} is neither a checkpoint nor a run with one: it has no {STATE_NAME}"
        )
    with readable(checkpoint):
        state = json.loads((checkpoint / STATE_NAME).read_text())
        if state["zero_stage"]:
            weights, moments, steps = _of_zero(checkpoint, state["zero_stage"], state["ranks"])
        else:
            weights, moments, steps = _of_one_file(checkpoint, state["parameters"])
    tensors = {f"weight.{name}": tensor for name, tensor in weights.items()}
    tensors |= {f"{key}.{name}": x for key, named in moments.items() for name, x in named.items()}
    whole = checkpoint / WHOLE_NAME
    temporary = whole.with_name(f".{WHOLE_NAME}.tmp")
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_tensors(contiguous, temporary, {STEPS: str(steps)})
    sync(temporary)
    temporary.replace(whole)
    sync(checkpoint)
    return checkpoint


Weights = dict[str, torch.Tensor]
Moments = dict[str, dict[str, torch.Tensor]]


def _of_one_file(checkpoint: Path, names: Sequence[str]) -> tuple[Weights, Moments, int]:
    """Stage 0."""
    states = _read(checkpoint / _MODEL_STATES)
    optimizer = states["optimizer"]["state"]
    weights = _weights(states["module"])
    if not optimizer:
        return weights, _no_moments({name: weights[name].shape for name in names}), 0
    moments = {key: {name: optimizer[i][key] for i, name in enumerate(names)} for key in MOMENTS}
    return weights, moments, _steps(optimizer)


def _of_zero(checkpoint: Path, stage: int, ranks: int) -> tuple[Weights, Moments, int]:
    """Stages 1 to 3."""
    if stage == 3:
        shapes = _read(checkpoint / f"zero_pp_rank_0_{_MODEL_STATES}")["param_shapes"]
        weights = load_file(checkpoint / WEIGHTS_NAME)
        weights["logit_scale"] = weights["logit_scale"].reshape(1)  # see models/build.py
    else:
        states = _read(checkpoint / _MODEL_STATES)
        shapes, weights = states["param_shapes"], _weights(states["module"])
    optimizers = [_optimizer_of(checkpoint, stage, rank) for rank in range(ranks)]
    if not optimizers[0]:
        named_shapes = {
            name.removeprefix(_PREFIX): shape for group in shapes for name, shape in group.items()
        }
        return weights, _no_moments(named_shapes), 0
    join = _join_cut if stage == 3 else _join_flat
    moments: Moments = {key: {} for key in MOMENTS}
    for key, named in moments.items():
        for number, group in enumerate(shapes):
            joined = join([optimizer[number][key] for optimizer in optimizers], group)
            named.update((name.removeprefix(_PREFIX), tensor) for name, tensor in joined)
    return weights, moments, _steps(optimizers[0])


def _no_moments(shapes: Mapping[str, torch.Size]) -> Moments:
    """Of an optimizer that has taken no step, since all have been skipped: it keeps none yet."""
    return {key: {name: torch.zeros(shape) for name, shape in shapes.items()} for key in MOMENTS}


def _optimizer_of(checkpoint: Path, stage: int, rank: int) -> dict[int, dict[str, torch.Tensor]]:
    """A rank's part of the state of each group of parameters."""
    states = _read(checkpoint / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")
    optimizer = states["optimizer_state_dict"]
    return optimizer["optimizer_state_dict" if stage == 3 else "base_optimizer_state"]["state"]


Joined = Iterable[tuple[str, torch.Tensor]]


def _join_flat(parts: Sequence[torch.Tensor], shapes: Mapping[str, torch.Size]) -> Joined:
    """Stages 1 and 2: see whole._load_flat."""
    flat = torch.cat([part.flatten() for part in parts])
    sizes = [math.prod(shape) for shape in shapes.values()]
    starts = accumulate(sizes, initial=0)
    for (name, shape), size, start in zip(shapes.items(), sizes, starts, strict=False):
        yield name, flat[start : start + size].view(shape)


def _join_cut(parts: Sequence[torch.Tensor], shapes: Mapping[str, torch.Size]) -> Joined:
    """Stage 3: see whole._load_cut."""
    start = 0
    for name, shape in shapes.items():
        size = -(-math.prod(shape) // len(parts))
        whole = torch.cat([part[start : start + size] for part in parts])
        yield name, whole[: math.prod(shape)].view(shape)
        start += size


def _weights(module: Mapping[str, torch.Tensor]) -> Weights:
    return {name.removeprefix(_PREFIX): tensor for name, tensor in module.items()}


def _steps(optimizer: Mapping[int, Mapping[str, torch.Tensor]]) -> int:
    return int(next(iter(optimizer.values()))["step"])


def _read(path: Path) -> dict[str, Any]:
    """One of DeepSpeed's files; of its own classes, those alone that our settings lead to."""
    from deepspeed.runtime.fp16.loss_scaler import LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    with torch.serialization.safe_globals([LossScaler, ZeroStageEnum, fragment_address]):
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
