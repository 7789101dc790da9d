"""Retrieval against brute force, and its chance."""

import math
import operator

import pytest
import torch
from torch.nn import functional

from hnpretrain.eval.accuracy import Accuracy
from hnpretrain.eval.ranks import cosine, retrieval_chance, retrieval_ranks


def brute_force(image, text, owner, over):
    """Ranks from the full matrix, one comparison at a time."""
    score = [[float(cosine(i, t)) for t in text] for i in image]
    texts, images = range(len(text)), range(len(image))
    of_texts = [
        sum(over(score[i][m], score[owner[m]][m]) for i in images if i != owner[m]) for m in texts
    ]
    best = [max(score[i][m] for m in texts if owner[m] == i) for i in images]
    of_images = [sum(over(score[i][m], best[i]) for m in texts if owner[m] != i) for i in images]
    return of_texts, of_images


@pytest.mark.parametrize("tile", [(1, 1), (3, 5), (1024, 8192)])
@pytest.mark.parametrize("dim", [2, 8])
def test_retrieval_equals_brute_force(tile, dim) -> None:
    generator = torch.Generator().manual_seed(dim)
    image = functional.normalize(torch.randn(17, dim, generator=generator), dim=-1)
    owner = torch.cat((torch.arange(17), torch.randint(17, (40,), generator=generator)))
    owner = owner[torch.randperm(57, generator=generator)]
    noise = torch.randn(57, dim, generator=generator)
    text = functional.normalize(image[owner] + noise, dim=-1)
    text[5], text[6] = text[20], text[20]  # equal captions, some of other images
    image[3] = image[4]  # equal images
    ranks = retrieval_ranks(image, text, owner, tile)
    of_texts, of_images = brute_force(image, text, owner.tolist(), operator.ge)
    assert ranks.text_to_image.tolist() == of_texts
    assert ranks.image_to_text.tolist() == of_images
    of_texts, of_images = brute_force(image, text, owner.tolist(), operator.gt)
    assert ranks.images_higher.tolist() == of_texts
    assert ranks.texts_higher.tolist() == of_images


def test_retrieval_by_hand() -> None:
    image = torch.eye(3)
    # Image 0 has two captions, of which one is perfect; the caption of image 2 looks like image 1.
    text = functional.normalize(
        torch.tensor([[1.0, 0, 0], [0.1, 1, 0], [0, 1.0, 0], [0, 1, 0.5]]), dim=-1
    )
    ranks = retrieval_ranks(image, text, torch.tensor([0, 0, 1, 2]))
    assert ranks.text_to_image.tolist() == [0, 1, 0, 1]
    assert ranks.image_to_text.tolist() == [0, 0, 0]


def test_a_model_that_ties_everything_finds_nothing() -> None:
    same = functional.normalize(torch.ones(50, 512), dim=-1)
    ranks = retrieval_ranks(same, same, torch.arange(50), tile=(7, 13))
    assert ranks.text_to_image.tolist() == [49] * 50
    assert ranks.image_to_text.tolist() == [49] * 50


def test_equal_captions_tie_wherever_they_stand() -> None:
    generator = torch.Generator().manual_seed(5)
    image = functional.normalize(torch.randn(300, 512, generator=generator), dim=-1)
    caption = functional.normalize(torch.randn(512, generator=generator), dim=-1)
    ranks = retrieval_ranks(image, caption.expand(300, 512), torch.arange(300), tile=(64, 37))
    assert ranks.image_to_text.tolist() == [299] * 300


@pytest.mark.parametrize(
    "image, text, owner, message",
    [
        ((2, 4), (2, 3), [0, 1], "N x D"),
        ((2, 4), (3, 4), [0, 1], "one image for each of 3"),
        ((2, 4), (2, 4), [0, 2], "row numbers"),
        ((2, 4), (2, 4), [1, 1], "1 of 2 images have no text"),
    ],
)
def test_retrieval_refuses_what_does_not_fit(image, text, owner, message) -> None:
    with pytest.raises(ValueError, match=message):
        retrieval_ranks(torch.zeros(image), torch.zeros(text), torch.tensor(owner))


def test_retrieval_refuses_nan() -> None:
    image = torch.tensor([[1.0, 0], [math.nan, 0]])
    with pytest.raises(ValueError, match="NaN"):
        retrieval_ranks(image, torch.eye(2), torch.arange(2))


def test_retrieval_chance_by_hand_and_by_drawing() -> None:
    # Two images with one and two of three texts: missed at k=1 with 2/3 and 1/3.
    assert retrieval_chance([1, 2], 1) == (pytest.approx(1 / 2), pytest.approx(1 / 2))
    assert retrieval_chance([1, 2], 2) == (1.0, pytest.approx(1 - (1 / 3 + 0) / 2))
    assert retrieval_chance([1, 2], 10) == (1.0, 1.0)

    owner = torch.arange(20).repeat_interleave(3)
    generator = torch.Generator().manual_seed(0)
    found_texts, found_images = [], []
    for _ in range(150):
        image = functional.normalize(torch.randn(20, 64, generator=generator), dim=-1)
        text = functional.normalize(torch.randn(60, 64, generator=generator), dim=-1)
        ranks = retrieval_ranks(image, text, owner)
        found_texts.append(ranks.text_to_image < 5)
        found_images.append(ranks.image_to_text < 5)
    image_chance, text_chance = retrieval_chance([3] * 20, 5)
    assert Accuracy.of(torch.cat(found_texts)).value == pytest.approx(image_chance, abs=0.03)
    assert Accuracy.of(torch.cat(found_images)).value == pytest.approx(text_chance, abs=0.03)
