"""The ways to encode texts that `bench text` runs: ours, and open_clip's."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import open_clip
import torch

from hnpretrain.data.texts import TextLayout, TextRows, Texts
from hnpretrain.models.texts import TextEncoder, choose_layout


@dataclass(frozen=True)
class Encoder:
    """One way to encode texts.

    Attributes:
        name: for the table.
        negatives: whether it encodes them, or captions alone.
        layout: of its texts.
        encode: gives (B, C, D) features of unit norm.
    """

    name: str
    negatives: bool
    layout: TextLayout
    encode: Callable[[Texts], torch.Tensor]

    def lay_out(self, token_BCL: torch.Tensor) -> Texts:
        """Its part of the texts, as it takes them."""
        token_BCL = token_BCL if self.negatives else token_BCL[:, :1]
        return self.layout.lay_out(token_BCL, torch.ones(token_BCL.shape[:2], dtype=torch.bool))


def encoders(
    model: open_clip.CLIP, negatives: bool, device: str, with_compiled: bool
) -> Iterator[Encoder]:
    """open_clip's, then ours: all that the model allows.

    Args:
        negatives: whether there are any; else open_clip's two ways are one.
        with_compiled: whether trees and the captions alone are to be there under torch.compile,
            too; left out where they cannot be.

    Raises:
        ValueError: the model needs its texts as they are.
    """
    padded = TextLayout("padded")

    def encode_text(texts: Texts) -> torch.Tensor:
        assert isinstance(texts, TextRows), texts
        return model.encode_text(texts.token_NL, normalize=True).unflatten(0, texts.place_BC.shape)

    with_compiled = with_compiled and obstacle_to_compilation(device) is None
    yield Encoder("open_clip, captions", False, padded, encode_text)
    if with_compiled:
        encode = torch.compile(encode_text)
        yield Encoder("open_clip, captions, compiled", False, padded, encode)
    if negatives:
        yield Encoder("open_clip, all", True, padded, encode_text)
    best = choose_layout(model)
    if best.layout.kind == "padded":
        raise ValueError(f"there is nothing to compare: {best.reason}")
    if best.layout.kind == "trees":
        attentions = ("sdpa", "flex") if device == "cuda" else ("sdpa",)
        for attention in attentions:
            name = f"ours, trees, {attention}" if len(attentions) > 1 else "ours, trees"
            yield Encoder(name, True, best.layout, TextEncoder(model, attention))
        if with_compiled:
            encode = torch.compile(TextEncoder(model).__call__, dynamic=True)
            yield Encoder("ours, trees, compiled", True, best.layout, encode)
    trimmed = choose_layout(model, "trimmed").layout
    yield Encoder("ours, trimmed", True, trimmed, TextEncoder(model))


def obstacle_to_compilation(device: str) -> str | None:
    """What torch.compile lacks on this machine; None if nothing."""
    if device == "cuda":
        return None  # torch for CUDA brings Triton
    compiler = os.environ.get("CXX", "g++")  # as torch looks for it
    return None if shutil.which(compiler) else f"there is no C++ compiler {compiler!r}"
