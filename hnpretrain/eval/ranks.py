"""Retrieval: where the right answer stands among all others, and cosine scores."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Tile of the similarity matrix that retrieval holds at a time: 64 MiB in float64. Its counts are
# summed in int32, which a tile cannot overflow.
_TILE_IMAGES = 1024
_TILE_TEXTS = 8192


@dataclass(frozen=True)
class RetrievalRanks:
    """How many wrong answers stand before the first right one; R@k is the share below k.

    Attributes:
        text_to_image: M; for each text, the images of others that score as high as its own.
        image_to_text: N; for each image, the texts of others that score as high as its best own.
        images_higher: M; of the former, those that score higher: the rest are ties.
        texts_higher: N; of the latter.
    """

    text_to_image: Tensor
    image_to_text: Tensor
    images_higher: Tensor
    texts_higher: Tensor


def retrieval_ranks(
    image: Tensor,
    text: Tensor,
    image_of_text: Tensor,
    tile: tuple[int, int] = (_TILE_IMAGES, _TILE_TEXTS),
) -> RetrievalRanks:
    """Ranks both ways, several texts an image, in tiles: the N x M matrix is never held.

    A wrong answer that ties with the right one stands before it. Scores are summed in float64 and
    rounded to float32, so that equal features tie wherever they fall in a tile.

    Args:
        image: N x D unit vectors.
        text: M x D unit vectors.
        image_of_text: M row numbers of `image`; every image must occur.
        tile: images and texts in a tile; a matter of memory, not of the result.

    Raises:
        ValueError: shapes do not fit, an image has no text, or a feature is not finite.
    """
    if image.dim() != 2 or text.dim() != 2 or image.shape[1] != text.shape[1]:
        raise ValueError(
            "retrieval needs image features N x D and text features M x D, got "
            f"{tuple(image.shape)} and {tuple(text.shape)}"
        )
    images, texts = len(image), len(text)
    if image_of_text.shape != (texts,):
        raise ValueError(
            f"image_of_text must name one image for each of {texts} texts, got shape "
            f"{tuple(image_of_text.shape)}"
        )
    if texts == 0 or int(image_of_text.min()) < 0 or int(image_of_text.max()) >= images:
        raise ValueError(f"image_of_text must hold row numbers in [0, {images})")
    if not (image.isfinite().all() and text.isfinite().all()):
        raise ValueError("retrieval: the features hold NaN or infinity, which have no rank")
    image_of_text = image_of_text.to(image.device)
    without = images - image_of_text.unique().numel()
    if without:
        raise ValueError(f"retrieval: {without} of {images} images have no text")

    own_M = torch.empty(texts, device=image.device)
    for start in range(0, texts, tile[1]):
        rows = slice(start, start + tile[1])
        own_M[rows] = cosine(image[image_of_text[rows]], text[rows])
    best_own_N = torch.full((images,), -math.inf, device=image.device)
    best_own_N.scatter_reduce_(0, image_of_text, own_M, "amax")

    ahead_of_text_M = torch.zeros(texts, dtype=torch.long, device=image.device)
    ahead_of_image_N = torch.zeros(images, dtype=torch.long, device=image.device)
    above_text_M, above_image_N = ahead_of_text_M.clone(), ahead_of_image_N.clone()
    for first_image in range(0, images, tile[0]):
        rows = slice(first_image, min(first_image + tile[0], images))
        image_RD = image[rows].double()
        number_R1 = torch.arange(rows.start, rows.stop, device=image.device)[:, None]
        for first_text in range(0, texts, tile[1]):
            columns = slice(first_text, first_text + tile[1])
            score_RC = (image_RD @ text[columns].double().T).float()
            other_RC = number_R1 != image_of_text[columns][None, :]
            # Sums of booleans are several times faster in int32 than in torch's default, int64.
            own_1C, own_R1 = own_M[None, columns], best_own_N[rows, None]
            for own, over, counts, axis in (
                (own_1C, torch.ge, ahead_of_text_M[columns], 0),
                (own_1C, torch.gt, above_text_M[columns], 0),
                (own_R1, torch.ge, ahead_of_image_N[rows], 1),
                (own_R1, torch.gt, above_image_N[rows], 1),
            ):
                counts += (over(score_RC, own) & other_RC).sum(axis, dtype=torch.int32)
    return RetrievalRanks(ahead_of_text_M, ahead_of_image_N, above_text_M, above_image_N)


def retrieval_chance(texts_of_image: Sequence[int], k: int) -> tuple[float, float]:
    """R@k of a random order: (text to image, image to text).

    An image with c of the M texts is missed with probability C(M - c, k) / C(M, k).
    """
    images, texts = len(texts_of_image), sum(texts_of_image)
    missed = 0.0
    for own in texts_of_image:
        missed += math.comb(texts - own, k) / math.comb(texts, k) if k <= texts else 0.0
    return min(k, images) / images, 1.0 - missed / images


def cosine(image: Tensor, text: Tensor) -> Tensor:
    """Scores of paired unit vectors, N x D and N x D to N, summed in float64, as float32."""
    return (image.double() * text.double()).sum(-1).float()
