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


def require_patches(model: open_clip.CLIP) -> None:
    """Raises ValueError unless the model's image tower has features of patches."""
    visual = model.visual
    pooled_first = getattr(visual, "final_ln_after_pool", False)
    pools = getattr(visual, "attn_pool", None) is not None
    known = hasattr(visual, "ln_post") and hasattr(visual, "class_embedding")
    if not known or pooled_first or pools:
        raise ValueError(
            "features of patches need a ViT whose class token is the image's feature; "
            f"this model's image tower is {type(visual).__name__} and pools otherwise"
        )


class PatchRecorder:
    """Records the patches of the last images that a model encoded.

    Args:
        model: an open_clip model that has them (`require_patches`).
    """

    def __init__(self, model: open_clip.CLIP) -> None:
        require_patches(model)
        self._visual: Any = model.visual
        self._last: list[torch.Tensor] = []
        self._visual.ln_post.register_forward_hook(self._record)

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
