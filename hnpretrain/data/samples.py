"""From a raw sample to tensors: one caption, up to K of its negatives, the augmented image.

Every draw comes from (seed, pass, key): the same sample in the same pass over its data set gives
the same tensors wherever and whenever it is read. The caption and the augmentation are drawn before
the negatives, so runs that differ in K alone see the same images and captions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import default_collate

from hnpretrain.data.images import ImageReader, Normalization
from hnpretrain.data.texts import TextLayout, Texts
from hnpretrain.shards.tar import RawSample

Tokenizer = Callable[[list[str]], torch.Tensor]


@dataclass(frozen=True)
class TrainingSample:
    """One row of a batch.

    Attributes:
        key: the sample's key.
        image_CHW: the transformed image, as an ImageReader gives it.
        token_CL: int64 ids of the drawn caption, then of up to K negatives of it; zeros in rows
            without one.
        mask_C: True where a row holds a text.
    """

    key: str
    image_CHW: torch.Tensor
    token_CL: torch.Tensor
    mask_C: torch.Tensor


@dataclass(frozen=True)
class SampleDecoder:
    """Makes TrainingSamples.

    Attributes:
        read_image: makes the transformed image, or its pixels, of its bytes and a seed.
        tokenizer: the model's own tokenizer (n texts -> n x L ids).
        negatives: K; 0 means captions alone.
        seed: of the draws.
    """

    read_image: ImageReader
    tokenizer: Tokenizer
    negatives: int
    seed: int

    def __call__(self, raw: RawSample, passage: int) -> TrainingSample:
        """Decodes a sample in one pass over its data set.

        Raises:
            BadImage: the image cannot be decoded, or is too large.
            ValueError: a member is missing or broken.
        """
        captions = raw.captions()
        image_bytes, _ = raw.image()

        draw = draws_for(self.seed, passage, raw.key)
        augmentation_seed = int(draw.integers(2**63))
        caption = captions[int(draw.integers(len(captions)))]
        order = draw.permutation(len(caption.negatives)).tolist()
        rows = self._tokenize(caption.text, [caption.negatives[i].text for i in order])
        token_CL = rows[0].new_zeros(1 + self.negatives, len(rows[0]))
        token_CL[: len(rows)] = torch.stack(rows)
        return TrainingSample(
            key=raw.key,
            image_CHW=self.read_image(image_bytes, augmentation_seed),
            token_CL=token_CL,
            mask_C=torch.arange(1 + self.negatives) < len(rows),
        )

    def _tokenize(self, caption: str, negatives: list[str]) -> list[torch.Tensor]:
        """The caption's tokens, then those of the first K negatives whose tokens differ from them.

        A text tower reads so many tokens: where the caption is longer, and the words that changed
        lie past the cut, the negative would say of the image just what the caption says.
        """
        tried, left = negatives[: self.negatives], negatives[self.negatives :]
        text_L, *others = self.tokenizer([caption, *tried])
        rows = [row for row in others if not torch.equal(row, text_L)]
        while left and len(rows) < self.negatives:
            tried, left = left[: self.negatives - len(rows)], left[self.negatives - len(rows) :]
            rows += [row for row in self.tokenizer(tried) if not torch.equal(row, text_L)]
        return [text_L, *rows]


def draws_for(seed: int, passage: int, key: str) -> np.random.Generator:
    """What a sample's draws come from in one pass; the first is the augmentation's seed."""
    # Names in foreign tars need not be UTF-8; tarfile gives their bytes as lone surrogates.
    name = f"{seed}/{passage}/{key}".encode(errors="surrogateescape")
    digest = hashlib.blake2b(name, digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))


@dataclass(frozen=True)
class Chunk:
    """Samples of one step, in the order of their streams, as a loader's worker gives them.

    Attributes:
        keys: b keys.
        image_BCHW: images as an ImageReader gives them.
        token_BCL: int64 ids of each sample's caption, then of K negatives; zeros where masked.
        mask_BC: True where there is a text.
    """

    keys: tuple[str, ...]
    image_BCHW: torch.Tensor
    token_BCL: torch.Tensor
    mask_BC: torch.Tensor

    @classmethod
    def stack(cls, samples: Sequence[TrainingSample]) -> Chunk:
        return cls(
            tuple(sample.key for sample in samples),
            # In a loader's worker this stacks in shared memory, where it would else be copied to.
            default_collate([sample.image_CHW for sample in samples]),
            torch.stack([sample.token_CL for sample in samples]),
            torch.stack([sample.mask_C for sample in samples]),
        )

    @classmethod
    def concatenate(cls, parts: Sequence[Chunk]) -> Chunk:
        if len(parts) == 1:
            return parts[0]
        return cls(
            tuple(key for part in parts for key in part.keys),
            torch.cat([part.image_BCHW for part in parts]),
            torch.cat([part.token_BCL for part in parts]),
            torch.cat([part.mask_BC for part in parts]),
        )

    def split(self, parts: int) -> list[Chunk]:
        """Into so many equal parts, in order."""
        size = len(self.keys) // parts
        return [
            Chunk(
                self.keys[start : start + size],
                self.image_BCHW[start : start + size],
                self.token_BCL[start : start + size],
                self.mask_BC[start : start + size],
            )
            for start in range(0, len(self.keys), size)
        ]


@dataclass(frozen=True)
class Batch:
    """What the towers encode at once.

    Attributes:
        keys: b keys.
        image_BCHW: float32 images; as long as there is a normalization, their uint8 pixels.
        texts: each sample's caption and up to K negatives, as the text tower takes them.
        negative_mask_BK: True where there is a negative.
        normalization: of the pixels, done once they are on the device of the model.
    """

    keys: tuple[str, ...]
    image_BCHW: torch.Tensor
    texts: Texts
    negative_mask_BK: torch.Tensor
    normalization: Normalization | None = None

    @classmethod
    def lay_out(
        cls, chunk: Chunk, layout: TextLayout, normalization: Normalization | None = None
    ) -> Batch:
        texts = layout.lay_out(chunk.token_BCL, chunk.mask_BC)
        mask_BK = chunk.mask_BC[:, 1:].contiguous()
        return cls(chunk.keys, chunk.image_BCHW, texts, mask_BK, normalization)

    def to(self, device: torch.device) -> Batch:
        """The batch as the towers take it, on a device."""
        image_BCHW = self.image_BCHW.to(device, non_blocking=True)
        return Batch(
            self.keys,
            self.normalization(image_BCHW) if self.normalization else image_BCHW,
            self.texts.to(device),
            self.negative_mask_BK.to(device, non_blocking=True),
        )

    def pin_memory(self) -> Batch:
        """The same batch in memory that CUDA copies from without waiting."""
        return Batch(
            self.keys,
            self.image_BCHW.pin_memory(),
            self.texts.pin_memory(),
            self.negative_mask_BK.pin_memory(),
            self.normalization,
        )
