"""Which of two captions a model prefers for a photo, and for the picture that was made of it."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from hnpretrain.config import require_one_of

if TYPE_CHECKING:
    from torch import Tensor

    from hnpretrain.models import LoadedModel

DEVICES = ("auto", "cpu", "cuda")


class Preference:
    """A contrastive model that is asked; it is loaded when it is first needed.

    Args:
        source: what `hnpretrain eval` takes: a folder of a run, checkpoint or export, open_clip's
            `ARCH:TAG`, or `hf:NAME`.
        device: `auto` takes a GPU if there is one.
    """

    def __init__(self, source: str, device: str = "auto") -> None:
        if not source:
            raise ValueError("a model must be named: a checkpoint, an export, ARCH:TAG or hf:NAME")
        require_one_of("device", device, DEVICES)
        self.source = source
        self._device = device
        # A proposal's candidates come one after the other: photo and captions stay the same.
        self._photo: tuple[bytes, Tensor] | None = None
        self._texts: tuple[tuple[str, str], Tensor] | None = None

    def __reduce__(self) -> tuple[type[Preference], tuple[str, str]]:
        return Preference, (self.source, self._device)  # each process loads its own

    @cached_property
    def _model(self) -> LoadedModel:
        from hnpretrain.models import load

        model = load(self.source, self._found_device())
        model.model.eval()
        return model

    def verify(self) -> None:
        """Loads the model, and lets it go: a wrong name is found before any work is done.

        On the CPU, since GPUs are for the processes that make the pictures.

        Raises:
            ValueError: it cannot be loaded, or the device is not there.
        """
        from hnpretrain.models import load

        self._found_device()
        load(self.source, "cpu")

    def _found_device(self) -> str:
        import torch

        is_there = torch.cuda.is_available()
        if self._device == "cuda" and not is_there:
            raise ValueError("device=cuda: torch sees no CUDA device here; use device=cpu")
        if self._device == "auto":
            return "cuda" if is_there else "cpu"
        return self._device

    def margins(
        self, photo_HWC: np.ndarray, image_HWC: np.ndarray, caption: str, new_caption: str
    ) -> tuple[float, float]:
        """By how much the photo prefers its caption, and the picture the new one.

        Args:
            photo_HWC: RGB, uint8.
            image_HWC: RGB, uint8.
            caption: of the photo.
            new_caption: of the picture.

        Returns:
            cos(photo, caption) - cos(photo, new_caption) and
            cos(image, new_caption) - cos(image, caption), each in [-2, 2].

        Raises:
            ValueError: the model cannot be loaded, or gives features that are not finite.
        """
        texts_2D = self._texts_2D(caption, new_caption)
        photo_2 = (texts_2D @ self._photo_D(photo_HWC)).tolist()
        image_2 = (texts_2D @ self._image_D(image_HWC)).tolist()
        return photo_2[0] - photo_2[1], image_2[1] - image_2[0]

    def _photo_D(self, photo_HWC: np.ndarray) -> Tensor:
        content = f"{photo_HWC.shape} ".encode() + photo_HWC.tobytes()
        if self._photo is None or self._photo[0] != content:
            self._photo = content, self._image_D(photo_HWC)
        return self._photo[1]

    def _image_D(self, image_HWC: np.ndarray) -> Tensor:
        import torch
        from PIL import Image

        pixels_CHW = self._model.preprocess_val(Image.fromarray(image_HWC))
        with torch.inference_mode():
            return self._unit(self._model.model.encode_image(self._on_device(pixels_CHW[None])))[0]

    def _texts_2D(self, caption: str, new_caption: str) -> Tensor:
        import torch

        texts = (caption, new_caption)
        if self._texts is None or self._texts[0] != texts:
            tokens_2L = self._on_device(self._model.tokenizer(list(texts)))
            with torch.inference_mode():
                self._texts = texts, self._unit(self._model.model.encode_text(tokens_2L))
        return self._texts[1]

    def _on_device(self, values: Any) -> Tensor:
        return values.to(next(self._model.model.parameters()).device)

    def _unit(self, features_BD: Tensor) -> Tensor:
        from torch.nn import functional

        unit_BD = functional.normalize(features_BD.float(), dim=-1).cpu()
        if not unit_BD.isfinite().all():
            raise ValueError(f"{self.source}: the model's features are not finite; use another one")
        return unit_BD
