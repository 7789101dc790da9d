"""Features of patches and words, taken from towers while they encode.

open_clip's towers give one vector an input. Terms that look closer need what those were pooled
from, in the common space: the outputs of the towers' last norms, projected like the pooled ones.
Hooks record them, so that the towers' own code runs as it is.
"""

from __future__ import annotations

from typing import Any

import open_clip
import torch
from torch import nn


class PartsRecorder:
    """Records the parts of the last images and texts that a model encoded.

    Args:
        model: an open_clip model with a ViT and a text tower that reads the end token.

    Raises:
        ValueError: the model has other towers.
    """

    def __init__(self, model: open_clip.CLIP) -> None:
        visual, text = model.visual, getattr(model, "text", model)
        norm = getattr(visual, "ln_post", None)
        pooled_first = getattr(visual, "final_ln_after_pool", False)
        pools = getattr(visual, "attn_pool", None) is not None
        if norm is None or pooled_first or pools or not hasattr(visual, "class_embedding"):
            raise ValueError(
                "features of patches need a ViT whose class token is the image's feature; "
                f"this model's image tower is {type(visual).__name__} and pools otherwise"
            )
        kind = getattr(text, "text_pool_type", getattr(text, "pool_type", ""))
        if not hasattr(text, "ln_final") or kind != "argmax":
            raise ValueError(
                "features of words need a text tower that reads its end token, as CLIP's does; "
                f"this model's is {type(text).__name__}"
            )
        self._visual, self._text = visual, text
        self._last: dict[str, torch.Tensor] = {}
        norm.register_forward_hook(self._recorder("patches"))
        text.ln_final.register_forward_hook(self._recorder("words"))

    def patches(self) -> torch.Tensor:
        """(B, P, D) of the last images, the class token left out."""
        return _projected(self._last.pop("patches")[:, 1:], self._visual.proj)

    def words(self) -> torch.Tensor:
        """(N, L, D) of the last texts."""
        return _projected(self._last.pop("words"), self._text.text_projection)

    def _recorder(self, name: str) -> Any:
        def record(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
            del module, inputs
            self._last[name] = output

        return record


def word_mask(tokens_NL: torch.Tensor) -> torch.Tensor:
    """(N, L) bool, True from after the start token to the end token, which has the highest id."""
    end_N1 = tokens_NL.argmax(dim=1, keepdim=True)
    places_L = torch.arange(tokens_NL.shape[1], device=tokens_NL.device)
    return (places_L > 0) & (places_L <= end_N1)


def _projected(x: torch.Tensor, projection: nn.Module | torch.Tensor | None) -> torch.Tensor:
    if projection is None:
        return x
    return projection(x) if isinstance(projection, nn.Module) else x @ projection
