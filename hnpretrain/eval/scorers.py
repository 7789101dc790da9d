"""Scorers: what gives an item's images and captions their scores.

`cosine` is the model's own score, and what published numbers are. `random` knows nothing: its
scores lie at chance, which shows that chance and standard errors are what they are said to be.
`comclip` (comclip.py) weighs parts of the image by how well they fit the words.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from hnpretrain.eval.encode import Encoder
from hnpretrain.eval.items import Item, by_shape

Scores = dict[tuple[int, int], Tensor]
"""Of the items of each shape (I, C), in order: N x I x C, float32."""


_ITEMS = 4096  # whose products are there at a time


class Scorer(Protocol):
    """Scores items; every one of them against nothing but itself."""

    name: str

    def scores(self, items: Sequence[Item], encoder: Encoder) -> Scores:
        """Of each item's images with its captions, by the items' shape."""
        ...

    def text_scores(self, items: Sequence[Item], encoder: Encoder) -> Scores:
        """Of each item's captions with one another: N x C x C, by the items' shape."""
        ...

    def blind_scores(self, items: Sequence[Item], encoder: Encoder) -> Scores:
        """Of each item's captions with no image: N x 1 x C, by the items' shape."""
        ...


class Cosine:
    """The cosine of the model's features.

    Products are summed in float64 and rounded to float32, so that equal features tie. Without an
    image its place is taken by the mean of all the benchmark's images, of which each counts once:
    whatever makes the model prefer a caption then lies in the caption.
    """

    name = "cosine"

    def scores(self, items: Sequence[Item], encoder: Encoder) -> Scores:
        image_ND = encoder.encode_images(image for item in items for image in item.images)
        text_MD = _encode_captions(items, encoder)
        images = _rows(items, [len(item.images) for item in items])
        captions = _rows(items, [len(item.captions) for item in items])
        return {
            shape: cosine_matrices(image_ND[images[shape]], text_MD[captions[shape]])
            for shape in images
        }

    def text_scores(self, items: Sequence[Item], encoder: Encoder) -> Scores:
        text_MD = _encode_captions(items, encoder)
        captions = _rows(items, [len(item.captions) for item in items])
        return {
            shape: cosine_matrices(text_MD[rows_NC], text_MD[rows_NC])
            for shape, rows_NC in captions.items()
        }

    def blind_scores(self, items: Sequence[Item], encoder: Encoder) -> Scores:
        distinct = {image.identity: image for item in items for image in item.images}
        mean_D = encoder.encode_images(distinct.values()).double().mean(dim=0)
        blind_D = functional.normalize(mean_D, dim=0)
        text_MD = _encode_captions(items, encoder)
        captions = _rows(items, [len(item.captions) for item in items])
        return {
            shape: cosine_matrices(blind_D.expand(len(rows_NC), 1, -1), text_MD[rows_NC])
            for shape, rows_NC in captions.items()
        }


class Random:
    """Independent standard normal scores, always the same for the same item and seed."""

    name = "random"

    def __init__(self, seed: int = 0) -> None:
        self._seed = seed

    def scores(self, items: Sequence[Item], encoder: Encoder) -> Scores:
        del encoder
        return self._drawn("images", items, {shape: shape for shape in by_shape(items)})

    def text_scores(self, items: Sequence[Item], encoder: Encoder) -> Scores:
        del encoder
        shapes = {shape: (shape[1], shape[1]) for shape in by_shape(items)}
        drawn = self._drawn("captions", items, shapes)
        return {shape: s_NCC + s_NCC.transpose(1, 2) for shape, s_NCC in drawn.items()}

    def blind_scores(self, items: Sequence[Item], encoder: Encoder) -> Scores:
        del encoder
        return self._drawn("blind", items, {shape: (1, shape[1]) for shape in by_shape(items)})

    def _drawn(
        self, what: str, items: Sequence[Item], sizes: dict[tuple[int, int], tuple[int, int]]
    ) -> Scores:
        return {
            shape: torch.stack(
                [
                    self._of_item(f"{self._seed} {what} {items[row].name}", sizes[shape])
                    for row in rows
                ]
            )
            for shape, rows in by_shape(items).items()
        }

    @staticmethod
    def _of_item(name: str, size: tuple[int, int]) -> Tensor:
        seed = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big")
        drawn = np.random.default_rng(seed).standard_normal(size, dtype=np.float32)
        return torch.from_numpy(drawn)


def make_scorer(name: str, regions: Path | None) -> Scorer:
    """The scorer of that name.

    Args:
        regions: a file for `comclip`, which needs it.
    """
    if (name == "comclip") != (regions is not None):
        raise ValueError("--regions goes with --scorer comclip, and that does not go without it")
    if regions is not None:
        # It builds on this module.
        from hnpretrain.eval.comclip import ComClip, read_regions

        return ComClip(read_regions(regions), str(regions))
    return Random() if name == "random" else Cosine()


def cosine_matrices(first_NID: Tensor, second_NCD: Tensor) -> Tensor:
    """Cosines of unit vectors, N x I x C, summed in float64, as float32."""
    parts = zip(first_NID.split(_ITEMS), second_NCD.split(_ITEMS), strict=True)
    return torch.cat([_cosines(*part) for part in parts])


def _cosines(first_NID: Tensor, second_NCD: Tensor) -> Tensor:
    # One product at a time, not a matrix product, which may sum two equal pairs in two orders.
    first, second = first_NID.double(), second_NCD.double()
    columns = [(first * second[:, c, None]).sum(-1) for c in range(second.shape[1])]
    return torch.stack(columns, dim=-1).float()


def _encode_captions(items: Sequence[Item], encoder: Encoder) -> Tensor:
    return encoder.encode_texts(caption for item in items for caption in item.captions)


def _rows(items: Sequence[Item], counts: Sequence[int]) -> dict[tuple[int, int], Tensor]:
    """Of the features of all items, one after the other: which rows each item has, by shape."""
    starts = np.cumsum([0, *counts])
    return {
        shape: torch.stack([torch.arange(starts[row], starts[row + 1]) for row in rows])
        for shape, rows in by_shape(items).items()
    }
