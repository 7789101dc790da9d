"""What a benchmark asks: images and captions, and the rules by which their scores are right.

An item is a few images and a few captions, all scored against each other; s[i, c] is the score of
image i with caption c. A rule turns that matrix into margins: how far what is right lies above what
is wrong. An answer is right if its margin is above 0. A tie is wrong, and so is a comparison with
NaN: a model that scores everything alike gets 0 and not chance.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hnpretrain.eval.images import ImageSource


@dataclass(frozen=True)
class Item:
    """One question of a benchmark.

    Attributes:
        name: unique in its benchmark, and the same wherever the files lie.
        images: at least one; the right one first where one is to be chosen.
        captions: at least one; the right one first where one is to be chosen.
        groups: the name of the group that it is in, by dimension (`{"concept": "color"}`).
    """

    name: str
    images: tuple[ImageSource, ...]
    captions: tuple[str, ...]
    groups: Mapping[str, str] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.images), len(self.captions)


@dataclass(frozen=True)
class Rule:
    """What counts as right.

    Attributes:
        name: heads the scores that it gives.
        meaning: in words, for the table.
        applies: whether it can judge an item of I images and C captions; items that it cannot judge
            are not part of its scores.
        margins: N x I x C scores to N x A margins of A answers an item, the same A for all shapes
            that it applies to. With `of_texts`, N x C x C scores of captions with captions. With
            `by_captions` it takes scores of one image alone, too: those without the image.
        chance: of an answer of such an item, for independent continuous scores.
        of_texts: it compares captions with captions, no images.
        by_captions: it chooses between captions of one image, so that the same rule without the
            image tells what the texts give away.
    """

    name: str
    meaning: str
    applies: Callable[[int, int], bool]
    margins: Callable[[Tensor], Tensor]
    chance: Callable[[int, int], float]
    of_texts: bool = False
    by_captions: bool = False


def by_shape(items: Sequence[Item]) -> dict[tuple[int, int], list[int]]:
    """The items' numbers by their shape."""
    rows: dict[tuple[int, int], list[int]] = {}
    for number, item in enumerate(items):
        rows.setdefault(item.shape, []).append(number)
    return rows


def _least(*margins: Tensor) -> Tensor:
    """N x 1: an answer that wants several comparisons to be right."""
    return torch.stack(margins, dim=-1).amin(dim=-1, keepdim=True)


def _caption_margins(s_NIC: Tensor) -> Tensor:
    return (s_NIC[:, 0, 0] - s_NIC[:, 0, 1:].amax(dim=-1))[:, None]


def _image_margins(s_NIC: Tensor) -> Tensor:
    return (s_NIC[:, 0, 0] - s_NIC[:, 1:, 0].amax(dim=-1))[:, None]


def choose_caption(name: str = "acc", meaning: str = "") -> Rule:
    """One image: its first caption beats every other."""
    return Rule(
        name,
        meaning or "the image prefers its caption",
        applies=lambda images, captions: images == 1 and captions > 1,
        margins=_caption_margins,
        chance=lambda _, captions: 1 / captions,
        by_captions=True,
    )


def choose_image(name: str = "acc", meaning: str = "") -> Rule:
    """One caption: its first image beats every other."""
    return Rule(
        name,
        meaning or "the caption prefers its image",
        applies=lambda images, captions: captions == 1 and images > 1,
        margins=_image_margins,
        chance=lambda images, _: 1 / images,
    )


def _two_by_two(images: int, captions: int) -> bool:
    return images == captions == 2


def _of_image(s_NIC: Tensor) -> tuple[Tensor, Tensor]:
    """How far each of two images prefers its own caption."""
    return s_NIC[:, 0, 0] - s_NIC[:, 0, 1], s_NIC[:, 1, 1] - s_NIC[:, 1, 0]


def _of_caption(s_NIC: Tensor) -> tuple[Tensor, Tensor]:
    """How far each of two captions prefers its own image."""
    return s_NIC[:, 0, 0] - s_NIC[:, 1, 0], s_NIC[:, 1, 1] - s_NIC[:, 0, 1]


# Winoground's (Thrush et al. 2022, arXiv 2204.03162, equations 1 to 3). Of the 4! orders of four
# independent scores, `group` needs both own ones on top: 2! 2! / 4!.
TEXT = Rule(
    "text",
    "both images prefer their caption",
    _two_by_two,
    lambda s_NIC: _least(*_of_image(s_NIC)),
    lambda *_: 1 / 4,
)
IMAGE = Rule(
    "image",
    "both captions prefer their image",
    _two_by_two,
    lambda s_NIC: _least(*_of_caption(s_NIC)),
    lambda *_: 1 / 4,
)
GROUP = Rule(
    "group",
    "text and image",
    _two_by_two,
    lambda s_NIC: _least(*_of_image(s_NIC), *_of_caption(s_NIC)),
    lambda *_: 1 / 6,
)
PAIR = Rule(
    "pair",
    "each image alone prefers its caption",
    _two_by_two,
    lambda s_NIC: torch.stack(_of_image(s_NIC), dim=-1),
    lambda *_: 1 / 2,
)
WINOGROUND = (TEXT, IMAGE, GROUP)


def positives_beat_negative(name: str, positives: int) -> Rule:
    """One image: each of the first `positives` captions beats each of the others."""

    def chance(_: int, captions: int) -> float:
        # Of the orders of all captions, those with the right ones on top.
        return 1 / math.comb(captions, positives)

    def margins(s_NIC: Tensor) -> Tensor:
        right, wrong = s_NIC[:, 0, :positives], s_NIC[:, 0, positives:]
        return (right.amin(dim=-1) - wrong.amax(dim=-1))[:, None]

    return Rule(
        name,
        f"the image prefers each of {positives} captions",
        lambda images, captions: images == 1 and captions > positives,
        margins,
        chance,
        by_captions=True,
    )
