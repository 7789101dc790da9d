"""MMVP-VLM: pairs by number, the official comparison, the mean over patterns, broken tables."""

import csv

import pytest

from hnpretrain.eval.benchmarks.mmvp_vlm import MMVP_VLM
from hnpretrain.eval.results import Withheld
from hnpretrain.eval.scorers import Cosine
from tests.eval.helpers import assert_at_chance, assert_scores

# (pattern, statements, images). Of the colours in conftest, yellow is nearer to red than to green.
PAIRS = [
    ("Color", ("red", "blue"), ("red", "blue")),  # text and image
    ("Color", ("blue", "red"), ("red", "blue")),  # neither
    ("Color", ("red", "green"), ("red", "yellow")),  # image alone
    ("Camera Perspective", ("red", "yellow"), ("red", "green")),  # text alone
    ("Camera Perspective", ("red", "red"), ("red", "blue")),  # ties: neither
]


def statements():
    """Rows of the table, in order."""
    return [
        [str(2 * pair + each + 1), pattern, f"the car, in {colors[each]} paint"]
        for pair, (pattern, colors, _) in enumerate(PAIRS)
        for each in (0, 1)
    ]


@pytest.fixture
def folder(tmp_path, paint):
    for pair, (pattern, _, colors) in enumerate(PAIRS):
        within = tmp_path / "MLLM_VLM Images" / pattern
        within.mkdir(parents=True, exist_ok=True)
        for each, color in enumerate(colors):
            (within / f"{2 * pair + each + 1}.jpg").write_bytes(paint(color))
    write(tmp_path, statements())
    return tmp_path


def write(folder, rows):
    with (folder / "Questions.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["Question ID", "Type", "Statement"], *rows])


def test_scores_by_hand(folder, color_encoder):
    result = MMVP_VLM.load(folder, None, False).run(color_encoder, Cosine())
    expected = {
        "image": (2 / 5, 5),
        "image/Camera Perspective": (0, 2),
        "image/Color": (2 / 3, 3),
        "image/pattern-macro": (1 / 3, 5),
        "text": (2 / 5, 5),
        "text/Camera Perspective": (1 / 2, 2),
        "text/Color": (1 / 3, 3),
        "text/pattern-macro": (5 / 12, 5),
        "group": (1 / 5, 5),
        "group/Camera Perspective": (0, 2),
        "group/Color": (1 / 3, 3),
        "group/pattern-macro": (1 / 6, 5),
    }
    assert_scores(result, expected)
    assert result.names[1] == "pair 3-4"


def test_the_official_prompt_is_used(folder, color_encoder):
    result = MMVP_VLM.load(folder, None, False).run(color_encoder, Cosine())
    assert result.items[0].captions == (
        "a photo of the car, in red paint",
        "a photo of the car, in blue paint",
    )


def test_pairs_are_those_of_the_numbers(folder, color_encoder):
    want = MMVP_VLM.load(folder, None, False).run(color_encoder, Cosine())
    write(folder, statements()[::-1])
    got = MMVP_VLM.load(folder, folder / "MLLM_VLM Images", False).run(color_encoder, Cosine())
    assert got.scores == want.scores
    assert got.names == want.names


def test_a_missing_image_withholds_the_scores(folder, color_encoder):
    (folder / "MLLM_VLM Images" / "Color" / "2.jpg").unlink()
    with pytest.raises(Withheld, match=r"1 of 5 items .*2\.jpg"):
        MMVP_VLM.load(folder, None, False).run(color_encoder, Cosine())
    result = MMVP_VLM.load(folder, None, True).run(color_encoder, Cosine())
    assert result["image"].value == pytest.approx(1 / 4)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (["4", "Text", "x"], r"line 5: 'Type' must be that of Question ID 3, 'Color', got 'Text'"),
        (["3", "Color", "x"], r"line 5: 'Question ID' 3 is there twice"),
        (
            ["four", "Color", "x"],
            r"line 5: 'Question ID' must be a whole number from 1, got 'four'",
        ),
        (["0", "Color", "x"], r"line 5: 'Question ID' must be a whole number from 1, got '0'"),
        (["4", "Color", " "], r"line 5: 'Statement' must be a non-empty string"),
        (["4", "Color"], r"line 5: 'Statement' must be a non-empty string, got None"),
        (["44", "Color", "x"], r"Questions\.csv: Question ID 4 is not there; 3 and 4 are a pair"),
    ],
)
def test_a_malformed_row_is_named(folder, row, message):
    rows = statements()
    rows[3] = row
    write(folder, rows)
    with pytest.raises(ValueError, match=message) as caught:
        MMVP_VLM.load(folder, None, False)
    assert "Questions.csv" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_not_there_is_named(folder, tmp_path):
    (folder / "Questions.csv").unlink()
    with pytest.raises(ValueError, match=r"Questions\.csv: no such file"):
        MMVP_VLM.load(folder, None, False)
    with pytest.raises(ValueError, match="MLLM_VLM Images' is not a folder"):
        MMVP_VLM.load(tmp_path / "nowhere", None, False)


def test_random_scores_are_at_chance(folder, color_encoder):
    assert_at_chance(MMVP_VLM.load(folder, None, False), color_encoder)
