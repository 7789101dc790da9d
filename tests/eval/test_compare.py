"""Paired tests against values worked out by hand, and the command."""

import json
import math
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from hnpretrain.cli import app
from hnpretrain.eval.accuracy import Accuracy
from hnpretrain.eval.benchmarks.base import About, By, Selection
from hnpretrain.eval.compare import compare, compare_all, holm, mcnemar
from hnpretrain.eval.images import ImageSource
from hnpretrain.eval.items import PAIR, Item, choose_caption
from hnpretrain.eval.results import ModelName, Outcome, Result, Run, Score, write_json
from hnpretrain.eval.scorers import Random

KEY = ("colors", "image_caption_selection", 0)


@pytest.mark.parametrize(
    "first_only, second_only, p",
    [
        (0, 0, 1),
        (0, 1, 1),
        (3, 3, 1),
        (3, 4, 1),
        (0, 5, 2 / 32),
        (5, 0, 2 / 32),
        (1, 5, 2 * (1 + 6) / 64),
        (2, 8, 2 * (1 + 10 + 45) / 1024),
    ],
)
def test_mcnemar_by_hand(first_only, second_only, p):
    assert mcnemar(first_only, second_only) == pytest.approx(p, rel=1e-12)


@pytest.mark.parametrize("smaller, larger", [(40, 61), (480, 520), (1500, 1700), (100, 1500)])
def test_mcnemar_of_many_items_is_still_exact(smaller, larger):
    n = smaller + larger
    exact = 2 * sum(math.comb(n, k) for k in range(smaller + 1)) / 2**n
    assert mcnemar(smaller, larger) == pytest.approx(exact, rel=1e-9)


def test_mcnemar_of_very_many_items_neither_fails_nor_lasts():
    assert mcnemar(0, 100_000) == 0
    z = 2000 / 2_000_000**0.5
    assert mcnemar(999_000, 1_001_000) == pytest.approx(math.erfc(z / 2**0.5), rel=0.01)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.4, 0.6, 0.5]) == [1, 1, 1]
    assert holm([]) == []


def make_run(right, groups=None, names=None, told=(), path="run.json", model="m"):
    """A run of one benchmark.

    Args:
        right: for each item its answers, 0 or 1.
        groups: of each item.
        told: scores beside that of all items, as (name, dimension, rows of each part).
    """
    margins = torch.tensor(right).double() - 0.5
    answers = margins.shape[1]

    def score(name, dimension, parts):
        found = [Accuracy.of(margins[list(rows)] > 0, answers) for rows in parts]
        average = "micro" if len(parts) == 1 else f"mean of {len(parts)} groups"
        return Score(name, Accuracy.macro(found), 0.5, average, 0, dimension)

    names = names or [f"item {number}" for number in range(len(right))]
    result = Result(
        "colors",
        "image_caption_selection",
        "data",
        (score("acc", "", [range(len(right))]), *(score(*each) for each in told)),
        names=tuple(names),
        groups={} if groups is None else {"kind": groups},
        outcomes={"acc": Outcome(range(len(right)), margins)},
    )
    return Run.of(Path(path), [result], [], ModelName(model, ""))


def only(comparison, name="acc"):
    (benchmark,) = comparison.benchmarks
    (found,) = [each for each in benchmark.differences if each.name == name]
    return found


def test_one_answer_an_item():
    """Eight gained, two lost, ten alike."""
    a = make_run([[0]] * 8 + [[1]] * 2 + [[1]] * 6 + [[0]] * 4)
    b = make_run([[1]] * 8 + [[0]] * 2 + [[1]] * 6 + [[0]] * 4)
    found = only(compare(a, b))
    assert (found.count, found.first, found.second) == (20, 8 / 20, 14 / 20)
    assert found.difference == pytest.approx(6 / 20)
    # Ten times d = 0, eight times 1, twice -1, about their mean 0.3.
    squares = 8 * 0.7**2 + 2 * 1.3**2 + 10 * 0.3**2
    assert found.standard_error == pytest.approx(squares**0.5 / 20)
    assert found.p == pytest.approx(2 * (1 + 10 + 45) / 1024)
    assert found.corrected == found.p
    assert not found.is_significant
    back = only(compare(b, a))
    assert (back.difference, back.p) == (-found.difference, found.p)


def test_answers_of_one_item_are_one_cluster():
    a = make_run([[0, 0], [0, 1], [1, 0], [1, 1]])
    b = make_run([[1, 1], [1, 1], [0, 0], [1, 1]])
    found = only(compare(a, b))
    assert found.count == 8
    # The items' sums of d are 2, 1, -1, 0.
    assert found.difference == pytest.approx(2 / 8)
    assert found.standard_error == pytest.approx((1.5**2 + 0.5**2 + 1.5**2 + 0.5**2) ** 0.5 / 8)
    assert found.p == pytest.approx(math.erfc(2 / (4 + 1 + 1) ** 0.5 / 2**0.5))
    assert found.test == "normal"


def test_the_mean_of_groups():
    groups = ["x", "x", "y", "y", "y", "y"]
    told = [
        ("acc/x", "kind", [(0, 1)]),
        ("acc/y", "kind", [(2, 3, 4, 5)]),
        ("acc/kind-macro", "", [(0, 1), (2, 3, 4, 5)]),
    ]
    a = make_run([[0], [1], [0], [0], [1], [0]], groups, told=told)
    b = make_run([[1], [1], [1], [1], [0], [0]], groups, told=told)
    comparison = compare(a, b)
    assert only(comparison, "acc/x").difference == pytest.approx(1 / 2)
    assert only(comparison, "acc/y").difference == pytest.approx(1 / 4)
    assert only(comparison, "acc/y").p == 1
    found = only(comparison, "acc/kind-macro")
    assert found.difference == pytest.approx((1 / 2 + 1 / 4) / 2)
    of_x = 2 * 0.5**2 / 2**2
    of_y = (2 * 0.75**2 + 1.25**2 + 0.25**2) / 4**2
    assert found.standard_error == pytest.approx((of_x + of_y) ** 0.5 / 2)
    about_zero = (1 / 2**2 + 3 / 4**2) ** 0.5 / 2
    assert found.p == pytest.approx(math.erfc(0.375 / about_zero / 2**0.5))
    assert comparison.tested == 4


def test_groups_of_one_item_prove_nothing():
    """About its own mean such a group has no error at all."""
    told = [("acc/kind-macro", "", [(0,), (1,)])]
    a = make_run([[0], [0]], ["x", "y"], told=told)
    b = make_run([[1], [1]], ["x", "y"], told=told)
    found = only(compare(a, b), "acc/kind-macro")
    assert (found.difference, found.standard_error) == (1, 0)
    assert found.p == pytest.approx(math.erfc(2**0.5 / 2**0.5))


def test_holm_goes_over_all_that_is_told():
    names = [f"item {number}" for number in range(10)]
    a = make_run([[0]] * 10, names=names, path="a.json")
    b = make_run([[1]] * 10, names=names, path="b.json")
    c = make_run([[1]] * 7 + [[0]] * 3, names=names, path="c.json")
    assert only(compare(a, b)).corrected == pytest.approx(2 / 2**10)
    first, second = compare_all([a, b, c])
    assert (first.tested, second.tested) == (2, 2)
    assert only(first).corrected == pytest.approx(2 * 2 / 2**10)
    assert only(second).corrected == pytest.approx(2 / 2**7)
    assert only(first).is_significant
    assert only(second).is_significant
    # As one of four it is no more than chance.
    last = compare_all([a, c, c, c, c])
    assert [only(each).is_significant for each in last] == [False] * 4


def test_equal_runs_do_not_differ(color_encoder):
    run = random_run(color_encoder, 0)
    (benchmark,) = compare(run, run).benchmarks
    assert len(benchmark.differences) == 5
    for each in benchmark.differences:
        assert (each.difference, each.standard_error, each.p, each.corrected) == (0, 0, 1, 1)
    assert (benchmark.shared, benchmark.unshared) == (30, 0)


def test_names_that_differ_in_part():
    a = make_run([[1], [0], [0]], names=["p", "q", "r"])
    b = make_run([[1], [1], [0], [0]], names=["r", "q", "s", "t"])
    comparison = compare(a, b)
    found = only(comparison)
    # Of q and r alone: both wrong in A, both right in B.
    assert (found.count, found.first, found.second) == (2, 0, 1)
    (benchmark,) = comparison.benchmarks
    assert (benchmark.shared, benchmark.unshared) == (2, 3)
    assert any("2 items that both have; 3 are in one run" in note for note in benchmark.notes())


def test_order_does_not_matter():
    a = make_run([[1], [0], [0]], names=["p", "q", "r"])
    b = make_run([[0], [0], [1]], names=["r", "q", "p"])
    assert only(compare(a, b)).standard_error == 0


def test_what_cannot_be_paired_is_told():
    a = make_run([[1], [0]], ["x", "y"])
    assert compare(a, make_run([[1]], names=["other"])).skipped == (
        "colors (image_caption_selection): no item of one name, so these are other data",
    )
    (reason,) = compare(a, make_run([[1], [0]], ["x", "z"])).skipped
    assert "'item 1' is in the kind 'y' and in 'z'" in reason
    (reason,) = compare(a, make_run([[1, 1], [0, 0]], ["x", "y"])).skipped
    assert "acc has 1 answers an item and 2" in reason
    nothing = Run(Path("b.json"), "m", [], [])
    assert compare(a, nothing).skipped == ("colors (image_caption_selection): b.json has none",)
    assert compare(nothing, a).skipped == ("colors (image_caption_selection): b.json has none",)
    a.results[0]["names"][1] = "item 0"
    with pytest.raises(ValueError, match="colors: some of its items have one name"):
        compare(a, a)


def test_scores_without_answers_are_left_out():
    a = make_run([[1], [0]], ["x", "y"])
    blind = {**a.results[0]["scores"][0], "name": "text_only"}
    own = {**blind, "name": "acc/all-kinds", "dimension": "family"}
    mean = {**blind, "name": "acc/x", "dimension": "kind", "average": "mean of 2 data sets"}
    of_means = {**blind, "name": "acc/kind-macro", "average": "mean of 2 data sets"}
    a.results[0]["scores"] += [blind, own, mean, of_means]
    (benchmark,) = compare(a, a).benchmarks
    assert [each.name for each in benchmark.differences] == ["acc"]
    assert benchmark.unpaired == ("text_only", "acc/all-kinds", "acc/x", "acc/kind-macro")
    assert any("4 scores (of text_only, acc)" in note for note in benchmark.notes())


@pytest.mark.parametrize(
    "number, field, value",
    [(0, "value", 0.75), (0, "standard_error", 0.1), (1, "count", 3), (2, "value", 0.9)],
)
def test_scores_that_are_not_those_of_the_answers(number, field, value):
    told = [("acc/x", "kind", [(0, 1)]), ("acc/kind-macro", "", [(0, 1), (2,)])]
    a, b = (make_run([[1], [0], [1]], ["x", "x", "y"], told=told) for _ in range(2))
    compare(a, b)
    b.results[0]["scores"][number][field] = value
    with pytest.raises(ValueError, match=r"run\.json: colors tells .* the file is damaged"):
        compare(a, b)


def test_a_score_of_a_group_that_is_not_there():
    a = make_run([[1], [0]], ["x", "y"], told=[("acc/x", "kind", [(0,)])])
    a.results[0]["scores"][1]["name"] = "acc/w"
    with pytest.raises(ValueError, match="a score 'acc/w', but no item of that group"):
        compare(a, a)


def random_run(encoder, seed, rule=None, path="run.json"):
    """Thirty items, of which the groups have 18, 9 and 3; those of under 5 do not count."""
    size = 1 if rule is None else 2
    items = [
        Item(
            f"item {number}",
            (ImageSource("a", b""),) * size,
            ("red", "blue"),
            {"kind": "x" if number % 5 < 3 else "y" if number % 10 < 9 else "z"},
        )
        for number in range(30)
    ]
    kind = Selection(
        About("colors", "", "", "", "", ""),
        lambda *_: items,
        (rule or choose_caption(),),
        (By("kind", at_least=5),),
    )
    result = kind.load(Path(), None, False).run(encoder, Random(seed))
    run = Run.of(Path(path), [result], [], ModelName("m", ""))
    run.results[0]["scores"] = [
        score for score in run.results[0]["scores"] if not score["name"].startswith("text_only")
    ]
    return run


@pytest.mark.parametrize("rule", [None, PAIR])
def test_benchmarks_scores_are_recomputed(color_encoder, rule):
    """What Selection tells, its small groups left out, and a direct loop over the margins."""
    a, b = (random_run(color_encoder, seed, rule) for seed in (0, 1))
    (benchmark,) = compare(a, b).benchmarks
    assert not benchmark.unpaired
    name = "acc" if rule is None else "pair"
    told = {score["name"]: score["value"] for score in b.results[0]["scores"]}
    assert {each.name: each.second for each in benchmark.differences} == pytest.approx(told)
    margins = [run.results[0]["outcomes"][name]["margins"] for run in (a, b)]
    groups = a.results[0]["groups"]["kind"]
    means = []
    for group in ("x", "y"):
        rows = [row for row in range(30) if groups[row] == group]
        gained = [
            (second > 0) - (first > 0)
            for row in rows
            for first, second in zip(margins[0][row], margins[1][row], strict=True)
        ]
        means.append(sum(gained) / len(gained))
    macro = next(each for each in benchmark.differences if each.name == f"{name}/kind-macro")
    assert macro.difference == pytest.approx(sum(means) / 2)


def test_runs_that_know_nothing_differ_as_often_as_they_may(color_encoder):
    """Under no difference a p value is at most 0.05 in at most 5 % of the comparisons."""
    runs = [random_run(color_encoder, seed, PAIR) for seed in range(120)]
    pairs = zip(runs[::2], runs[1::2], strict=True)
    p_values = [only(compare(a, b), "pair").p for a, b in pairs]
    low = sum(p <= 0.05 for p in p_values)
    assert low <= 60 * 0.05 + 3 * (60 * 0.05 * 0.95) ** 0.5


@pytest.fixture
def files(tmp_path):
    """Three runs; of the second, all ten answers are gained."""
    paths = []
    for letter, right in (("a", 0), ("b", 1), ("c", 0)):
        result = Result(
            "colors",
            KEY[1],
            "data",
            (Score("acc", Accuracy.of([right] * 10), 0.5, "micro"),),
            ("PARTIAL: 3 items left out [x]",),
            names=tuple(f"item {number}" for number in range(10)),
            outcomes={"acc": Outcome(range(10), torch.full((10, 1), right - 0.5))},
        )
        paths.append(tmp_path / f"{letter}.json")
        write_json(paths[-1], [result], [], ModelName(f"model [{letter}]", ""))
    return paths


def invoke(*arguments):
    arguments = ["eval", "compare", *map(str, arguments)]
    return CliRunner().invoke(app, arguments, catch_exceptions=False)


def test_the_command_marks_what_is_more_than_chance(files):
    done = invoke(*files[:2])
    assert done.exit_code == 0
    lines = done.output.splitlines()
    assert lines[0] == f"A: model [a], {files[0]}"
    assert lines[1] == f"B: model [b], {files[1]}"
    assert lines[2:5] == [
        "colors (image_caption_selection)",
        "score   n   A %     B %     B - A  +- se      p  p (Holm)  test",
        "acc    10  0.00  100.00  +100.00*   0.00  0.002     0.002  McNemar, exact",
    ]
    assert "note on B: PARTIAL: 3 items left out [x]" in lines
    assert lines[-1].startswith("* significant: p (Holm) <= 0.05")
    assert "over the 1 differences" in lines[-1]


def test_the_command_sets_every_run_against_the_first(files, tmp_path):
    done = invoke(*files, "--html", tmp_path / "abc.html")
    assert done.exit_code == 0
    lines = [line.split() for line in done.output.splitlines() if line.startswith("acc ")]
    assert [line[4] for line in lines] == ["+100.00*", "+0.00"]
    assert any(line.startswith("C: model [c]") for line in done.output.splitlines())
    assert "Evaluation of 3 models" in (tmp_path / "abc.html").read_text()


def test_wrong_requests(files, tmp_path):
    assert invoke(files[0]).exit_code == 2
    with pytest.raises(ValueError, match="--html"):
        invoke(*files, "--html", tmp_path)
    with pytest.raises(ValueError, match="no such file"):
        invoke(files[0], tmp_path / "no.json")
    value = json.loads(files[1].read_text())
    value["results"][0]["scores"][0]["value"] = 0.5
    files[1].write_text(json.dumps(value))
    with pytest.raises(ValueError, match=r"b\.json: colors tells 'acc' as 0\.5"):
        invoke(*files)
