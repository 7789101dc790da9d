"""Features of an image's patches, taken from the image tower while it encodes.

open_clip's towers give one vector an image. Terms that look closer need what that was pooled from,
in the common space: the output of the tower's last norm, projected like the pooled one. A hook
records it, so that the tower's own code runs as it is.
"""

from __future__ import annotations

from typing import Any

import open_clip
import torch
from torch import nn


class PatchRecorder:
    """Records the patches of the last images that a model encoded.

    Args:
        model: an open_clip model with a ViT.

    Raises:
        ValueError: the model has another image tower.
    """

    def __init__(self, model: open_clip.CLIP) -> None:
        visual = model.visual
        norm = getattr(visual, "ln_post", None)
        pooled_first = getattr(visual, "final_ln_after_pool", False)
        pools = getattr(visual, "attn_pool", None) is not None
        if norm is None or pooled_first or pools or not hasattr(visual, "class_embedding"):
            raise ValueError(
                "features of patches need a ViT whose class token is the image's feature; "
                f"this model's image tower is {type(visual).__name__} and pools otherwise"
            )
        self._visual = visual
        self._last: list[torch.Tensor] = []
        norm.register_forward_hook(self._record)

    def patches(self) -> torch.Tensor:
        """(B, P, D) of the last images, the class token left out."""
        patches_BPD = self._last.pop()[:, 1:]
        projection = self._visual.proj
        if projection is None:
            return patches_BPD
        if isinstance(projection, nn.Module):
            return projection(patches_BPD)
        return patches_BPD @ projection

    def _record(self, module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        del module, inputs
        self._last[:] = [output]
