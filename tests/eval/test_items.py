"""The rules, against cases worked out by hand."""

import math

import pytest
import torch

from hnpretrain.eval import items
from hnpretrain.eval.items import (
    PAIR,
    WINOGROUND,
    choose_caption,
    choose_image,
    positives_beat_negative,
)


def right(rule, scores):
    return (rule.margins(torch.tensor(scores)) > 0).squeeze(-1).tolist()


def test_a_choice_is_right_only_if_strictly_higher():
    nan, inf = math.nan, math.inf
    pairs = [(0.2, 0.1), (0.1, 0.2), (0.3, 0.3), (nan, 0.1), (0.1, nan), (inf, 0.1), (inf, inf)]
    expected = [True, False, False, False, False, True, False]
    assert right(choose_caption(), [[pair] for pair in pairs]) == expected
    assert right(choose_image(), [[[one], [other]] for one, other in pairs]) == expected


def test_each_of_several_must_be_beaten():
    assert right(choose_caption(), [[[0.5, 0.1, 0.4]], [[0.5, 0.1, 0.6]], [[0.5, 0.5, 0]]]) == [
        *(True, False, False)
    ]
    both = positives_beat_negative("itt", 2)
    assert right(both, [[[0.5, 0.4, 0.3]], [[0.5, 0.2, 0.3]], [[0.3, 0.5, 0.3]]]) == [
        *(True, False, False)
    ]


def test_winoground_by_hand():
    # Rows: all right; text only; image only; all wrong; text tie; image tie; all equal. Columns:
    # image 0 with captions 0 and 1, image 1 with captions 0 and 1.
    rows = [
        (0.9, 0.2, 0.1, 0.8),
        (0.5, 0.2, 0.6, 0.8),
        (0.5, 0.6, 0.2, 0.8),
        (0.1, 0.9, 0.9, 0.1),
        (0.5, 0.5, 0.1, 0.9),
        (0.9, 0.2, 0.9, 0.95),
        (0.5, 0.5, 0.5, 0.5),
    ]
    scores = [[[a, b], [c, d]] for a, b, c, d in rows]
    text, image, group = (right(rule, scores) for rule in WINOGROUND)
    assert text == [True, True, False, False, False, True, False]
    assert image == [True, False, True, False, True, False, False]
    assert group == [True, False, False, False, False, False, False]
    assert (PAIR.margins(torch.tensor(scores)) > 0).tolist() == [
        [True, True],
        [True, True],
        [False, True],
        [False, False],
        [False, True],
        [True, True],
        [False, False],
    ]


@pytest.mark.parametrize(
    "rule, shape",
    [
        *((rule, (2, 2)) for rule in (*WINOGROUND, PAIR)),
        (choose_caption(), (1, 2)),
        (choose_caption(), (1, 5)),
        (choose_image(), (10, 1)),
        (positives_beat_negative("itt", 2), (1, 3)),
        (positives_beat_negative("itt", 2), (1, 5)),
    ],
)
def test_chance_is_what_random_scores_get(rule, shape):
    assert rule.applies(*shape)
    scores = torch.rand(200_000, *shape, generator=torch.Generator().manual_seed(0))
    found = (rule.margins(scores) > 0).double().mean().item()
    assert found == pytest.approx(rule.chance(*shape), abs=0.004)


def test_rules_tell_what_they_can_judge():
    assert not choose_caption().applies(1, 1)
    assert not choose_caption().applies(2, 2)
    assert not choose_image().applies(1, 2)
    assert not items.TEXT.applies(2, 3)
    assert not positives_beat_negative("itt", 2).applies(1, 2)
