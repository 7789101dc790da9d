"""What the tests of several benchmarks check in the same way."""

from statistics import mean, stdev

import pytest

from hnpretrain.eval.scorers import Random


def assert_scores(result, expected):
    """The scores with an image are these, in this order: {name: (value, number of answers)}."""
    told = [score for score in result.scores if not score.name.startswith("text_only")]
    assert [score.name for score in told] == list(expected)
    for score in told:
        value, count = expected[score.name]
        got = (score.accuracy.value, score.accuracy.count)
        assert got == (pytest.approx(value), count), score.name


def assert_at_chance(benchmark, encoder, seeds=300):
    """What a random scorer gets lies, on average, within 3 standard errors of its chance."""
    runs = [benchmark.run(encoder, Random(seed)).scores for seed in range(seeds)]
    for scores in zip(*runs, strict=True):
        values = [score.accuracy.value for score in scores]
        off = abs(mean(values) - scores[0].chance)
        assert off <= 3 * stdev(values) / seeds**0.5, scores[0].name
