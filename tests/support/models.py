"""A model that takes milliseconds, with random weights."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from hnpretrain.models import LoadedModel, ModelSettings, build
from hnpretrain.models.store import WEIGHTS_NAME, write_config

TINY = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "patch_size": 16, "width": 32, "layers": 1, "head_width": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


def tiny_model() -> LoadedModel:
    torch.manual_seed(0)
    return build(ModelSettings(config=TINY))


def write_export(model: LoadedModel, folder: Path) -> Path:
    """Writes a model as `hnpretrain export` does; returns the folder."""
    tensors = {name: tensor.contiguous() for name, tensor in model.model.state_dict().items()}
    save_file(tensors, folder / WEIGHTS_NAME)
    write_config(model, folder)
    return folder
