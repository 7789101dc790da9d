"""Scores against cases worked out by hand, and retrieval against brute force."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from hnpretrain.eval.scorers import (
    WINOGROUND_CHANCE,
    Accuracy,
    cosine,
    pair_correct,
    retrieval_chance,
    retrieval_ranks,
    winoground_correct,
)


def test_a_pair_is_right_only_if_strictly_higher() -> None:
    nan, inf = math.nan, math.inf
    positive = [0.2, 0.1, 0.3, nan, 0.1, nan, inf, inf]
    negative = [0.1, 0.2, 0.3, 0.1, nan, nan, 0.1, inf]
    right = [True, False, False, False, False, False, True, False]
    assert pair_correct(positive, negative).tolist() == right
    assert pair_correct(np.array(positive), np.array(negative)).tolist() == right
    assert pair_correct(torch.tensor(positive), torch.tensor(negative)).tolist() == right


def test_python_floats_keep_their_precision() -> None:
    assert pair_correct([0.3 + 1e-12], [0.3]).tolist() == [True]


@pytest.mark.parametrize("negative", [[0.1], [[0.1, 0.2]]])
def test_pairs_of_different_shape_are_refused(negative) -> None:
    with pytest.raises(ValueError, match="one length"):
        pair_correct([0.1, 0.2], negative)


def test_winoground_by_hand() -> None:
    # Rows: all right; text only; image only; all wrong; text tie; image tie; all equal.
    s00 = [0.9, 0.5, 0.5, 0.1, 0.5, 0.9, 0.5]
    s01 = [0.1, 0.6, 0.2, 0.9, 0.1, 0.9, 0.5]
    s10 = [0.2, 0.2, 0.6, 0.9, 0.5, 0.2, 0.5]
    s11 = [0.8, 0.8, 0.8, 0.1, 0.9, 0.95, 0.5]
    got = winoground_correct(s00, s01, s10, s11)
    assert got.text.tolist() == [True, True, False, False, False, True, False]
    assert got.image.tolist() == [True, False, True, False, True, False, False]
    assert got.group.tolist() == [True, False, False, False, False, False, False]
    assert got.pair.tolist() == [
        [True, True],
        [True, True],
        [False, True],
        [False, False],
        [False, True],
        [True, True],
        [False, False],
    ]


def test_winoground_with_nan_is_wrong() -> None:
    got = winoground_correct([math.nan], [0.0], [0.0], [1.0])
    assert (got.text.item(), got.image.item(), got.group.item()) == (False, False, False)
    assert got.pair.tolist() == [[False, True]]


def test_winoground_chance_is_what_random_scores_get() -> None:
    scores = torch.rand(4, 200_000, generator=torch.Generator().manual_seed(0))
    got = winoground_correct(*scores)
    for name, chance in WINOGROUND_CHANCE.items():
        assert Accuracy.of(getattr(got, name)).value == pytest.approx(chance, abs=0.004)


def test_standard_error_is_the_binomial_one() -> None:
    got = Accuracy.of([True, True, True, False])
    assert (got.value, got.count) == (0.75, 4)
    assert got.standard_error == pytest.approx(math.sqrt(0.75 * 0.25 / 4))


def test_answers_of_one_item_count_as_one_for_the_error() -> None:
    twins = [[True, True], [True, True], [True, True], [False, False]]
    got = Accuracy.of(np.array(twins), clusters=2)
    assert (got.value, got.count) == (0.75, 8)
    assert got.standard_error == pytest.approx(Accuracy.of([1, 1, 1, 0]).standard_error)
    opposite = Accuracy.of(np.array([[True, False]] * 6), clusters=2)
    assert (opposite.value, opposite.standard_error) == (0.5, 0.0)
    with pytest.raises(ValueError, match="clusters of 2"):
        Accuracy.of([1, 0, 1], clusters=2)


def test_standard_error_matches_repeated_draws() -> None:
    generator = torch.Generator().manual_seed(3)
    draws = (torch.rand(4000, 50, generator=generator) < 0.3).double()
    spread = float(draws.mean(1).std())
    typical = np.mean([Accuracy.of(row).standard_error for row in draws[:400]])
    assert typical == pytest.approx(spread, rel=0.05)


def test_macro_weighs_groups_alike_and_micro_items() -> None:
    big, small = Accuracy.of([1] * 90 + [0] * 10), Accuracy.of([0, 1])
    macro = Accuracy.macro([big, small])
    assert macro.value == pytest.approx((0.9 + 0.5) / 2)
    assert macro.count == 102
    assert macro.standard_error == pytest.approx(math.sqrt(0.03**2 + 0.5 * 0.5 / 2) / 2)
    micro = Accuracy.of([1] * 90 + [0] * 10 + [0, 1])
    assert micro.value == pytest.approx(91 / 102)


def test_an_accuracy_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        Accuracy.of([])
    with pytest.raises(ValueError, match="at least one"):
        Accuracy.macro([])


def brute_force(image, text, owner):
    """Ranks from the full matrix, one comparison at a time."""
    score = [[float(cosine(i, t)) for t in text] for i in image]
    texts, images = range(len(text)), range(len(image))
    of_texts = [
        sum(score[i][m] >= score[owner[m]][m] for i in images if i != owner[m]) for m in texts
    ]
    best = [max(score[i][m] for m in texts if owner[m] == i) for i in images]
    of_images = [sum(score[i][m] >= best[i] for m in texts if owner[m] != i) for i in images]
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
    of_texts, of_images = brute_force(image, text, owner.tolist())
    assert ranks.text_to_image.tolist() == of_texts
    assert ranks.image_to_text.tolist() == of_images


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
