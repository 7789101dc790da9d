"""Builds open_clip models from settings, with the transforms and the tokenizer that belong to them.

Three ways to name a model: an open_clip architecture, an architecture with pretrained weights (a
tag or a file), or a custom open_clip model config written into the YAML. The resolved config is
kept beside the model, since it is what an export must carry.
"""

from __future__ import annotations

import copy
import importlib.util
import json
import logging
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import open_clip
from open_clip.pretrained import get_pretrained_cfg, list_pretrained_tags_by_model

from hnpretrain.config import nearest, require_one_of
from hnpretrain.data.samples import Tokenizer
from hnpretrain.models.texts import LAYOUTS
from hnpretrain.models.tokenizer import fast_tokenizer

# What open_clip raises for a config or weights that do not fit, and what transformers raises for a
# tokenizer or a text tower that it cannot find or read.
_OPEN_CLIP_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    KeyError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)
CONFIG_NAME = "open_clip_config.json"
# What open_clip's tags say of preprocessing.
_PREPROCESSING = ("mean", "std", "interpolation", "resize_mode")


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
        grad_checkpointing: keep each block's input alone for the backward pass, and compute the
            rest again: a third more time, for several times less memory.
        text_layout: how the text tower gets texts: trees, trimmed or padded; auto takes the fewest
            tokens that leave its features as they are.
    """

    arch: str = ""
    pretrained: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    augmentation: dict[str, Any] = field(default_factory=dict)
    lock_image: bool = False
    lock_text: bool = False
    grad_checkpointing: bool = False
    text_layout: str = "auto"

    def __post_init__(self) -> None:
        require_one_of("model.text_layout", self.text_layout, LAYOUTS)
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
    tokenizer: Tokenizer
    name: str
    pretrained: str


def build(settings: ModelSettings, *, with_weights: bool = True) -> LoadedModel:
    """Builds the model on the CPU and locks the towers that are to be locked.

    Args:
        with_weights: load the pretrained weights. Else they are random ones, for who overwrites
            them: the file may be gone, and nothing is downloaded. All else that `pretrained`
            decides (activation, preprocessing) is as with them.

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
        loaded = _build_from_config(settings.config, settings.augmentation, with_weights)
    else:
        loaded = _build_from_arch(
            settings.arch, settings.pretrained, settings.augmentation, with_weights
        )
    _lock(loaded, settings)
    if settings.grad_checkpointing:
        loaded.model.set_grad_checkpointing()
    return loaded


def _lock(loaded: LoadedModel, settings: ModelSettings) -> None:
    try:
        if settings.lock_image:
            loaded.model.lock_image_tower(freeze_bn_stats=True)
        if settings.lock_text:
            loaded.model.lock_text_tower()
    except (AttributeError, NotImplementedError, AssertionError) as error:
        locked = "lock_image" if settings.lock_image else "lock_text"
        raise ValueError(
            f"model.{locked}: open_clip cannot lock this tower of {loaded.name} ({error}); unset it"
        ) from error


def build_from_folder(folder: Path, config: dict[str, Any]) -> LoadedModel:
    """A model from a folder with open_clip's config file, its weights still to be loaded.

    A Hugging Face tokenizer, if the config names one, is read from the folder too.

    Args:
        config: the model config in that file.
    """
    source = f"local-dir:{folder}"
    # pretrained_text would fetch a Hugging Face text tower's first weights.
    return _create(source, config, str(folder), load_weights=False, pretrained_text=False)


def _build_from_config(
    config: dict[str, Any], augmentation: dict[str, Any], with_weights: bool
) -> LoadedModel:
    missing = [key for key in ("embed_dim", "vision_cfg", "text_cfg") if key not in config]
    if missing:
        raise ValueError(f"model.config lacks {', '.join(missing)} (open_clip's model config)")
    with tempfile.TemporaryDirectory() as folder:
        # open_clip reads a config that is not its own from a folder alone.
        Path(folder, CONFIG_NAME).write_text(json.dumps({"model_cfg": config}))
        return _create(
            f"local-dir:{folder}",
            config,
            "model.config",
            make_tokenizer=partial(_named_tokenizer, config["text_cfg"]),
            aug_cfg=dict(augmentation),
            pretrained_text=with_weights,
        )


def _named_tokenizer(text_config: dict[str, Any], source: str) -> Tokenizer:
    """As open_clip makes it, but a Hugging Face one is taken by its name, not from the folder."""
    name = text_config.get("hf_tokenizer_name")
    if not name:
        return open_clip.get_tokenizer(source)
    return open_clip.tokenizer.HFTokenizer(
        name,
        context_length=text_config.get(
            "context_length", open_clip.tokenizer.DEFAULT_CONTEXT_LENGTH
        ),
        tokenizer_mode=text_config.get("tokenizer_mode"),
        **text_config.get("tokenizer_kwargs", {}),
    )


def _build_from_arch(
    arch: str, pretrained: str, augmentation: dict[str, Any], with_weights: bool
) -> LoadedModel:
    config = open_clip.get_model_config(arch)
    if config is None:
        names = open_clip.list_models()
        raise ValueError(
            f"model.arch={arch!r} is no open_clip architecture{nearest(arch, names)} "
            f"(open_clip.list_models() lists all {len(names)})"
        )
    tag: dict[str, Any] = {}
    if pretrained and not Path(pretrained).is_file():
        tag = get_pretrained_cfg(arch, pretrained)
        if not tag and with_weights:
            tags = list_pretrained_tags_by_model(arch)
            raise ValueError(
                f"model.pretrained={pretrained!r} is neither a file nor one of {arch}'s tags"
                f"{nearest(pretrained, tags)} (tags: {', '.join(tags) or 'none'})"
            )
    # Weights trained with QuickGELU lose several points when run with GELU, silently.
    quick_gelu = bool(tag.get("quick_gelu")) and not config.get("quick_gelu")
    if quick_gelu:
        config["quick_gelu"] = True
    options: dict[str, Any] = {"force_quick_gelu": quick_gelu, "aug_cfg": dict(augmentation)}
    if with_weights:
        return _create(arch, config, arch, pretrained, **options)
    # Given the tag, open_clip downloads its weights even to leave them unused.
    options |= {f"image_{key}": tag.get(key) for key in _PREPROCESSING}
    loaded = _create(arch, config, arch, **options, pretrained_text=False)
    return replace(loaded, pretrained=pretrained)


def _create(
    source: str,
    config: dict[str, Any],
    name: str,
    pretrained: str = "",
    make_tokenizer: Callable[[str], Tokenizer] = open_clip.get_tokenizer,
    **options: Any,
) -> LoadedModel:
    """Builds a model with open_clip.

    Args:
        source: open_clip's name of the architecture or folder.
        config: the model config that lies there.
        name: for reports and errors.
        pretrained: tag or file of its weights, or empty.
        make_tokenizer: from the source.
        options: further ones of open_clip.create_model_and_transforms.
    """
    # open_clip warns, through the root logger, that random weights are random.
    logging.disable(logging.WARNING)
    try:
        _require_transformers(config["text_cfg"])
        model, train, val = open_clip.create_model_and_transforms(
            source,
            pretrained or None,
            # DeepSpeed broadcasts parameters as bytes, which a 0-dim one cannot be viewed as.
            nonscalar_logit_scale=True,
            **options,
        )
        tokenizer = fast_tokenizer(make_tokenizer(source))
    except _OPEN_CLIP_ERRORS as error:
        raise ValueError(f"open_clip cannot build {name}: {one_line(error)}") from error
    finally:
        logging.disable(logging.NOTSET)
    return LoadedModel(model, copy.deepcopy(config), train, val, tokenizer, name, pretrained)


def _require_transformers(text_config: dict[str, Any]) -> None:
    named = [key for key in ("hf_model_name", "hf_tokenizer_name") if text_config.get(key)]
    if named and importlib.util.find_spec("transformers") is None:
        raise ImportError(
            f"its text_cfg.{named[0]} needs the package transformers: pip install 'hnpretrain[hf]'"
        )


def one_line(error: Exception) -> str:
    """An error of open_clip, torch or transformers, some of which are a page long, in a line."""
    words = " ".join(str(error).split()) or type(error).__name__
    return words if len(words) <= 300 else f"{words[:297]}..."
