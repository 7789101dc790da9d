"""Masks of whatever a noun names, from CLIPSeg; and the settings that choose where masks come from.

CLIPSeg: Lueddecke and Ecker, "Image Segmentation Using Text and Image Prompts", CVPR 2022. The
package transformers, which has it, comes with `pip install 'hnpretrain[hf]'`.
"""

from __future__ import annotations

import importlib.util
import pickle
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hnpretrain.config import require_one_of
from hnpretrain.inpaint.masks import InstanceMasks, MaskFolder, Masks, Thing, check_mask
from hnpretrain.inpaint.photos import Photo
from hnpretrain.inpaint.regions import Size
from hnpretrain.shards.images import decode_image

if TYPE_CHECKING:
    import torch

KINDS = ("instances", "folder", "clipseg")
_NOUN = "{noun}"
# What transformers raises for files that are absent, broken or do not fit.
_LOADING_ERRORS = (
    AttributeError,
    EOFError,
    ImportError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    pickle.UnpicklingError,
)


@dataclass
class MaskSettings:
    """Where masks come from.

    Attributes:
        kind: `instances` (COCO instances), `folder` (a folder of PNGs) or `clipseg` (a model that
            finds what a noun names).
        path: for `instances`, a COCO instances json, or empty for the `instances` of the samples'
            own metadata; for `folder`, the folder; for `clipseg`, a folder of `save_pretrained` or
            a name on the hub, such as CIDAS/clipseg-rd64-refined.
        device: for `clipseg`: `auto` (a GPU if there is one), `cpu`, `cuda`, `cuda:1`, ...
        threshold: for `clipseg`, the probability from which on a pixel is on the thing.
        prompt: for `clipseg`, what the model is asked, with {noun} for the noun.
        least_component: for `clipseg`, the least share of the photo that a thing has; connected
            pixels of less are noise.
    """

    kind: str = "instances"
    path: str = ""
    device: str = "auto"
    threshold: float = 0.5
    prompt: str = "a photo of a {noun}"
    least_component: float = 0.005

    def __post_init__(self) -> None:
        require_one_of("masks.kind", self.kind, KINDS)
        if self.kind != "instances" and not self.path:
            what = "a folder of PNGs" if self.kind == "folder" else "a CLIPSeg model"
            raise ValueError(f"masks.path is empty: masks.kind={self.kind} needs {what}")
        if not 0 < self.threshold < 1:
            raise ValueError(f"masks.threshold={self.threshold}: between 0 and 1")
        if _NOUN not in self.prompt:
            raise ValueError(f"masks.prompt={self.prompt!r}: write {_NOUN} where the noun belongs")
        if not 0 <= self.least_component < 1:
            raise ValueError(f"masks.least_component={self.least_component}: 0 or more, below 1")


def masks_of(settings: MaskSettings) -> Masks:
    """The masks that the settings ask for.

    Raises:
        ValueError: what `path` names is not there, or of another form; of a model, only where
            that can be seen without loading it.
        OSError: storage failed.
    """
    if settings.kind == "instances":
        return InstanceMasks(settings.path)
    if settings.kind == "folder":
        return MaskFolder(settings.path)
    return ClipSegMasks(
        settings.path,
        device=settings.device,
        threshold=settings.threshold,
        prompt=settings.prompt,
        least_component=settings.least_component,
    )


class ClipSegMasks(Masks):
    """What CLIPSeg finds for a noun: each connected region (of 8 neighbors) is a thing.

    So things that touch are one, and one with a pole before it is two. Which category a thing has
    the model does not say: it is the noun. The model is loaded when it is first asked.

    Args:
        path, device, threshold, prompt, least_component: see MaskSettings.

    Raises:
        ValueError: transformers is not installed, there is no such folder or device, or, when
            first asked, no such model.
    """

    def __init__(
        self, path: str, *, device: str, threshold: float, prompt: str, least_component: float
    ) -> None:
        if importlib.util.find_spec("transformers") is None:
            raise ValueError(
                "masks.kind=clipseg needs the package transformers: pip install 'hnpretrain[hf]'"
            )
        # What begins so, or goes deeper than OWNER/NAME, is no name on the hub.
        if not Path(path).is_dir() and (path.startswith(("/", ".", "~")) or path.count("/") > 1):
            raise ValueError(f"masks.path={path!r} is not a folder")
        self._path = path
        self._device = _device(device)
        self._threshold = threshold
        self._prompt = prompt
        self._least_component = least_component
        self._model: _Model | None = None
        # Captions of a photo often share nouns, and photos come one by one.
        self._photo: Photo | None = None
        self._found: dict[str, list[np.ndarray]] = {}

    def things(
        self,
        photo: Photo,
        size: Size,
        noun: str,
        categories: Collection[str],  # noqa: ARG002 (the model knows none)
    ) -> list[Thing]:
        if photo is not self._photo:
            self._photo, self._found = photo, {}
        if noun not in self._found:
            self._found[noun] = self._components(photo, size, noun)
        masks = self._found[noun]
        for mask_HW in masks:
            check_mask(mask_HW)
        return [Thing(noun, mask_HW) for mask_HW in masks]

    def _components(self, photo: Photo, size: Size, noun: str) -> list[np.ndarray]:
        """mask_HW of each, the largest first."""
        import cv2

        if self._model is None:
            self._model = _Model(self._path, self._device)
        probability_HW = self._model.probability(photo, size, self._prompt.replace(_NOUN, noun))
        found_HW = (probability_HW >= self._threshold).astype(np.uint8)
        count, labels_HW, stats, _ = cv2.connectedComponentsWithStats(found_HW, connectivity=8)
        areas = stats[:, cv2.CC_STAT_AREA]
        least = max(1.0, self._least_component * found_HW.size)
        large = [label for label in range(1, count) if areas[label] >= least]  # 0 is the ground
        return [labels_HW == label for label in sorted(large, key=lambda label: -areas[label])]


class _Model:
    """CLIPSeg and its processor, float32."""

    def __init__(self, path: str, device: torch.device) -> None:
        self._path = path
        self._device = device
        try:
            self._model, self._processor = _load(path)
        except _LOADING_ERRORS as error:
            raise ValueError(
                f"masks.path={path!r}: transformers cannot load it as CLIPSeg: "
                f"{' '.join(str(error).split()) or type(error).__name__:.300}"
            ) from error
        self._model.to(device)

    def probability(self, photo: Photo, size: Size, prompt: str) -> np.ndarray:
        """probability_HW of each pixel of the photo to be on what the prompt names, float32."""
        import torch

        width, height = size
        image = decode_image(photo.image, width * height)
        inputs = self._processor(
            text=[prompt], images=[image], truncation=True, return_tensors="pt"
        ).to(self._device)
        with torch.inference_mode():
            logits = self._model(**inputs).logits
            # The processor squeezes the whole photo into the model's square.
            probability_11HW = torch.nn.functional.interpolate(
                logits.sigmoid().reshape(1, 1, *logits.shape[-2:]),
                size=(height, width),
                mode="bilinear",
                align_corners=False,
            )
        if not probability_11HW.isfinite().all():
            raise ValueError(f"masks.path={self._path!r}: the model answers NaN")
        return probability_11HW[0, 0].cpu().numpy()


def _load(path: str) -> tuple[Any, Any]:
    import torch
    import transformers
    from safetensors import SafetensorError

    try:
        # A repository's own code is never run.
        config = transformers.AutoConfig.from_pretrained(path, trust_remote_code=False)
        if config.model_type != "clipseg":
            raise ValueError(f"its model_type is {config.model_type!r}, not 'clipseg'")
        kind: Any = transformers.CLIPSegForImageSegmentation  # which is typed as one result
        model, told = kind.from_pretrained(
            path, config=config, dtype=torch.float32, output_loading_info=True
        )
    except SafetensorError as error:
        raise ValueError(f"its weights are damaged: {error}") from error
    if missing := sorted(told["missing_keys"]):
        raise ValueError(f"{len(missing)} of its weights are not there, such as {missing[0]}")
    processor = transformers.CLIPSegProcessor.from_pretrained(path)
    # Without its files, transformers makes up a tokenizer of two words, and says nothing.
    if set(processor.tokenizer.get_vocab().values()) <= set(processor.tokenizer.all_special_ids):
        raise ValueError("its tokenizer knows no words: tokenizer.json is not there")
    return model.eval(), processor


def _device(name: str) -> torch.device:
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"masks.device={name!r}: auto, cpu, cuda or cuda:NUMBER") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"masks.device={name!r}: torch sees {torch.cuda.device_count()} such here")
    return device
