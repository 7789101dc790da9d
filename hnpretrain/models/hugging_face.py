"""CLIP, SigLIP and SigLIP 2 of Hugging Face's transformers, as the evaluation takes models.

Three things differ from open_clip's models:

- Captions are padded to the text tower's length on the right and given without an attention mask.
  CLIP's tower reads the end token and looks only to the left; SigLIP's reads the last token, and
  was trained to look at the padding.
- SigLIP and SigLIP 2 were trained on lower-case text. Some of their tokenizers see to it, others
  (Gemma's, which SigLIP 2 of a fixed size comes with) do not, so it is done here.
- SigLIP 2's NaFlex models take each image in its own aspect ratio: patches, a mask that tells which
  of them are padding, and the numbers of rows and columns. They travel in one tensor.

The package transformers comes with `pip install 'hnpretrain[hf]'`.
"""

from __future__ import annotations

import importlib.util
import json
import pickle
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor, nn

from hnpretrain.models.build import LoadedModel, one_line

HUB = "hf:"
"""What stands before the name of a model on the hub."""
CONFIG_NAME = "config.json"
FAMILIES = ("clip", "siglip", "siglip2")
"""Of transformers' model types."""

# What transformers raises for files that are absent, broken or do not fit.
_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    ImportError,
    LookupError,
    OSError,
    RuntimeError,
    SafetensorError,
    TypeError,
    ValueError,
    pickle.UnpicklingError,
)
_MASK_AND_SIZE = 3  # columns behind the pixels of a NaFlex model's patches


class HuggingFaceClip(nn.Module):
    """The towers of a CLIPModel, SiglipModel or Siglip2Model under open_clip's names.

    Args:
        model: with `get_image_features` and `get_text_features`.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def encode_image(self, pixels: Tensor) -> Tensor:
        """B x D features, as long as they come.

        Args:
            pixels: B x C x H x W; of a NaFlex model, B x P x (patch + 3), see PatchTransform.
        """
        if self.model.config.model_type != "siglip2":
            return self.model.get_image_features(pixel_values=pixels).pooler_output
        return self.model.get_image_features(
            pixel_values=pixels[..., :-_MASK_AND_SIZE],
            pixel_attention_mask=pixels[..., -_MASK_AND_SIZE].long(),
            spatial_shapes=pixels[:, 0, 1 - _MASK_AND_SIZE :].long(),
        ).pooler_output

    def encode_text(self, tokens_BL: Tensor) -> Tensor:
        """B x D features, as long as they come."""
        return self.model.get_text_features(input_ids=tokens_BL).pooler_output


class PixelTransform:
    """A processor's transform of one image: C x H x W pixels, float32."""

    def __init__(self, processor: Any) -> None:
        self._processor = processor

    def __call__(self, image: Image.Image) -> Tensor:
        return self._processed(image)["pixel_values"][0]

    def __repr__(self) -> str:
        """All its settings: features that are kept are told by it."""
        told = json.dumps(self._processor.to_dict(), sort_keys=True, default=str)
        return f"{type(self._processor).__name__}({told})"

    def _processed(self, image: Image.Image) -> Any:
        return self._processor(images=image.convert("RGB"), return_tensors="pt")


class PatchTransform(PixelTransform):
    """A NaFlex processor's: P x (patch + 3), float32.

    Behind each patch's pixels stand whether it is one, and not padding, and the image's numbers of
    rows and columns of patches.
    """

    def __call__(self, image: Image.Image) -> Tensor:
        found = self._processed(image)
        patches_PV = found["pixel_values"][0]
        mask_P1 = found["pixel_attention_mask"][0, :, None]
        size_P2 = found["spatial_shapes"][:1].expand(len(patches_PV), -1)
        return torch.cat((patches_PV, mask_P1, size_P2), dim=-1).float()


class PaddedTokenizer:
    """Captions to token ids of one length.

    Args:
        tokenizer: transformers' own.
        context_length: L; longer captions are cut.
        lower: whether to write them in lower case first.
    """

    def __init__(self, tokenizer: Any, context_length: int, lower: bool) -> None:
        self._tokenizer = tokenizer
        self._lower = lower
        self.context_length = context_length

    def __call__(self, texts: list[str] | str) -> Tensor:
        """n x L int64 ids of n texts (or of one)."""
        texts = [texts] if isinstance(texts, str) else texts
        tokens = self._tokenizer(
            [text.lower() for text in texts] if self._lower else list(texts),
            padding="max_length",
            padding_side="right",
            truncation=True,
            max_length=self.context_length,
            return_tensors="pt",
        )
        return tokens["input_ids"]


def is_saved(folder: Path) -> bool:
    """Whether it looks like a folder that transformers' `save_pretrained` has written."""
    return (folder / CONFIG_NAME).is_file()


def load(source: str) -> LoadedModel:
    """Loads a model with its processor, float32, on the CPU.

    Args:
        source: a folder of `save_pretrained`, of the model and of its processor, or a name on the
            hub, which is downloaded to transformers' own cache unless it is there.

    Raises:
        ValueError: transformers is not installed, or finds no such model; it is of another family;
            its weights or its processor are not there, or do not fit.
    """
    if importlib.util.find_spec("transformers") is None:
        raise ValueError(
            f"{source}: a Hugging Face model needs the package transformers: "
            "pip install 'hnpretrain[hf]'"
        )
    import transformers

    try:
        # A repository's own code is never run.
        config = transformers.AutoConfig.from_pretrained(source, trust_remote_code=False)
        if config.model_type not in FAMILIES:
            raise ValueError(
                f"its model_type is {config.model_type!r}; {', '.join(FAMILIES)} are evaluated"
            )
        model, told = transformers.AutoModel.from_pretrained(
            source, config=config, dtype=torch.float32, output_loading_info=True
        )
        if told["missing_keys"]:
            missing = sorted(told["missing_keys"])
            raise ValueError(f"{len(missing)} of its weights are not there, such as {missing[0]}")
        processor = transformers.AutoProcessor.from_pretrained(source, trust_remote_code=False)
        if not hasattr(processor, "image_processor"):
            raise ValueError("it has no preprocessor_config.json: save the processor beside it")
        tokenizer = _tokenizer(processor.tokenizer, config)
    except _ERRORS as error:
        raise ValueError(f"transformers cannot load {source}: {one_line(error)}") from error
    transform = PatchTransform if config.model_type == "siglip2" else PixelTransform
    preprocess = transform(processor.image_processor)
    wrapped = cast(Any, HuggingFaceClip(model.eval()))
    return LoadedModel(wrapped, config.to_dict(), preprocess, preprocess, tokenizer, source, "")


def _tokenizer(tokenizer: Any, config: Any) -> PaddedTokenizer:
    text = config.text_config
    length = min(text.max_position_embeddings, tokenizer.model_max_length)
    padded = PaddedTokenizer(tokenizer, length, lower=config.model_type != "clip")
    ids = padded(["a"])[0]
    # 2 stands in old configs, for which transformers takes the highest id.
    if config.model_type == "clip" and text.eos_token_id not in (2, *ids.tolist()):
        # The tower would read the first token, which is the same for all captions.
        raise ValueError(
            f"its tokenizer ends no text with text_config.eos_token_id={text.eos_token_id}"
        )
    if int(ids.max()) >= text.vocab_size:
        raise ValueError(f"its tokenizer gives id {int(ids.max())}, of {text.vocab_size} known")
    return padded
