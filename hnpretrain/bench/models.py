"""The models that benchmarks run: an architecture of open_clip's, or a model config in a file."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import open_clip
import torch

from hnpretrain.config import nearest
from hnpretrain.models import LoadedModel, ModelSettings, build

PRECISIONS = ("fp32", "bf16")
# The least that open_clip builds; no one runs it.
_SMALLEST_IMAGE_TOWER = {"image_size": 32, "patch_size": 32, "layers": 1, "width": 64}


def model_config(arch: str) -> dict[str, Any]:
    """The open_clip model config of an architecture.

    Args:
        arch: open_clip's name of it, or a json file with a model config: one as in open_clip's
            `model_configs`, or an export's `open_clip_config.json`.

    Raises:
        ValueError: it is neither.
    """
    if not arch.endswith(".json"):
        if config := open_clip.get_model_config(arch):
            return config
        raise ValueError(
            f"{arch!r} is neither an open_clip architecture nor a json file with a model config"
            f"{nearest(arch, open_clip.list_models())}"
        )
    try:
        fields = json.loads(Path(arch).read_bytes())
        config = fields.get("model_cfg", fields)
        missing = [key for key in ("embed_dim", "vision_cfg", "text_cfg") if key not in config]
        if missing:
            raise ValueError(f"it lacks {', '.join(missing)}")
    except (OSError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{arch!r} holds no open_clip model config: {error}") from error
    return config


def build_text_tower(arch: str) -> LoadedModel:
    """A model with the architecture's text tower and next to no image tower."""
    config = {**model_config(arch), "vision_cfg": _SMALLEST_IMAGE_TOWER}
    return build(ModelSettings(config=config))


def precision(name: str, device: str) -> contextlib.AbstractContextManager:
    """What towers compute in, of PRECISIONS: bf16 is autocast. Their weights are float32."""
    return torch.autocast(device, torch.bfloat16, enabled=name == "bf16")
