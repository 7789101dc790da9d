"""Which engine computes: chosen by name, or by what the features allow."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

import torch

from hnpretrain.losses.blocked import Blocked
from hnpretrain.losses.engines import Engine, accumulation_dtype
from hnpretrain.losses.oracle import Oracle

BACKENDS = ("blocked", "triton", "oracle")


def engine_for(
    backend: str, image: torch.Tensor, text: torch.Tensor, negative: torch.Tensor | None
) -> Engine:
    """The engine of that name; for `auto` Triton's where it takes such features, else `blocked`.

    Raises:
        ValueError: `triton` does not take such features, or is not installed.
    """
    if backend == "oracle":
        return Oracle()
    if backend == "triton" or (backend == "auto" and image.is_cuda):
        engine = _triton(image, [x for x in (text, negative) if x is not None])
        if engine is not None:
            return engine
        if backend == "triton":
            raise ValueError(
                "backend='triton' wants the package triton, features of fp32, bf16 or fp16 on a "
                "CUDA device (or TRITON_INTERPRET=1) and a width D that is a multiple of 16; got "
                f"image {tuple(image.shape)} of {image.dtype} and text of {text.dtype} on "
                f"{image.device}"
            )
    return Blocked()


def _triton(image: torch.Tensor, texts: Sequence[torch.Tensor]) -> Engine | None:
    if importlib.util.find_spec("triton") is None:
        return None
    if accumulation_dtype(image, *texts) != torch.float32:
        return None
    from hnpretrain.losses import kernels  # triton is slow to import, and not everywhere

    if not all(kernels.supported(image, text) for text in texts):
        return None
    # One switch for these products and torch's own, which the backward pass takes too.
    return kernels.TritonEngine(precision="tf32" if allows_tf32() else "ieee")


def allows_tf32() -> bool:
    """Whether torch may round the factors of fp32 matrix products to TF32 on CUDA devices."""
    matmul = torch.backends.cuda.matmul
    try:
        return bool(matmul.allow_tf32)
    except RuntimeError:  # torch refuses to answer once its newer setting was used
        return matmul.fp32_precision == "tf32"
