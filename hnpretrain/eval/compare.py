"""Which of two models is better: paired tests of the answers that both gave.

Two runs answer the same items, so that what is hard for one is mostly hard for the other. The
difference of their scores is known much better than either score: its standard error is that of the
items' differences d = right_B - right_A, all answers of one item together (they are no independent
draws). The tests, each two-sided:

- where an item has one answer, McNemar's exact one: of the items that one run alone has right, each
  run would have half by chance (binomial);
- where it has several, and for macro averages, a normal test of the mean difference. Its error is
  that about zero, sum d^2 and not sum (d - mean)^2, as the hypothesis of no difference has it. With
  one answer an item this is McNemar's statistic (b - c) / sqrt(b + c); and a group of one item,
  whose error about its mean would be 0, adds its share.

Many scores are told at once, some would differ by chance; so p values are corrected by Holm's rule
(Holm 1979) over all that are told.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from hnpretrain.eval.accuracy import Accuracy
from hnpretrain.eval.results import Key, Run

LEVEL = 0.05

_EXACT = "McNemar, exact"
_NORMAL = "normal"
_TOLERANCE = 1e-9

# How `Score.average` begins for the averages that can be had again from the answers. A benchmark
# may have others, such as means of means, under names that look the same.
_MICRO = re.compile(r"micro\b")
_MACRO = re.compile(r"mean of \d+ groups\b")


@dataclass(frozen=True)
class Difference:
    """One score of two runs, over the items that both have.

    Attributes:
        name: of the score.
        count: the answers that were paired.
        first, second: the values, in [0, 1].
        standard_error: of their difference.
        test: which gave `p`.
        p: the probability of such a difference or a larger one if there is none.
        corrected: `p` by Holm's rule.
    """

    name: str
    count: int
    first: float
    second: float
    standard_error: float
    test: str
    p: float
    corrected: float = 1.0

    @property
    def difference(self) -> float:
        return self.second - self.first

    @property
    def is_significant(self) -> bool:
        return self.corrected <= LEVEL


@dataclass(frozen=True)
class Paired:
    """A benchmark that two runs have.

    Attributes:
        key: see `Run.by_key`.
        differences: in the first run's order of scores.
        shared: the items that both have.
        unshared: those that one of them alone has.
        unpaired: scores that cannot be paired: one run lacks them or what they were made of.
    """

    key: Key
    differences: tuple[Difference, ...]
    shared: int
    unshared: int
    unpaired: tuple[str, ...]

    def notes(self) -> Iterator[str]:
        """What a reader of the differences must know, one sentence each."""
        if self.unshared:
            yield (
                f"over the {self.shared} items that both have; {self.unshared} are in one run alone"
            )
        if self.unpaired:
            heads = dict.fromkeys(name.partition("/")[0] for name in self.unpaired)
            yield (
                f"{len(self.unpaired)} scores (of {', '.join(heads)}) are not compared: the files "
                "do not tell the answers behind them, or one run lacks them"
            )


@dataclass(frozen=True)
class Comparison:
    """Two runs.

    Attributes:
        benchmarks: those that could be compared, in the first run's order.
        skipped: what could not, and why; one sentence each.
        tested: the p values over which Holm's rule went, those of other comparisons included.
    """

    first: Run
    second: Run
    benchmarks: tuple[Paired, ...]
    skipped: tuple[str, ...]
    tested: int


def compare(first: Run, second: Run) -> Comparison:
    """Both runs' scores, paired; `second` less `first`.

    Raises:
        ValueError: a file's scores are not those of its answers.
    """
    (comparison,) = compare_all([first, second])
    return comparison


def compare_all(runs: Sequence[Run]) -> list[Comparison]:
    """Every run against the first, with one correction over all. Raises as `compare` does."""
    readings = [
        {key: _Reading(run, result) for key, result in run.by_key().items()} for run in runs
    ]
    found = [
        _compare(runs[0], run, readings[0], reading)
        for run, reading in zip(runs[1:], readings[1:], strict=True)
    ]
    p_values = [
        difference.p
        for comparison in found
        for benchmark in comparison.benchmarks
        for difference in benchmark.differences
    ]
    # Dealt out in the order in which they were collected.
    corrected = iter(holm(p_values))
    return [
        replace(
            comparison,
            benchmarks=tuple(_correct(each, corrected) for each in comparison.benchmarks),
            tested=len(p_values),
        )
        for comparison in found
    ]


def _correct(benchmark: Paired, corrected: Iterator[float]) -> Paired:
    differences = tuple(replace(each, corrected=next(corrected)) for each in benchmark.differences)
    return replace(benchmark, differences=differences)


def mcnemar(first_only: int, second_only: int) -> float:
    """The two-sided p value: how likely a split at least as uneven is if each side has 1/2.

    Args:
        first_only, second_only: the items that one run alone has right.
    """
    smaller, total = min(first_only, second_only), first_only + second_only
    if 2 * smaller >= total - 1:
        return 1.0  # the two tails meet
    # P(X <= smaller) of a binomial, from its largest term down; by logarithms, since 2^-total
    # vanishes for thousands of items.
    term, tail = 1.0, 1.0
    for k in range(smaller, 0, -1):
        term *= k / (total - k + 1)
        tail += term
        if term < 1e-18 * tail:
            break
    largest = (
        math.lgamma(total + 1)
        - math.lgamma(smaller + 1)
        - math.lgamma(total - smaller + 1)
        - total * math.log(2)
    )
    return min(1.0, 2 * tail * math.exp(largest))


def normal(difference: float, standard_error: float) -> float:
    """The two-sided p value of a mean difference, by the normal distribution."""
    if difference == 0:
        return 1.0
    return math.erfc(abs(difference) / standard_error / math.sqrt(2))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's corrected p values: at or below a level, the difference is significant at it."""
    corrected = [1.0] * len(p_values)
    largest = 0.0
    for place, number in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[number]))
        corrected[number] = largest
    return corrected


class _Reading:
    """A result's answers, and which of them each score is made of.

    A score is a mean of parts: of one part, all items or a group; or of several, a macro average.
    """

    def __init__(self, run: Run, result: Mapping[str, Any]) -> None:
        self.groups: Mapping[str, list[str | None]] = result["groups"]
        self.names: list[str] = result["names"]
        self.row_of = {name: row for row, name in enumerate(self.names)}
        self._where = f"{run.path}: {result['dataset']}"
        if len(self.row_of) < len(self.names):
            raise ValueError(f"{self._where}: some of its items have one name, so cannot be paired")
        self.right: dict[str, dict[int, np.ndarray]] = {}
        for rule, outcome in result["outcomes"].items():
            right_NA = np.array(outcome["margins"], dtype=np.float64) > 0
            self.right[rule] = dict(zip(outcome["rows"], right_NA, strict=True))
        self.scores: dict[str, tuple[str, dict[str, list[int]]]] = {}
        self.unpaired: list[str] = []
        for score in result["scores"]:
            found = self._parts(score)
            if found is None:
                self.unpaired.append(score["name"])
            else:
                self._check(score, *found)
                self.scores[score["name"]] = found

    def _parts(self, score: Mapping[str, Any]) -> tuple[str, dict[str, list[int]]] | None:
        """The score's rule and the rows of each part; None if these cannot be had from the file.

        So it is without stored answers, and where a benchmark has averages of its own.
        """
        name, dimension = score["name"], score["dimension"]
        is_micro = _MICRO.match(score["average"]) is not None
        is_macro = _MACRO.match(score["average"]) is not None
        if name in self.right and is_micro:
            return name, {"": list(self.right[name])}
        for rule in self.right:
            group = name.removeprefix(f"{rule}/")
            if group == name:
                continue
            if dimension in self.groups and is_micro:
                rows = self._rows(rule, dimension).get(group)
                if rows is None:
                    raise self._damaged(f"has a score {name!r}, but no item of that group")
                return rule, {group: rows}
            if group.removesuffix("-macro") in self.groups and is_macro:
                return rule, self._counted(score, rule, group.removesuffix("-macro"))
        return None

    def _rows(self, rule: str, dimension: str) -> dict[str, list[int]]:
        """The rows of each group of a dimension."""
        found: dict[str, list[int]] = {}
        for row in self.right[rule]:
            group = self.groups[dimension][row]
            if group is not None:
                found.setdefault(group, []).append(row)
        return found

    def _counted(self, score: Mapping[str, Any], rule: str, dimension: str) -> dict[str, list[int]]:
        """The groups of which a macro average is the mean.

        Those below some size may not count. The size is not stored, but the sum of answers is, and
        the groups that count are the largest.
        """
        answers = len(next(iter(self.right[rule].values())))
        groups = sorted(self._rows(rule, dimension).items(), key=lambda each: -len(each[1]))
        counted: dict[str, list[int]] = {}
        total = 0
        for group, rows in groups:
            if total == score["count"]:
                break
            counted[group] = rows
            total += answers * len(rows)
        if not counted:
            raise self._damaged(f"has a score {score['name']!r}, but no item in a group")
        return counted

    def _check(self, score: Mapping[str, Any], rule: str, parts: dict[str, list[int]]) -> None:
        found = self.accuracy(rule, parts.values())
        told = Accuracy(score["value"], score["count"], score["standard_error"])
        if told.count != found.count or any(
            abs(a - b) > _TOLERANCE
            for a, b in (
                (told.value, found.value),
                (told.standard_error, found.standard_error),
            )
        ):
            raise self._damaged(
                f"tells {score['name']!r} as {told.value:.6f} +- {told.standard_error:.6f} of "
                f"{told.count}, but its answers give {found.value:.6f} +- "
                f"{found.standard_error:.6f} of {found.count}"
            )

    def accuracy(self, rule: str, parts: Iterable[Sequence[int]]) -> Accuracy:
        """The mean of the parts."""
        return Accuracy.macro([self._of_part(rule, rows) for rows in parts])

    def _of_part(self, rule: str, rows: Sequence[int]) -> Accuracy:
        right_NA = self.answers(rule, rows)
        return Accuracy.of(right_NA, clusters=right_NA.shape[1])

    def answers(self, rule: str, rows: Sequence[int]) -> np.ndarray:
        """N x A: which are right."""
        return np.stack([self.right[rule][row] for row in rows])

    def _damaged(self, what: str) -> ValueError:
        return ValueError(f"{self._where} {what}: the file is damaged")


def letter(number: int) -> str:
    """What a table calls a run: A, B, ..., Z, A1, B1, ..."""
    rounds, place = divmod(number, 26)
    return f"{chr(ord('A') + place)}{rounds or ''}"


def title(key: Key) -> str:
    """What to call a benchmark."""
    dataset, task, number = key
    return f"{dataset} ({task})" + (f", number {number + 1}" if number else "")


def rules(comparisons: Sequence[Comparison]) -> str:
    """How differences were tested and which are marked; for below a table."""
    return (
        f"* significant: p (Holm) <= {LEVEL}, which is p corrected over the "
        f"{comparisons[0].tested} differences told here. Each is of the same items, two-sided: "
        "McNemar's exact test where an item has one answer, else (and for macro averages) a normal "
        "test over items; se is that of the paired difference."
    )


def told_p(p: float) -> str:
    """A p value for a table."""
    return f"{p:.3f}" if p >= 0.001 else f"{p:.1e}"


def _compare(
    first: Run, second: Run, of_first: dict[Key, _Reading], of_second: dict[Key, _Reading]
) -> Comparison:
    benchmarks, skipped = [], []
    for key, a in of_first.items():
        b = of_second.get(key)
        reason = f"{second.path} has none" if b is None else _obstacle(a, b)
        if b is None or reason:
            skipped.append(f"{title(key)}: {reason}")
        else:
            benchmarks.append(_pair(key, a, b))
    skipped += [f"{title(key)}: {first.path} has none" for key in of_second if key not in of_first]
    return Comparison(first, second, tuple(benchmarks), tuple(skipped), 0)


def _obstacle(a: _Reading, b: _Reading) -> str:
    """Why two results cannot be paired, or nothing."""
    shared = [name for name in a.names if name in b.row_of]
    if not a.names or not b.names:
        return "its answers are not stored"
    if not shared:
        return "no item of one name, so these are other data"
    for dimension in a.groups.keys() & b.groups.keys():
        for name in shared:
            groups = [each.groups[dimension][each.row_of[name]] for each in (a, b)]
            if groups[0] != groups[1]:
                return f"{name!r} is in the {dimension} {groups[0]!r} and in {groups[1]!r}"
    for rule in a.right.keys() & b.right.keys():
        answers = [len(next(iter(each.right[rule].values()))) for each in (a, b)]
        if answers[0] != answers[1]:
            return f"{rule} has {answers[0]} answers an item and {answers[1]}"
    return ""


def _pair(key: Key, a: _Reading, b: _Reading) -> Paired:
    shared = sum(name in b.row_of for name in a.names)
    unpaired = dict.fromkeys([*a.unpaired, *b.unpaired])
    differences = []
    for name in dict.fromkeys([*a.scores, *b.scores]):
        parts = _shared_parts(a, b, name) if name in a.scores and name in b.scores else []
        if parts:
            differences.append(_difference(name, a, b, parts))
        else:
            unpaired[name] = None
    unshared = len(a.names) + len(b.names) - 2 * shared
    return Paired(key, tuple(differences), shared, unshared, tuple(unpaired))


def _shared_parts(a: _Reading, b: _Reading, name: str) -> list[tuple[list[int], list[int]]]:
    """For each part of a score, the rows of the items that both have there."""
    found = []
    for group, rows in a.scores[name][1].items():
        others = {b.names[row]: row for row in b.scores[name][1].get(group, ())}
        both = [(row, others[a.names[row]]) for row in rows if a.names[row] in others]
        if both:
            found.append(([row for row, _ in both], [other for _, other in both]))
    return found


def _difference(
    name: str, a: _Reading, b: _Reading, parts: list[tuple[list[int], list[int]]]
) -> Difference:
    rule = a.scores[name][0]
    first = a.accuracy(rule, [rows for rows, _ in parts])
    second = b.accuracy(rule, [rows for _, rows in parts])
    squares = squares_about_zero = 0.0
    for rows_a, rows_b in parts:
        right_a, right_b = a.answers(rule, rows_a), b.answers(rule, rows_b)
        d_N = (right_b.astype(np.float64) - right_a).sum(axis=1)
        squares += float(np.square(d_N - d_N.mean()).sum()) / right_a.size**2
        squares_about_zero += float(np.square(d_N).sum()) / right_a.size**2
    if len(parts) == 1 and right_a.shape[1] == 1:
        test, p = _EXACT, mcnemar(int((d_N < 0).sum()), int((d_N > 0).sum()))
    else:
        # Sums of many shares may miss a zero by rounding.
        gap = second.value - first.value
        gap = gap if abs(gap) > _TOLERANCE else 0.0
        test, p = _NORMAL, normal(gap, math.sqrt(squares_about_zero) / len(parts))
    error = math.sqrt(squares) / len(parts)
    return Difference(name, first.count, first.value, second.value, error, test, p)
