"""Builds open_clip models from settings, with the transforms and the tokenizer that belong to them.

Three ways to name a model: an open_clip architecture, an architecture with pretrained weights (a
tag or a file), or a custom open_clip model config written into the YAML. The resolved config is
kept beside the model, since it is what an export must carry.
"""

from __future__ import annotations

import copy
import json
import logging
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.pretrained import get_pretrained_cfg, list_pretrained_tags_by_model

from hnpretrain.config import nearest

# What open_clip raises for a config or weights that do not fit, or for a tokenizer that needs the
# package transformers, which not every architecture does.
_OPEN_CLIP_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    KeyError,
    RuntimeError,
    TypeError,
    ValueError,
)
CONFIG_NAME = "open_clip_config.json"


@dataclass
class ModelSettings:
    """Section `model:` of a training config.

    Attributes:
        arch: an open_clip architecture (`ViT-B-32`), or empty if `config` is given.
        pretrained: open_clip tag (`openai`) or weights file for `arch`; empty for random weights.
        config: a custom open_clip model config: embed_dim, vision_cfg, text_cfg.
        augmentation: fields of open_clip's AugmentationCfg, such as scale: [0.9, 1.0].
        lock_image: keep the image tower's weights fixed (LiT).
        lock_text: keep the text tower's weights fixed.
    """

    arch: str = ""
    pretrained: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    augmentation: dict[str, Any] = field(default_factory=dict)
    lock_image: bool = False
    lock_text: bool = False

    def __post_init__(self) -> None:
        if self.lock_image and self.lock_text:
            raise ValueError(
                "model.lock_image and model.lock_text are both set: nothing is left to train"
            )


@dataclass(frozen=True)
class LoadedModel:
    """A model with everything that belongs to it.

    Attributes:
        model: open_clip's CLIP or CustomTextCLIP, float32.
        config: its open_clip model config, as an export writes it.
        preprocess_train: image transform of training (PIL image -> C x H x W).
        preprocess_val: image transform of evaluation.
        tokenizer: list of n texts -> n x L int64 ids.
        name: for reports: the architecture, or the folder that it came from.
        pretrained: for reports: the weights' tag or file, or empty.
    """

    model: open_clip.CLIP
    config: dict[str, Any]
    preprocess_train: Callable
    preprocess_val: Callable
    tokenizer: Callable[[list[str]], torch.Tensor]
    name: str
    pretrained: str


def build(settings: ModelSettings) -> LoadedModel:
    """Builds the model on the CPU and locks the towers that are to be locked.

    Raises:
        ValueError: the architecture, the weights or the config are not what open_clip knows; the
            message names what is near.
    """
    if bool(settings.arch) == bool(settings.config):
        raise ValueError(
            "set either model.arch (an open_clip architecture such as ViT-B-32) or model.config "
            f"(embed_dim, vision_cfg, text_cfg), got arch={settings.arch!r} and "
            f"{'a' if settings.config else 'no'} config"
        )
    if settings.config:
        if settings.pretrained:
            raise ValueError("model.pretrained goes with model.arch; a custom config has no tags")
        loaded = _build_from_config(settings.config, settings.augmentation)
    else:
        loaded = _build_from_arch(settings.arch, settings.pretrained, settings.augmentation)
    if settings.lock_image:
        loaded.model.lock_image_tower(freeze_bn_stats=True)
    if settings.lock_text:
        loaded.model.lock_text_tower()
    return loaded


def build_from_folder(
    folder: Path, config: dict[str, Any], augmentation: dict[str, Any], name: str
) -> LoadedModel:
    """A model from a folder with open_clip's config file; its weights are loaded if it has any.

    Args:
        config: the model config in that file.
        name: for reports and errors.
    """
    return _create(f"local-dir:{folder}", "", False, config, augmentation, name)


def _build_from_config(config: dict[str, Any], augmentation: dict[str, Any]) -> LoadedModel:
    missing = [key for key in ("embed_dim", "vision_cfg", "text_cfg") if key not in config]
    if missing:
        raise ValueError(f"model.config lacks {', '.join(missing)} (open_clip's model config)")
    with tempfile.TemporaryDirectory() as folder:
        # open_clip reads a config that is not its own from a folder alone.
        Path(folder, CONFIG_NAME).write_text(json.dumps({"model_cfg": config}))
        return build_from_folder(Path(folder), config, augmentation, "model.config")


def _build_from_arch(arch: str, pretrained: str, augmentation: dict[str, Any]) -> LoadedModel:
    config = open_clip.get_model_config(arch)
    if config is None:
        names = open_clip.list_models()
        raise ValueError(
            f"model.arch={arch!r} is no open_clip architecture{nearest(arch, names)} "
            f"(open_clip.list_models() lists all {len(names)})"
        )
    quick_gelu = False
    if pretrained and not Path(pretrained).is_file():
        tag = get_pretrained_cfg(arch, pretrained)
        if not tag:
            tags = list_pretrained_tags_by_model(arch)
            raise ValueError(
                f"model.pretrained={pretrained!r} is neither a file nor one of {arch}'s tags"
                f"{nearest(pretrained, tags)} (tags: {', '.join(tags) or 'none'})"
            )
        # Weights trained with QuickGELU lose several points when run with GELU, silently.
        quick_gelu = bool(tag.get("quick_gelu")) and not config.get("quick_gelu")
    if quick_gelu:
        config["quick_gelu"] = True
    return _create(arch, pretrained, quick_gelu, config, augmentation, arch)


def _create(
    source: str,
    pretrained: str,
    quick_gelu: bool,
    config: dict[str, Any],
    augmentation: dict[str, Any],
    name: str,
) -> LoadedModel:
    # open_clip warns, through the root logger, that random weights are random.
    logging.disable(logging.WARNING)
    try:
        model, train, val = open_clip.create_model_and_transforms(
            source,
            pretrained or None,
            force_quick_gelu=quick_gelu,
            aug_cfg=dict(augmentation),
            # DeepSpeed broadcasts parameters as bytes, which a 0-dim one cannot be viewed as.
            nonscalar_logit_scale=True,
        )
        tokenizer = open_clip.get_tokenizer(source)
    except _OPEN_CLIP_ERRORS as error:
        raise ValueError(f"open_clip cannot build {name}: {error or type(error)}") from error
    finally:
        logging.disable(logging.NOTSET)
    return LoadedModel(model, copy.deepcopy(config), train, val, tokenizer, name, pretrained)
