"""A model's towers as two functions: images to unit vectors, captions to unit vectors.

1. Distinct images, and captions distinct to the tokenizer, are found, so that each is encoded once
   and equal ones tie to the last bit.
2. Images are opened and transformed by threads, one batch ahead of the model.
3. A tower encodes batch by batch, without gradients, in eval mode and in its own precision.
4. Features are normalised in float32 and checked; the rows are laid out as they were asked for.

Memory is two batches of pixels and the features; images may come from a generator. Several
processes can share the batches (`Share`); each then has all features.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Protocol, TypeVar

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from hnpretrain.eval.images import ImageSource

T = TypeVar("T")


class Share(Protocol):
    """Which batches this process encodes, and how it gets the features of the others."""

    def takes(self, batch: int) -> bool:
        """Whether this process encodes the batch of that number, from 0."""
        ...

    def joined(self, encode: Callable[[], list[Tensor]]) -> list[Tensor]:
        """The features of all batches in order; `encode` gives those that this process takes."""
        ...


class All:
    """One process encodes all."""

    def takes(self, batch: int) -> bool:
        del batch
        return True

    def joined(self, encode: Callable[[], list[Tensor]]) -> list[Tensor]:
        return encode()


@dataclass
class Encoder:
    """An open_clip model made ready for evaluation.

    The model is used where it is and as it is; afterwards each of its modules is back in the mode,
    train or eval, that it had.

    Attributes:
        model: has `encode_image(B x C x H x W)` and `encode_text(B x L)`, each giving B x D.
        preprocess: a PIL image to C x H x W, without randomness; called from several threads.
        tokenizer: a list of B strings to token ids, B x L; L is always the same.
        device: where the model is.
        batch_size: images or captions at a time.
        threads: that open and transform images.
        on_progress: called with "images" or "captions" and the number of new ones just encoded.
        share: of the batches.
    """

    model: nn.Module
    preprocess: Callable[[Image.Image], Tensor]
    tokenizer: Callable[[list[str]], Tensor]
    device: torch.device | str = "cpu"
    batch_size: int = 64
    threads: int = field(default_factory=lambda: min(8, os.cpu_count() or 1))
    on_progress: Callable[[str, int], None] | None = None
    share: Share = field(default_factory=All)

    def __post_init__(self) -> None:
        for name in ("batch_size", "threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: at least 1 is needed")

    def encode_images(self, images: Iterable[ImageSource]) -> Tensor:
        """Unit vectors N x D of N images, float32 on the CPU.

        Raises:
            ValueError: there is no image, one cannot be read (it is named), or a feature is NaN or
                infinite.
        """
        rows: list[int] = []

        def encode() -> list[Tensor]:
            dtype = _input_dtype(self.model)
            with self._ready_model() as model, ThreadPoolExecutor(self.threads) as pool:
                return [
                    self._unit(model.encode_image(pixels.to(self.device, dtype)), "images")
                    for pixels in self._pixel_batches(pool, _distinct(images, _image_key, rows))
                ]

        return _lay_out(self.share.joined(encode), rows, "images")

    def encode_texts(self, texts: Iterable[str]) -> Tensor:
        """Unit vectors N x D of N captions, float32 on the CPU.

        Raises:
            ValueError: there is no caption, or a feature is NaN or infinite.
        """
        rows: list[int] = []

        def encode() -> list[Tensor]:
            with self._ready_model() as model:
                return [
                    self._unit(model.encode_text(torch.stack(batch).to(self.device)), "captions")
                    for batch in self._own(_distinct(self._tokens(texts), _token_key, rows))
                ]

        return _lay_out(self.share.joined(encode), rows, "captions")

    def equal_tokens(self, first: Sequence[str], second: Sequence[str]) -> list[int]:
        """The rows in which the two captions are equal to the tokenizer, which may cut them."""
        pairs = zip(self._tokens(first), self._tokens(second), strict=True)
        return [row for row, (one, other) in enumerate(pairs) if torch.equal(one, other)]

    def _own(self, items: Iterable[T]) -> Iterator[list[T]]:
        """The batches of all items that this process takes."""
        for number, batch in enumerate(_batches(items, self.batch_size)):
            if self.share.takes(number):
                yield batch

    def _tokens(self, texts: Iterable[str]) -> Iterator[Tensor]:
        for batch in _batches(texts, self.batch_size):
            yield from self.tokenizer(batch)

    @contextmanager
    def _ready_model(self) -> Iterator[Any]:
        # Per module, since a locked tower may stay in eval mode while the rest trains.
        modes = [(module, module.training) for module in self.model.modules()]
        self.model.eval()
        try:
            with torch.no_grad():
                yield self.model
        finally:
            for module, training in modes:
                module.training = training

    def _pixel_batches(
        self, pool: ThreadPoolExecutor, images: Iterable[ImageSource]
    ) -> Iterator[Tensor]:
        def load(image: ImageSource) -> Tensor:
            return self.preprocess(image.open())

        pending: deque[list[Future[Tensor]]] = deque()
        for batch in self._own(images):
            pending.append([pool.submit(load, image) for image in batch])
            if len(pending) == 2:
                yield torch.stack([future.result() for future in pending.popleft()])
        for futures in pending:
            yield torch.stack([future.result() for future in futures])

    def _unit(self, features_BD: Tensor, what: str) -> Tensor:
        unit_BD = functional.normalize(features_BD.float(), dim=-1).cpu()
        if not unit_BD.isfinite().all():
            raise ValueError(
                f"the model's features of {what} hold NaN or infinity: it has diverged, or its "
                "precision overflows; a score would mean nothing"
            )
        if self.on_progress is not None:
            self.on_progress(what, len(unit_BD))
        return unit_BD


def _input_dtype(model: nn.Module) -> torch.dtype:
    """The precision that pixels must have: that of the image tower's matrices."""
    tower = getattr(model, "visual", model)
    for parameter in tower.parameters():
        # Vectors (norms, class tokens) may stay in float32 in a tower of lower precision.
        if parameter.dim() >= 2 and parameter.is_floating_point():
            return parameter.dtype
    return torch.float32


def _image_key(image: ImageSource) -> object:
    return image.key


def _token_key(tokens_L: Tensor) -> object:
    return tokens_L.numpy().tobytes()


def _distinct(items: Iterable[T], key: Callable[[T], object], rows: list[int]) -> Iterator[T]:
    """Yields each distinct item once; appends to `rows`, item by item, the row it is yielded at."""
    row_of: dict[object, int] = {}
    for item in items:
        identity = key(item)
        is_new = identity not in row_of
        rows.append(row_of.setdefault(identity, len(row_of)))
        if is_new:
            yield item


def _batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def _lay_out(features: Sequence[Tensor], rows: list[int], what: str) -> Tensor:
    if not rows:
        raise ValueError(f"there are no {what} to encode")
    return torch.cat(list(features))[torch.tensor(rows)]
