"""The towers as tensors without data, run to learn of them without computing anything."""

from __future__ import annotations

import copy
import itertools
import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import open_clip
import torch
from torch import nn

from hnpretrain.data.samples import Batch
from hnpretrain.data.texts import Texts
from hnpretrain.train.towers import Towers


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps torch from logging a page before it raises."""
    disabled = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(disabled)


def twin_towers(
    model: open_clip.CLIP,
    autocast: torch.dtype | None,
    parts: bool,
    device: torch.device,
    mode: AbstractContextManager,
) -> Towers:
    """The towers with weights that have no data, and lose their gradients at once.

    Args:
        model: whole, as it is before DeepSpeed cuts its weights.
        autocast, parts: see Towers.
        device: where the weights would be.
        mode: in which tensors there have no data.
    """
    twins: dict[int, torch.Tensor] = {}
    with mode:
        for x in itertools.chain(model.parameters(), model.buffers()):
            twin = torch.empty(x.shape, dtype=x.dtype, device=device)
            if isinstance(x, nn.Parameter):
                twin = nn.Parameter(twin, x.requires_grad)
                if x.requires_grad:
                    twin.register_post_accumulate_grad_hook(_forget_gradient)
            twins[id(x)] = twin
    return Towers(copy.deepcopy(model, twins), autocast, parts)


def _forget_gradient(parameter: torch.Tensor) -> None:
    parameter.grad = None


def twin_batch(
    model: open_clip.CLIP,
    images: int,
    texts: Texts,
    negative_mask_BK: torch.Tensor,
    device: torch.device,
    mode: AbstractContextManager,
) -> Batch:
    """A batch without data, for `twin_towers` of the model.

    Args:
        texts, negative_mask_BK: whose shapes the batch has.
    """
    with mode:
        return Batch(
            keys=(),
            image_BCHW=torch.empty(images, *image_shape(model), device=device),
            texts=texts.to(device),
            negative_mask_BK=negative_mask_BK.to(device),
        )


def image_shape(model: open_clip.CLIP) -> tuple[int, int, int]:
    """Channels, height and width that the image tower takes."""
    size = model.visual.preprocess_cfg["size"]
    height, width = (size, size) if isinstance(size, int) else size
    return 3, height, width
