"""An exponential moving average of the weights, in float32.

After each step, average = decay * average + (1 - decay) * weight. Of ZeRO stages 0 to 2 each rank
holds the average of all trained weights; at stage 3, where it has a part of each weight, of that
part. A checkpoint has the averages whole, under the names of open_clip's state dict and beside the
weights that are not trained, so that it can be used as a model, and does not depend on stage and
number of ranks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import nn

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine


class WeightAverage:
    """The average of the trained weights of an engine's model; begins as they are now.

    Args:
        engine: whose optimizer steps.
        model: open_clip's, inside it.
        decay: between 0 and 1.
    """

    def __init__(self, engine: DeepSpeedEngine, model: nn.Module, decay: float) -> None:
        self._in_parts = engine.zero_optimization_stage() == 3
        self._model = model
        self._decay = decay
        self._averages = {name: x.clone() for name, x in self._weights()}

    def begin(self) -> None:
        """Begins anew, as the weights that are there now."""
        for name, x in self._weights():
            self._averages[name].copy_(x)

    @torch.no_grad()
    def update(self) -> None:
        """Takes in the weights after a step."""
        weights = [x for _, x in self._weights()]
        torch._foreach_lerp_(list(self._averages.values()), weights, 1 - self._decay)

    def load(self, whole: Mapping[str, torch.Tensor]) -> None:
        """Takes averages over from a checkpoint.

        Args:
            whole: as `whole` gives them.

        Raises:
            KeyError, ValueError: they are not of this model.
        """
        for name, average in self._averages.items():
            value = whole[name]
            shape = self._shape(name)
            if value.numel() != shape.numel():
                raise ValueError(f"{name} has {tuple(value.shape)} elements, not {tuple(shape)}")
            value = value.flatten().to(average)
            if self._in_parts:
                start = dist.get_rank() * average.numel()
                value = value[start : start + average.numel()]
                average.view(-1)[: value.numel()] = value
            else:
                average.copy_(value.view_as(average))

    def whole(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Name and average of each trained weight, whole, one at a time; collective at stage 3."""
        for name, average in self._averages.items():
            if not self._in_parts:
                yield name, average
                continue
            parts = average.new_empty(dist.get_world_size() * average.numel())
            dist.all_gather_into_tensor(parts, average.view(-1))
            shape = self._shape(name)
            yield name, parts[: shape.numel()].view(shape)

    def _weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        parameter: Any  # DeepSpeed gives it further attributes
        for name, parameter in self._model.named_parameters():
            if parameter.requires_grad:
                yield name, (parameter.ds_tensor if self._in_parts else parameter).detach()

    def _shape(self, name: str) -> torch.Size:
        parameter: Any = self._model.get_parameter(name)
        return parameter.ds_shape if self._in_parts else parameter.shape
