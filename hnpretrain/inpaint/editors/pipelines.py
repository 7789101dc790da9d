"""Inpainting pipelines of diffusers: which class, which weights, and loaded without trust.

A pipeline is a folder with a `model_index.json`, or its name on the hub. Weights come from
safetensors alone, nothing is unpickled, and a repository's own code is never run.
"""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import json
import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

INDEX_NAME = "model_index.json"
# What every pipeline here is told; what else it takes is found by its signature.
_REQUIRED = ("prompt", "image", "mask_image", "generator", "num_inference_steps", "output_type")
_HUB_NAME = re.compile(r"[\w.\-]+/[\w.\-]+")
# The files that decide what a pipeline does: weights, configs, vocabularies.
_SUFFIXES = (".safetensors", ".json", ".txt", ".model")
# Of weights and of the list of their shards, with the variant: model.fp16.safetensors,
# model.fp16-00001-of-00002.safetensors (before: model-00001-of-00002.fp16.safetensors),
# model.safetensors.index.fp16.json.
_SHARD = r"(?:-\d{5}-of-\d{5})?"
_WEIGHTS = re.compile(
    rf"[^.]+?{_SHARD}(?:\.(?P<weights>[^.]+?){_SHARD})?\.safetensors"
    r"|[^.]+\.safetensors\.index(?:\.(?P<index>[^.]+))?\.json"
)
# What diffusers, transformers and the hub's client raise for what is absent, broken or does not
# fit.
_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    ImportError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)
_READ_BYTES = 2**22


@dataclass(frozen=True)
class FoundPipeline:
    """A pipeline that is there, not yet loaded.

    Attributes:
        name: on the hub, or the folder's own.
        folder: where it is.
        class_name: of diffusers: `StableDiffusionInpaintPipeline`.
        accepts: names of what it can be told.
        weights: 32 hex digits that two pipelines share if those of their files that are loaded are
            equal.
        variant: of the files: `fp16`; or empty.
    """

    name: str
    folder: str
    class_name: str
    accepts: frozenset[str]
    weights: str
    variant: str


def find(model: str, variant: str = "", from_text_to_image: bool = False) -> FoundPipeline:
    """Looks a pipeline up; one of the hub is downloaded to the hub's own cache, unless it is there.

    Args:
        model: a folder that `save_pretrained` has written, or a name on the hub.
        variant: of the files, where there are several.
        from_text_to_image: take the inpainting class of a text-to-image pipeline's family.

    Raises:
        ValueError: diffusers is not installed; there is no such pipeline; it does not inpaint, or
            needs more than a photo, a mask and a prompt.
    """
    if importlib.util.find_spec("diffusers") is None:
        raise ValueError(
            f"{model}: the editor diffusion needs the package diffusers: "
            "pip install 'hnpretrain[inpaint]'"
        )
    folder = Path(model).expanduser()
    if not folder.is_dir():
        if not _HUB_NAME.fullmatch(model):
            raise ValueError(f"diffusion.model={model!r} is no folder, and no name on the hub")
        folder = _downloaded(model, variant)
        name = model
    else:
        name = folder.resolve().name
    cls = _class_of(model, folder, from_text_to_image)
    accepts = frozenset(inspect.signature(cls.__call__).parameters)
    weights = _weights_of(folder, variant)
    return FoundPipeline(name, str(folder), cls.__name__, accepts, weights, variant)


def load(found: FoundPipeline, dtype: str, device: str, safety_checker: bool) -> Any:
    """The pipeline on its device, in evaluation mode, silent.

    Args:
        dtype: of torch: `float16`.
        device: of torch: `cuda` is the process's current one.
        safety_checker: whether the pipeline's own, if it has one, is loaded.

    Raises:
        ValueError: files are missing, damaged or of another kind.
        torch.OutOfMemoryError: it does not fit the device.
    """
    import diffusers
    import torch

    cls = getattr(diffusers, found.class_name)
    options: dict[str, Any] = {}
    parts = inspect.signature(cls.__init__).parameters
    if not safety_checker:
        if "safety_checker" in parts:
            options["safety_checker"] = None
        if "requires_safety_checker" in parts:
            options["requires_safety_checker"] = False
    try:
        with _silent() as warnings:
            pipeline = cls.from_pretrained(
                found.folder,
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
                variant=found.variant or None,
                dtype=getattr(torch, dtype),
                **options,
            )
            _refuse_missing(warnings)
            pipeline.to(device)
    except torch.OutOfMemoryError:
        raise
    except _ERRORS as error:
        raise _not_loaded(found.folder, error) from error
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _downloaded(model: str, variant: str) -> Path:
    import diffusers

    try:
        return Path(
            diffusers.DiffusionPipeline.download(
                model, use_safetensors=True, variant=variant or None, trust_remote_code=False
            )
        )
    except _ERRORS as error:
        raise _not_loaded(model, error) from error


def _class_of(model: str, folder: Path, from_text_to_image: bool) -> Any:
    """The class of diffusers that inpaints with this folder's weights."""
    import diffusers

    try:
        name = json.loads((folder / INDEX_NAME).read_bytes())["_class_name"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ValueError(
            f"{model} is no pipeline of diffusers: its {INDEX_NAME} is not there or names no class"
        ) from error
    # A name that is not a plain one stands for code in the repository.
    cls = getattr(diffusers, name, None) if isinstance(name, str) else None
    if cls is None or not isinstance(cls, type) or not name.endswith("Pipeline"):
        raise ValueError(f"{model} is a {name}, which this diffusers does not know")
    sibling = None
    if not _inpaints(cls):
        sibling = _inpainting_sibling(name)
        if sibling is None:
            raise ValueError(
                f"{model} is a {name}, which does not inpaint: give a pipeline that takes "
                "image and mask_image, such as a StableDiffusionInpaintPipeline"
            )
        if not from_text_to_image:
            raise ValueError(
                f"{model} is a {name}, made for text to image: give an inpainting pipeline, or "
                f"diffusion.from_text_to_image=true takes its weights as a {sibling.__name__}"
            )
    chosen = sibling or cls
    more = _needs_more(chosen)
    if more:
        raise ValueError(f"{model} is a {chosen.__name__}, which also needs {', '.join(more)}")
    return chosen


def _inpaints(cls: Any) -> bool:
    return set(_REQUIRED) <= set(inspect.signature(cls.__call__).parameters)


def _needs_more(cls: Any) -> list[str]:
    """What it must be told beside all that we tell: a control image, say."""
    parameters = inspect.signature(cls.__call__).parameters
    told = {"self", *_REQUIRED}
    needed = [
        name
        for name, parameter in parameters.items()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
        and name not in told
    ]
    return [*needed, *({"control_image"} & parameters.keys() - set(needed))]


def _inpainting_sibling(name: str) -> Any:
    """The inpainting class of a text-to-image class's family, or None."""
    from diffusers.pipelines import auto_pipeline

    families = auto_pipeline.AUTO_TEXT2IMAGE_PIPELINES_MAPPING
    family = next((key for key, cls in families.items() if cls.__name__ == name), None)
    sibling = auto_pipeline.AUTO_INPAINT_PIPELINES_MAPPING.get(family or "")
    return sibling if sibling is not None and _inpaints(sibling) else None


def _weights_of(folder: Path, variant: str) -> str:
    """blake2b over names and bytes of what is loaded; a second or so a gigabyte."""
    digest = hashlib.blake2b(digest_size=16)
    for path in _loaded_files(folder, variant):
        digest.update(f"{path.relative_to(folder).as_posix()} {path.stat().st_size}\n".encode())
        with path.open("rb") as file:
            while data := file.read(_READ_BYTES):
                digest.update(data)
    return digest.hexdigest()


def _loaded_files(folder: Path, variant: str) -> list[Path]:
    """The index, and the files of its parts, but for weights of other variants.

    The hub's cache holds whatever was once downloaded of a pipeline. A part that has no weights of
    the variant is loaded from those of none, as diffusers does it.
    """
    index = folder / INDEX_NAME
    parts = [each[0] for each in json.loads(index.read_bytes()).items() if _is_part(*each)]
    files = [index]
    for part in sorted(parts):
        found: dict[str | None, list[Path]] = {}
        for path in (folder / part).rglob("*"):
            if path.suffix in _SUFFIXES and path.is_file():
                weights = _WEIGHTS.fullmatch(path.name)
                of_variant = (weights["weights"] or weights["index"] or "") if weights else None
                found.setdefault(of_variant, []).append(path)
        chosen = found.get(variant) or found.get("", [])
        files += sorted([*found.get(None, []), *chosen])
    return files


def _is_part(name: str, value: object) -> bool:
    """Whether an entry of the index is a folder here, with a library and a class."""
    if not name.isidentifier() or not isinstance(value, list):
        return False
    return all(isinstance(each, str) for each in value)


class _Kept(logging.Handler):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


@contextmanager
def _silent() -> Iterator[list[str]]:
    """No bars and no advice of diffusers and transformers while they load; their warnings."""
    from diffusers.utils import logging as of_diffusers
    from transformers.utils import logging as of_transformers

    libraries = (of_diffusers, of_transformers)
    before = [(each.get_verbosity(), each.is_progress_bar_enabled()) for each in libraries]
    kept = _Kept()
    for each in libraries:
        each.set_verbosity_warning()
        each.disable_default_handler()
        each.add_handler(kept)
        each.disable_progress_bar()
    try:
        yield kept.messages
    finally:
        for each, (verbosity, bars) in zip(libraries, before, strict=True):
            each.remove_handler(kept)
            each.enable_default_handler()
            each.set_verbosity(verbosity)
            if bars:
                each.enable_progress_bar()


def _refuse_missing(warnings: Sequence[str]) -> None:
    """Raises ValueError if weights are absent, for which both libraries draw random ones."""
    for warning in warnings:
        if "newly initialized" in warning:
            raise ValueError(f"some of its weights are not there: {warning}")


def _not_loaded(what: str, error: Exception) -> ValueError:
    words = " ".join(str(error).split()) or type(error).__name__
    return ValueError(f"diffusers cannot load {what}: {words[:300]}")
