"""The table on the screen."""

import io

import pytest
from rich.console import Console

from hnpretrain.eval import benchmarks
from hnpretrain.eval.accuracy import Accuracy
from hnpretrain.eval.report import print_kinds, print_result
from hnpretrain.eval.results import ModelName, Result, Score

RESULT = Result(
    "sugarcrepe",
    "image_caption_selection",
    "data/sugarcrepe",
    (
        Score("swap_obj", Accuracy.of([1, 1, 1, 0]), 0.5, "micro"),
        Score("acc", Accuracy(0.123456, 7511, 0.0051), 0.5, "micro over all pairs", ties=3),
    ),
    ("PARTIAL: 12 pairs left out [see below]",),
    left_out=12,
)
NAME = ModelName("ViT-B-32", "openai")


def show(terminal: bool, result: Result = RESULT, name: ModelName = NAME) -> str:
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=100, no_color=True)
    print_result(result, name, console)
    return out.getvalue()


def test_plain_lines_are_aligned_and_whole():
    assert show(terminal=False).splitlines() == [
        "sugarcrepe, ViT-B-32:openai, data/sugarcrepe",
        "score        n      %  +- se  chance %  ties  average",
        "swap_obj     4  75.00  25.00     50.00     0  micro",
        "acc       7511  12.35   0.51     50.00     3  micro over all pairs",
        "note: PARTIAL: 12 pairs left out [see below]",
        "",
    ]


def test_a_terminal_gets_a_table_with_the_same_numbers():
    shown = show(terminal=True)
    for part in ("75.00", "25.00", "7511", "micro over all pairs", "[see below]", "openai"):
        assert part in shown


@pytest.mark.parametrize("terminal", [False, True])
def test_names_are_printed_as_they_are(terminal):
    """Brackets and colons are no markup."""
    scores = tuple(
        Score(name, Accuracy.of([1]), 0.5, f"micro within {name}") for name in ("[/]", "[bold]x")
    )
    shown = show(
        terminal,
        Result("d", "t", "data/[x]/:car:", scores, ("note [/]",)),
        ModelName("runs/[seed0]/d", ""),
    )
    for part in ("[/]", "[bold]x", "micro within [bold]x", "runs/[seed0]/d", "data/[x]/:car:"):
        assert part in shown


def test_a_score_is_found_by_name():
    assert RESULT["swap_obj"].count == 4
    with pytest.raises(KeyError, match="no score 'macro'"):
        RESULT["macro"]


def test_the_list_tells_where_to_get_each_benchmark_and_its_licence():
    out = io.StringIO()
    kinds = [kind.about for kind in benchmarks.KINDS.values()]
    print_kinds(kinds, Console(file=out, width=200))
    for about in kinds:
        assert f"{about.name}: {about.title}" in out.getvalue()
        assert about.source in out.getvalue()
        assert f"licence: {about.licence}" in out.getvalue()
