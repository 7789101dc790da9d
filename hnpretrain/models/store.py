"""Models on disk: a training checkpoint's weights, and exports that open_clip loads.

An export is a folder with `open_clip_config.json` and `open_clip_model.safetensors`. A checkpoint
is one of a run's `checkpoints/step_N` folders; it carries the same config file, so that its weights
can be used without the training code. They are in DeepSpeed's file, or with ZeRO stage 3, which
cuts them into one file a rank, in one as an export's. Averages of the weights (`ema`) lie beside
them in a file of the same kind.

Models of others are read too: open_clip's folders, with their weights in other files, and those of
Hugging Face's transformers (hugging_face.py).
"""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.pretrained import get_pretrained_cfg, list_pretrained_tags_by_model
from safetensors import SafetensorError
from safetensors.torch import save_file

from hnpretrain.models import hugging_face
from hnpretrain.models.build import (
    CONFIG_NAME,
    LoadedModel,
    ModelSettings,
    build,
    build_from_folder,
    one_line,
)
from hnpretrain.runs import LATEST_NAME, latest_checkpoint
from hnpretrain.shards import storage

WEIGHTS_NAME = "open_clip_model.safetensors"
EMA_NAME = "open_clip_model_ema.safetensors"
# What open_clip calls its weights on the hub, and once called them; the first that is there counts.
_OTHER_WEIGHTS = ("open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin")
OPEN_CLIP_HUB = "hf-hub:"
# DeepSpeed's file with the weights, whole and float32; of ZeRO stages 0 to 2.
_DEEPSPEED_NAME = "mp_rank_00_model_states.pt"


def load(source: str, device: str = "cpu", *, ema: bool = False) -> LoadedModel:
    """Loads a model to use: an export, a checkpoint, a run, or what others have trained.

    Args:
        source: an export's folder, or another one of open_clip's; a checkpoint's folder; a run's
            folder (its latest checkpoint); open_clip's `ARCH:PRETRAINED`, such as
            `ViT-B-32:openai`, or `hf-hub:NAME`; a folder of Hugging Face's transformers, or
            `hf:NAME`.
        device: where the model goes.
        ema: take a checkpoint's averages of the weights, and not the last weights.

    Raises:
        ValueError: the source is none of these, a file of it is damaged, or it has no averages.
    """
    folder = Path(source)
    if folder.is_dir():
        loaded = _load_folder(folder, ema)
    elif ema:
        raise ValueError(f"{source!r} is no checkpoint: only these hold averages of weights (ema)")
    elif source.startswith(hugging_face.HUB):
        loaded = hugging_face.load(source.removeprefix(hugging_face.HUB))
    elif source.startswith(OPEN_CLIP_HUB):
        loaded = _load_open_clip(_fetched(source.removeprefix(OPEN_CLIP_HUB)), ema)
    elif ":" in source:
        arch, _, pretrained = source.partition(":")
        if not (arch and pretrained):  # with no tag, the weights would be random ones
            tags = list_pretrained_tags_by_model(arch)
            known = f"{arch}'s tags: {', '.join(tags)}" if tags else "open_clip.list_pretrained()"
            raise ValueError(f"{source!r}: write ARCH:TAG, such as ViT-B-32:openai ({known})")
        _require_own_activation(arch, pretrained)
        loaded = build(ModelSettings(arch=arch, pretrained=pretrained))
    else:
        raise ValueError(
            f"{source!r} is neither a folder (an export, a checkpoint, a run or a model of "
            "Hugging Face) nor ARCH:PRETRAINED, such as ViT-B-32:openai, nor hf:NAME"
        )
    loaded.model.to(device).eval()
    return loaded


def export(source: str, output: str, *, ema: bool = False) -> None:
    """Writes the weights of a checkpoint or a run as a folder that open_clip loads.

    `open_clip.create_model_from_pretrained("local-dir:OUTPUT")` reads it back.

    Args:
        source, ema: see `load`.

    Raises:
        ValueError: the source holds no model.
    """
    if storage.is_url(output):
        raise ValueError(f"{output}: an export goes to a local folder; copy it from there")
    loaded = load(source, ema=ema)
    if isinstance(loaded.model, hugging_face.HuggingFaceClip):
        raise ValueError(f"{source!r} is a model of Hugging Face, which open_clip does not load")
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    write_weights(loaded.model.state_dict(), folder)
    write_config(loaded, folder)  # last: a folder without it is no export


def write_weights(weights: dict[str, torch.Tensor], folder: Path, name: str = WEIGHTS_NAME) -> None:
    """Writes `open_clip_model.safetensors`, which appears whole.

    Args:
        weights: of a model's state dict, whole.
        name: another one for the file.
    """
    tensors = {name: tensor.contiguous() for name, tensor in weights.items()}
    # A scalar in open_clip's own weights; build.py says why it is none here.
    tensors["logit_scale"] = tensors["logit_scale"].reshape(())
    temporary = folder / f".{name}.tmp"
    save_tensors(tensors, temporary)
    temporary.replace(folder / name)


def save_tensors(
    tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str] | None = None
) -> None:
    """safetensors' `save_file`, but others may read the file as any other one.

    Raises:
        OSError: it could not be written; nothing is left of it.
    """
    path.touch()
    mode = path.stat().st_mode
    try:
        save_file(tensors, path, metadata)
    except SafetensorError as error:
        path.unlink(missing_ok=True)
        raise OSError(f"{path}: {error}") from error
    path.chmod(mode)


def write_config(loaded: LoadedModel, folder: Path) -> None:
    """Writes `open_clip_config.json`: the model's config and its preprocessing.

    A Hugging Face tokenizer goes beside it, since open_clip looks for it there.
    """
    if isinstance(loaded.tokenizer, open_clip.tokenizer.HFTokenizer):
        loaded.tokenizer.save_pretrained(str(folder))
    preprocess = dict(loaded.model.visual.preprocess_cfg)
    value = {"model_cfg": loaded.config, "preprocess_cfg": preprocess}
    storage.write_bytes(str(folder / CONFIG_NAME), (json.dumps(value, indent=2) + "\n").encode())


def _load_folder(folder: Path, ema: bool) -> LoadedModel:
    folder = latest_checkpoint(folder) or folder
    if (folder / CONFIG_NAME).is_file():
        return _load_open_clip(folder, ema)
    if not hugging_face.is_saved(folder):
        raise ValueError(
            f"{folder} is no export, no checkpoint and no run with a checkpoint: it holds neither "
            f"{CONFIG_NAME} nor checkpoints/{LATEST_NAME} (nor Hugging Face's "
            f"{hugging_face.CONFIG_NAME})"
        )
    if ema:
        raise ValueError(f"{folder} is a model of Hugging Face: it holds no averages (ema)")
    return hugging_face.load(str(folder))


def _load_open_clip(folder: Path, ema: bool) -> LoadedModel:
    config = _read_config(folder / CONFIG_NAME)
    names = (_DEEPSPEED_NAME, WEIGHTS_NAME, *_OTHER_WEIGHTS)
    found = [folder / name for name in names if (folder / name).is_file()]
    if ema:
        if not (folder / EMA_NAME).is_file():
            raise ValueError(f"{folder} holds no {EMA_NAME}: it was trained without `ema`")
        found = [folder / EMA_NAME]
    elif not found:
        raise ValueError(f"{folder} holds neither {WEIGHTS_NAME} nor {_DEEPSPEED_NAME}")
    loaded = build_from_folder(folder, config)
    _load_weights(loaded.model, found[0])
    return loaded


def _fetched(name: str) -> Path:
    """The folder of an open_clip model of the hub, in the hub's own cache."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    # Weights lie there in several kinds of files, of gigabytes each.
    for weights in (WEIGHTS_NAME, *_OTHER_WEIGHTS):
        wanted = [weights, "*.json", "*.txt", "*.model"]
        try:
            folder = Path(snapshot_download(name, allow_patterns=wanted))
        except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
            raise ValueError(f"hf-hub:{name} cannot be fetched: {one_line(error)}") from error
        if (folder / weights).is_file():
            break
    if not (folder / CONFIG_NAME).is_file():
        raise ValueError(f"hf-hub:{name} has no {CONFIG_NAME}; is it one for hf:{name}?")
    return folder


def _require_own_activation(arch: str, tag: str) -> None:
    """Refuses an architecture with QuickGELU for weights that were trained with GELU.

    open_clip warns and goes on, and the scores are several points too low. The other way round
    needs no care: `build` takes QuickGELU where the tag tells so.
    """
    plain = arch.removesuffix("-quickgelu")
    weights = get_pretrained_cfg(plain, tag)
    if plain != arch and weights and not weights.get("quick_gelu"):
        raise ValueError(
            f"{arch}:{tag}: these weights were trained with GELU, not QuickGELU; take {plain}:{tag}"
        )


def _read_config(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise _damaged(path, f"it is no JSON ({error})") from error
    config = value.get("model_cfg") if isinstance(value, dict) else None
    if not isinstance(config, dict):
        raise _damaged(path, "it has no 'model_cfg'")
    return config


def _load_weights(model: open_clip.CLIP, path: Path) -> None:
    try:
        if path.name == _DEEPSPEED_NAME:
            model.load_state_dict(_read_states(path))
        else:
            open_clip.load_checkpoint(model, str(path))
    except (EOFError, KeyError, pickle.UnpicklingError) as error:
        # A key is a byte of junk, and torch advises to do without weights_only.
        raise _damaged(path, "it is cut, or no file of weights") from error
    except (AttributeError, RuntimeError, SafetensorError) as error:
        raise _damaged(path, one_line(error)) from error


def _read_states(path: Path) -> dict[str, torch.Tensor]:
    try:
        # Written by us, and of plain containers and tensors alone, which weights_only admits.
        states = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:
        # On junk it raises nearly anything, and advises to do without weights_only.
        raise _damaged(path, "it is cut, or no file of weights") from error
    module = states.get("module") if isinstance(states, dict) else None
    if not isinstance(module, dict):
        raise _damaged(path, "it has no 'module'")
    return {name.removeprefix("model."): tensor for name, tensor in module.items()}


def _damaged(path: Path, what: str) -> ValueError:
    return ValueError(f"{path} is damaged: {what}; copy or export it again")
