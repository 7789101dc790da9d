"""What is refused: inputs that do not fit each other, and ranks that do not agree."""

from __future__ import annotations

import difflib
import math
import zlib
from collections.abc import Collection, Mapping

import torch

from hnpretrain.losses.distributed import Ranks
from hnpretrain.losses.engines import accumulation_dtype
from hnpretrain.losses.exchange import COMMS
from hnpretrain.losses.features import TokenFeatures

SCOPES = ("own", "local", "global", "none")
FEATURE_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def check_inputs(
    image: torch.Tensor,
    text: torch.Tensor,
    negative: torch.Tensor | None,
    mask: torch.Tensor | None,
    logit_scale: torch.Tensor | float | None,
) -> torch.Tensor:
    """Checks this rank's inputs against each other; returns the scale as a 0-dim tensor."""
    if image.ndim != 2 or image.shape != text.shape or image.numel() == 0:
        raise ValueError(
            f"image {_shape(image)} and text {_shape(text)} must have one shape (b, D), with at "
            "least one row"
        )
    b, D = image.shape
    if negative is not None and (
        negative.ndim != 3 or negative.shape[0] != b or negative.shape[2] != D
    ):
        raise ValueError(
            f"negative {_shape(negative)} must have shape (b, K, D) with b={b} and D={D}, as image "
            f"{_shape(image)} has"
        )
    if mask is not None:
        if negative is None:
            raise ValueError(f"negative_mask {_shape(mask)} was given without negatives")
        if mask.dtype != torch.bool or mask.shape != negative.shape[:2]:
            raise ValueError(
                f"negative_mask {_shape(mask)} of {mask.dtype} must be (b, K) of torch.bool for "
                f"negative {_shape(negative)}"
            )
    for name, x in (("image", image), ("text", text), ("negative", negative)):
        if x is not None and x.dtype not in FEATURE_DTYPES:
            allowed = ", ".join(str(dtype) for dtype in FEATURE_DTYPES)
            raise ValueError(f"{name} {_shape(x)} is {x.dtype}; it must be one of {allowed}")

    dtype = accumulation_dtype(image, text, negative)
    if isinstance(logit_scale, torch.Tensor):
        if logit_scale.ndim != 0 or not logit_scale.is_floating_point():
            raise ValueError(
                f"logit_scale {_shape(logit_scale)} of {logit_scale.dtype} must be a 0-dim "
                "floating-point tensor: the multiplier s itself"
            )
        scale = logit_scale
    elif logit_scale is None:
        raise ValueError("logit_scale is missing: give the multiplier s, as in logit_scale=100.0")
    else:
        if not (math.isfinite(logit_scale) and logit_scale > 0):
            raise ValueError(f"logit_scale={logit_scale!r} must be a finite positive number")
        scale = torch.full((), logit_scale, dtype=dtype, device=image.device)

    _on_one_device(
        image, {"text": text, "negative": negative, "negative_mask": mask, "logit_scale": scale}
    )
    return scale


_AGREED = {
    "scope": "give every rank the same one",
    "comm": "give every rank the same one",
    "other settings of the loss": "give every rank the same form, label smoothing and terms",
    "batch b": "drop or pad the last partial batch",
    "width D": "use one model on all ranks",
    "text dtype": "use one precision on all ranks",
    "accumulation dtype": "use one precision on all ranks",
    "whether image needs a gradient": "lock the image tower on all ranks or on none",
    "whether text needs a gradient": "lock the text tower on all ranks or on none",
    "negatives per caption K": "pad to one K and mask, as negatives travel between ranks",
    "negative dtype": "use one precision on all ranks",
    "whether negatives need a gradient": "lock the text tower on all ranks or on none",
}
"""What must be equal on all ranks, lest a collective hang or mix up shapes; what to do if not."""


def one_of(name: str, value: str, allowed: Collection[str]) -> None:
    """Raises ValueError, with the nearest right one, if the value is none of those allowed."""
    if value not in allowed:
        near = difflib.get_close_matches(str(value), allowed, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{name}={value!r} is not one of {', '.join(allowed)}{hint}")


def check_more(
    image: torch.Tensor,
    negatives: int,
    bias: torch.Tensor | None,
    parts: TokenFeatures | None,
) -> None:
    """Checks the inputs that few losses need; K is the number of negatives."""
    if bias is not None and not (
        isinstance(bias, torch.Tensor) and bias.ndim == 0 and bias.is_floating_point()
    ):
        raise ValueError(f"logit_bias={bias!r} must be a 0-dim floating-point tensor")
    _on_one_device(image, {"logit_bias": bias})
    if parts is None:
        return
    b, L = image.shape[0], parts.token_mask.shape[-1]
    if (
        parts.patches.ndim != 3
        or parts.patches.shape[0] != b
        or parts.tokens.shape != (b, 1 + negatives, L, parts.patches.shape[2])
        or parts.token_mask.shape != (b, 1 + negatives, L)
        or parts.token_mask.dtype != torch.bool
    ):
        raise ValueError(
            f"patches {_shape(parts.patches)}, tokens {_shape(parts.tokens)} and token_mask "
            f"{_shape(parts.token_mask)} of {parts.token_mask.dtype} must be (b, P, D), "
            f"(b, 1 + K, L, D) and (b, 1 + K, L) of torch.bool for b={b} and K={negatives}"
        )
    _on_one_device(
        image, {"patches": parts.patches, "tokens": parts.tokens, "token_mask": parts.token_mask}
    )


def _on_one_device(image: torch.Tensor, others: Mapping[str, torch.Tensor | None]) -> None:
    for name, x in others.items():
        if x is not None and x.device != image.device:
            raise ValueError(
                f"{name} {_shape(x)} is on {x.device}, image {_shape(image)} on {image.device}; "
                "move them to one device"
            )


def refuse(ranks: Ranks) -> None:
    """Tells the other ranks, which wait for this one's word, that its inputs were refused."""
    ranks.exchange([0] * (1 + len(_AGREED)))


def check_agreement(
    ranks: Ranks,
    image: torch.Tensor,
    text: torch.Tensor,
    negative: torch.Tensor | None,
    negatives_travel: bool,
    scope: str,
    comm: str,
    settings: str,
) -> None:
    """Raises ValueError on every rank if one of them failed its checks or has other shapes."""
    if ranks.size == 1:
        return
    travels = negative if negatives_travel else None
    mine = {
        "scope": SCOPES.index(scope),
        "comm": COMMS.index(comm),
        "other settings of the loss": zlib.crc32(settings.encode()),
        "batch b": image.shape[0],
        "width D": image.shape[1],
        "text dtype": FEATURE_DTYPES.index(text.dtype),
        "accumulation dtype": FEATURE_DTYPES.index(accumulation_dtype(image, text, negative)),
        "whether image needs a gradient": int(_needs_grad(image)),
        "whether text needs a gradient": int(_needs_grad(text)),
        "negatives per caption K": 0 if travels is None else travels.shape[1],
        "negative dtype": 0 if travels is None else FEATURE_DTYPES.index(travels.dtype),
        "whether negatives need a gradient": int(travels is not None and _needs_grad(travels)),
    }
    assert list(mine) == list(_AGREED)
    table = ranks.exchange([1, *mine.values()])
    failed = [rank for rank, row in enumerate(table) if not row[0]]
    if failed:
        raise ValueError(f"the loss's inputs were refused on rank(s) {failed}; see the error there")
    for place, (what, remedy) in enumerate(_AGREED.items(), start=1):
        values = [row[place] for row in table]
        if len(set(values)) > 1:
            shown: list[object] = list(values)
            if what in ("scope", "comm"):
                shown = [(SCOPES if what == "scope" else COMMS)[value] for value in values]
            elif what == "other settings of the loss":  # known by a checksum
                shown = ["as here" if value == mine[what] else "other" for value in values]
            elif what.endswith("dtype"):
                shown = [FEATURE_DTYPES[value] for value in values]
            raise ValueError(f"the ranks differ in {what}: {shown} (rank 0 first); {remedy}")


def _needs_grad(x: torch.Tensor) -> bool:
    return torch.is_grad_enabled() and x.requires_grad


def _shape(x: torch.Tensor) -> str:
    return str(tuple(x.shape))
