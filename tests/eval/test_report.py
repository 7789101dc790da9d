"""The JSON that goes out and the table on the screen."""

import io
import json

import pytest
from rich.console import Console

from hnpretrain.eval.report import ModelName, Result, Score, print_result, to_json, write_json
from hnpretrain.eval.scorers import Accuracy

RESULT = Result(
    "sugarcrepe",
    "image_caption_selection",
    "data/sugarcrepe",
    (
        Score("swap_obj", Accuracy.of([1, 1, 1, 0]), 0.5, "micro"),
        Score("acc", Accuracy(0.123456, 7511, 0.0051), 0.5, "micro over all pairs"),
    ),
    ("PARTIAL: 12 pairs left out [see below]",),
    left_out=12,
)
NAME = ModelName("ViT-B-32", "openai")


def test_json_has_clip_benchmarks_fields_and_ours(tmp_path):
    path = tmp_path / "out.json"
    write_json(path, [RESULT, RESULT], NAME)
    value = json.loads(path.read_text())
    assert value["format"] == 1
    first = value["results"][0]
    assert {key: first[key] for key in ("dataset", "model", "pretrained", "task", "language")} == {
        "dataset": "sugarcrepe",
        "model": "ViT-B-32",
        "pretrained": "openai",
        "task": "image_caption_selection",
        "language": "en",
    }
    assert first["metrics"] == {"swap_obj": 0.75, "acc": 0.123456}
    assert first["scores"][0] == {
        "name": "swap_obj",
        "value": 0.75,
        "standard_error": pytest.approx((0.75 * 0.25 / 4) ** 0.5),
        "count": 4,
        "chance": 0.5,
        "average": "micro",
    }
    assert first["left_out"] == 12
    assert first["notes"] == list(RESULT.notes)
    assert list(tmp_path.iterdir()) == [path]


def test_nothing_is_left_when_writing_fails(tmp_path):
    path = tmp_path / "out.json"
    path.write_text("old")
    broken = Result("x", "y", "z", (Score("acc", Accuracy(float("nan"), 1, 0.0), 0.5, "micro"),))
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, [broken], NAME)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def show(terminal: bool, result: Result = RESULT, name: ModelName = NAME) -> str:
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=100, no_color=True)
    print_result(result, name, console)
    return out.getvalue()


def test_plain_lines_are_aligned_and_whole():
    assert show(terminal=False).splitlines() == [
        "sugarcrepe, ViT-B-32:openai, data/sugarcrepe",
        "score        n      %  +- se  chance %  average",
        "swap_obj     4  75.00  21.65     50.00  micro",
        "acc       7511  12.35   0.51     50.00  micro over all pairs",
        "note: PARTIAL: 12 pairs left out [see below]",
        "",
    ]


def test_a_terminal_gets_a_table_with_the_same_numbers():
    shown = show(terminal=True)
    for part in ("75.00", "21.65", "7511", "micro over all pairs", "[see below]", "openai"):
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
    assert to_json(RESULT, ModelName("runs/a", ""))["pretrained"] == ""
