"""The losses that `bench loss` and `bench step` run: ours, and those that one would take else."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.functional import cross_entropy

from hnpretrain.losses import HardNegativeContrastiveLoss

SCALE = 50.0
"""The multiplier s of all cases: of a model half-way."""


@dataclass(frozen=True)
class Inputs:
    """This rank's leaves: image, text (b, D), negative (b, K, D), scale ()."""

    image: torch.Tensor
    text: torch.Tensor
    negative: torch.Tensor
    scale: torch.Tensor

    def leaves(self) -> list[torch.Tensor]:
        return [self.image, self.text, self.negative, self.scale]


@dataclass(frozen=True)
class Contender:
    """One way to compute the loss.

    Attributes:
        name: for the table.
        negatives: whether it scores images against their negatives; it is exact against the
            formula with them, else against the one without.
        scope: whose; see HardNegativeContrastiveLoss.
        make: gives the loss as a function of the inputs.
        products: matrix products of B x B x D that it needs, for the achieved FLOP/s.
    """

    name: str
    negatives: bool
    scope: str
    make: Callable[[], Callable[[Inputs], torch.Tensor]]
    products: int


def contenders(device: str, K: int, comms: list[str]) -> list[Contender]:
    """Those that can run on the device; ours comes first, and with K = 0 all without negatives."""
    found = [
        Contender(f"ours, {comm}" if len(comms) > 1 else "ours", K > 0, "own", _ours(comm), 4)
        for comm in comms
    ]
    found.append(Contender("open_clip, no negatives", False, "none", clip_loss, 6))
    if K:
        name = "open_clip, all negatives"
        found.append(Contender(name, True, "global", negclip_loss, 6 + 3 * K))
    if device == "cuda":
        if importlib.util.find_spec("inf_cl"):
            found.append(Contender("inf-cl, no negatives", False, "none", _inf_cl, 10))
        if importlib.util.find_spec("memeff"):
            found.append(Contender("memeff, no negatives", False, "none", _memeff, 5))
    return found


def _ours(comm: str) -> Callable[[], Callable[[Inputs], torch.Tensor]]:
    def make() -> Callable[[Inputs], torch.Tensor]:
        loss = HardNegativeContrastiveLoss("own", comm=comm)

        def run(x: Inputs) -> torch.Tensor:
            negative = x.negative if x.negative.shape[1] else None
            return loss(x.image, x.text, negative, None, x.scale).total

        return run

    return make


def clip_loss() -> Callable[[Inputs], torch.Tensor]:
    """open_clip's own, which does not look at negatives."""
    from open_clip.loss import ClipLoss

    world: dict[str, Any] = {}
    if dist.is_initialized() and dist.get_world_size() > 1:
        # open_clip's own choice for many ranks: no B x B matrix on each.
        world = {"local_loss": True, "gather_with_grad": True}
        world |= {"rank": dist.get_rank(), "world_size": dist.get_world_size()}
    loss = ClipLoss(**world)
    return lambda x: loss(x.image, x.text, x.scale)


def negclip_loss() -> Callable[[Inputs], torch.Tensor]:
    """As NegCLIP and CE-CLIP do: all negatives are further columns of the images' logits."""
    from torch.distributed.nn.functional import all_gather

    def run(x: Inputs) -> torch.Tensor:
        image, text, negative = x.image, x.text, x.negative.flatten(0, 1)
        labels = torch.arange(len(image), device=image.device)
        images, texts = image, text
        if dist.is_initialized() and dist.get_world_size() > 1:
            images, texts, negative = (torch.cat(all_gather(y)) for y in (image, text, negative))
            labels = labels + len(image) * dist.get_rank()
        per_image = x.scale * image @ torch.cat([texts, negative]).T
        per_text = x.scale * text @ images.T
        return (cross_entropy(per_image, labels) + cross_entropy(per_text, labels)) / 2

    return run


def _inf_cl() -> Callable[[Inputs], torch.Tensor]:
    from inf_cl import cal_flash_loss

    def run(x: Inputs) -> torch.Tensor:
        per_image = cal_flash_loss(x.image, x.text, scale=x.scale).mean()
        return (per_image + cal_flash_loss(x.text, x.image, scale=x.scale).mean()) / 2

    return run


def _memeff() -> Callable[[Inputs], torch.Tensor]:
    from memeff import MemoryEfficientCLIPLoss

    def run(x: Inputs) -> torch.Tensor:
        # Its temperature is a number, and with `stable` its gradients are scaled.
        loss = MemoryEfficientCLIPLoss(1 / SCALE, normalized_inputs=True, stable=False)
        return loss(x.image, x.text)

    return run
