"""Shares of right answers and their errors, against cases worked out by hand."""

import math

import numpy as np
import pytest
import torch

from hnpretrain.eval.accuracy import Accuracy


def test_standard_error_is_the_binomial_one() -> None:
    got = Accuracy.of([True, True, True, False])
    assert (got.value, got.count) == (0.75, 4)
    assert got.standard_error == pytest.approx(math.sqrt(0.75 * 0.25 / 3))
    assert Accuracy.of([True]).standard_error == 0.5


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
    assert macro.standard_error == pytest.approx(math.sqrt(0.09 / 99 + 0.5 * 0.5) / 2)
    micro = Accuracy.of([1] * 90 + [0] * 10 + [0, 1])
    assert micro.value == pytest.approx(91 / 102)


def test_an_accuracy_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        Accuracy.of([])
    with pytest.raises(ValueError, match="at least one"):
        Accuracy.macro([])


def test_the_error_of_a_mean_of_tiny_groups_is_their_spread() -> None:
    generator = torch.Generator().manual_seed(5)
    draws = torch.rand(500, 40, 2, generator=generator) < 0.5
    found = [Accuracy.macro([Accuracy.of(group) for group in groups]) for groups in draws]
    spread = np.std([each.value for each in found])
    typical = np.sqrt(np.mean([each.standard_error**2 for each in found]))
    assert typical == pytest.approx(spread, rel=0.1)
