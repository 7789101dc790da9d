"""From cosine scores to right or wrong, and from those to an accuracy with its standard error.

Every rule here is strict: what is right must score higher than what is wrong. A tie is wrong, and
so is a comparison with NaN, so a model that scores everything alike gets 0 and not chance.

Scores are torch tensors, numpy arrays or lists; results are torch tensors on the input's device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

Scores = Tensor | np.ndarray | Sequence[float]

# Tile of the similarity matrix that retrieval holds at a time: 64 MiB in float64. Its counts are
# summed in int32, which a tile cannot overflow.
_TILE_IMAGES = 1024
_TILE_TEXTS = 8192


@dataclass(frozen=True)
class Accuracy:
    """A share of right answers.

    Attributes:
        value: in [0, 1].
        count: the answers it was taken over.
        standard_error: of `value`, in the same unit.
    """

    value: float
    count: int
    standard_error: float

    @classmethod
    def of(cls, correct: Scores, clusters: int = 1) -> Accuracy:
        """The mean of right/wrong answers (micro average).

        Args:
            correct: N booleans or 0/1.
            clusters: how many consecutive answers stem from one item. Answers of one item are not
                independent, so the error is taken over items; with 1 it is sqrt(p (1 - p) / N).

        Raises:
            ValueError: there is no answer, or N is no multiple of `clusters`.
        """
        correct_N = _tensor(correct).double().flatten()
        count = correct_N.numel()
        if count == 0:
            raise ValueError("an accuracy needs at least one answer, got none")
        if count % clusters:
            raise ValueError(f"{count} answers do not divide into clusters of {clusters}")
        value = correct_N.mean()
        residual = (correct_N - value).view(-1, clusters).sum(1)
        return cls(float(value), count, float(residual.square().sum().sqrt() / count))

    @classmethod
    def macro(cls, groups: Sequence[Accuracy]) -> Accuracy:
        """The mean of the groups' accuracies, each group weighing the same whatever its size.

        The error is sqrt(sum of squared errors) / groups, for groups drawn independently.
        """
        if not groups:
            raise ValueError("a macro average needs at least one group, got none")
        return cls(
            sum(group.value for group in groups) / len(groups),
            sum(group.count for group in groups),
            math.sqrt(sum(group.standard_error**2 for group in groups)) / len(groups),
        )


def pair_correct(positive: Scores, negative: Scores) -> Tensor:
    """Whether the positive beats the negative.

    Args:
        positive: N scores of what is right.
        negative: N scores of what is wrong, in the same order.

    Returns:
        N booleans.
    """
    positive_N, negative_N = _tensor(positive), _tensor(negative)
    if positive_N.shape != negative_N.shape or positive_N.dim() != 1:
        raise ValueError(
            "positive and negative scores must be two lists of one length, got shapes "
            f"{tuple(positive_N.shape)} and {tuple(negative_N.shape)}"
        )
    return positive_N > negative_N


@dataclass(frozen=True)
class WinogroundCorrect:
    """Right or wrong for N items of two captions and two images.

    Attributes:
        text: for both images, the own caption beats the other caption.
        image: for both captions, the own image beats the other image.
        group: both.
        pair: N x 2, for each image alone, its own caption beats the other caption.
    """

    text: Tensor
    image: Tensor
    group: Tensor
    pair: Tensor


def winoground_correct(s00: Scores, s01: Scores, s10: Scores, s11: Scores) -> WinogroundCorrect:
    """The scores of Winoground (Thrush et al. 2022, arXiv 2204.03162, equations 1 to 3).

    Args:
        s00: N scores of caption 0 with image 0, and so on: the first digit is the caption.
        s01: caption 0 with image 1.
        s10: caption 1 with image 0.
        s11: caption 1 with image 1.
    """
    first_image, second_image = pair_correct(s00, s10), pair_correct(s11, s01)
    text = first_image & second_image
    image = pair_correct(s00, s01) & pair_correct(s11, s10)
    return WinogroundCorrect(
        text, image, text & image, torch.stack((first_image, second_image), dim=1)
    )


# Chance of the four Winoground scores for independent continuous scores: of the 4! orders of
# s00, s11, s01, s10 the group score needs both own ones on top, 2! 2! / 4!.
WINOGROUND_CHANCE = {"text": 1 / 4, "image": 1 / 4, "group": 1 / 6, "pair": 1 / 2}


@dataclass(frozen=True)
class RetrievalRanks:
    """How many wrong answers stand before the first right one; R@k is the share below k.

    Attributes:
        text_to_image: M; for each text, the images of others that score as high as its own.
        image_to_text: N; for each image, the texts of others that score as high as its best own.
    """

    text_to_image: Tensor
    image_to_text: Tensor


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
    for first_image in range(0, images, tile[0]):
        rows = slice(first_image, min(first_image + tile[0], images))
        image_RD = image[rows].double()
        number_R1 = torch.arange(rows.start, rows.stop, device=image.device)[:, None]
        for first_text in range(0, texts, tile[1]):
            columns = slice(first_text, first_text + tile[1])
            score_RC = (image_RD @ text[columns].double().T).float()
            other_RC = number_R1 != image_of_text[columns][None, :]
            # Sums of booleans are several times faster in int32 than in torch's default, int64.
            ahead_RC = (score_RC >= own_M[columns]) & other_RC
            ahead_of_text_M[columns] += ahead_RC.sum(0, dtype=torch.int32)
            ahead_RC = (score_RC >= best_own_N[rows, None]) & other_RC
            ahead_of_image_N[rows] += ahead_RC.sum(1, dtype=torch.int32)
    return RetrievalRanks(ahead_of_text_M, ahead_of_image_N)


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


def _tensor(scores: Scores) -> Tensor:
    # Through numpy, since torch would read a list of Python floats as float32 and invent ties.
    return scores if isinstance(scores, Tensor) else torch.as_tensor(np.asarray(scores))
