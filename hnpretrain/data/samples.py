"""From a raw sample to tensors: one caption, up to K of its negatives, the augmented image.

Every draw comes from (seed, epoch, key): the same sample in the same epoch gives the same tensors
wherever and whenever it is read. The caption and the augmentation are drawn before the negatives,
so runs that differ in K alone see the same images and captions.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from hnpretrain.shards.images import decode_image
from hnpretrain.shards.tar import RawSample

Transform = Callable[[Image.Image], torch.Tensor]
Tokenizer = Callable[[list[str]], torch.Tensor]


@dataclass(frozen=True)
class TrainingSample:
    """One row of a batch.

    Attributes:
        key: the sample's key.
        image_CHW: the transformed image.
        text_L: token ids of the drawn caption.
        negative_KL: token ids of its negatives, zeros in rows without one.
        negative_mask_K: True where a row holds a negative.
    """

    key: str
    image_CHW: torch.Tensor
    text_L: torch.Tensor
    negative_KL: torch.Tensor
    negative_mask_K: torch.Tensor


@dataclass(frozen=True)
class SampleDecoder:
    """Makes TrainingSamples.

    Attributes:
        transform: the model's own image transform (PIL image -> C x H x W).
        tokenizer: the model's own tokenizer (n texts -> n x L ids).
        negatives: K; 0 means captions alone.
        max_pixels: larger images are refused before they are decoded.
        seed: of the draws.
    """

    transform: Transform
    tokenizer: Tokenizer
    negatives: int
    max_pixels: int
    seed: int

    def __call__(self, raw: RawSample, epoch: int) -> TrainingSample:
        """Decodes a sample.

        Raises:
            BadImage: the image cannot be decoded, or is too large.
            ValueError: a member is missing or broken.
        """
        captions = raw.captions()
        image_bytes, _ = raw.image()
        image = decode_image(image_bytes, self.max_pixels)

        draw = _generator(self.seed, epoch, raw.key)
        augmentation_seed = int(draw.integers(2**63))
        caption = captions[int(draw.integers(len(captions)))]
        order = draw.permutation(len(caption.negatives)).tolist()
        (text_L,) = self.tokenizer([caption.text])
        rows = self._tokenize_negatives([caption.negatives[i].text for i in order], text_L)
        negative_KL = text_L.new_zeros(self.negatives, len(text_L))
        if rows:
            negative_KL[: len(rows)] = torch.stack(rows)
        return TrainingSample(
            key=raw.key,
            image_CHW=_augment(self.transform, image, augmentation_seed),
            text_L=text_L,
            negative_KL=negative_KL,
            negative_mask_K=torch.arange(self.negatives) < len(rows),
        )

    def _tokenize_negatives(self, texts: list[str], text_L: torch.Tensor) -> list[torch.Tensor]:
        """The first K texts whose tokens differ from the caption's.

        A text tower reads so many tokens: where the caption is longer, and the words that changed
        lie past the cut, the negative would say of the image just what the caption says.
        """
        rows: list[torch.Tensor] = []
        while texts and len(rows) < self.negatives:
            tried = texts[: self.negatives - len(rows)]
            texts = texts[len(tried) :]
            rows += [row for row in self.tokenizer(tried) if not torch.equal(row, text_L)]
        return rows


def _generator(seed: int, epoch: int, key: str) -> np.random.Generator:
    digest = hashlib.blake2b(f"{seed}/{epoch}/{key}".encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))


def _augment(transform: Transform, image: Image.Image, seed: int) -> torch.Tensor:
    # torchvision draws from torch's generator, open_clip's color jitter from Python's; both are
    # restored, so that decoding in the training process (workers=0) leaves training's draws alone.
    python_state, torch_state = random.getstate(), torch.get_rng_state()
    try:
        random.seed(seed)
        # The CPU's generator alone: torch.manual_seed would also queue a call, with its stack, for
        # each CUDA device, in a worker that never uses one.
        torch.default_generator.manual_seed(seed)
        return transform(image)
    finally:
        random.setstate(python_state)
        torch.set_rng_state(torch_state)


@dataclass(frozen=True)
class Batch:
    """The samples of one step on one rank, in the order of their streams.

    Attributes:
        keys: b keys.
        image_BCHW: float32 images.
        text_BL: int64 token ids.
        negative_BKL: int64 token ids; zeros where masked.
        negative_mask_BK: True where there is a negative.
    """

    keys: tuple[str, ...]
    image_BCHW: torch.Tensor
    text_BL: torch.Tensor
    negative_BKL: torch.Tensor
    negative_mask_BK: torch.Tensor

    def to(self, device: torch.device) -> Batch:
        return Batch(
            self.keys,
            self.image_BCHW.to(device, non_blocking=True),
            self.text_BL.to(device, non_blocking=True),
            self.negative_BKL.to(device, non_blocking=True),
            self.negative_mask_BK.to(device, non_blocking=True),
        )

    def pin_memory(self) -> Batch:
        """The same batch in memory that CUDA copies from without waiting."""
        return Batch(
            self.keys,
            self.image_BCHW.pin_memory(),
            self.text_BL.pin_memory(),
            self.negative_BKL.pin_memory(),
            self.negative_mask_BK.pin_memory(),
        )

    @classmethod
    def stack(cls, samples: Sequence[TrainingSample]) -> Batch:
        return cls(
            tuple(sample.key for sample in samples),
            torch.stack([sample.image_CHW for sample in samples]),
            torch.stack([sample.text_L for sample in samples]),
            torch.stack([sample.negative_KL for sample in samples]),
            torch.stack([sample.negative_mask_K for sample in samples]),
        )

    @classmethod
    def concatenate(cls, parts: Sequence[Batch]) -> Batch:
        if len(parts) == 1:
            return parts[0]
        return cls(
            tuple(key for part in parts for key in part.keys),
            torch.cat([part.image_BCHW for part in parts]),
            torch.cat([part.text_BL for part in parts]),
            torch.cat([part.negative_BKL for part in parts]),
            torch.cat([part.negative_mask_BK for part in parts]),
        )
