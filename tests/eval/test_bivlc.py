"""BiVLC's parquet files: the paper's scores by type, and the four choices behind them."""

from statistics import mean

import pyarrow
import pyarrow.parquet
import pytest

from hnpretrain.eval.benchmarks.bivlc import BIVLC
from hnpretrain.eval.results import Withheld
from hnpretrain.eval.scorers import Cosine
from tests.eval.helpers import assert_at_chance

# (type, captions, images), then which choices are right: those of the photo, the generated image,
# the caption, the negative caption. Of the colours in conftest, yellow is nearer to red than to
# green.
ROWS = [
    ("add", ("red", "blue"), ("red", "blue"), (1, 1, 1, 1)),
    ("add", ("blue", "red"), ("red", "blue"), (0, 0, 0, 0)),
    ("replace", ("red", "green"), ("red", "yellow"), (1, 0, 1, 1)),
    ("replace", ("red", "yellow"), ("red", "green"), (1, 1, 1, 0)),
    ("swap", ("red", "red"), ("red", "blue"), (0, 0, 1, 0)),  # two ties
    ("swap", ("green", "blue"), ("blue", "blue"), (0, 1, 0, 0)),  # two ties
]
CHOICES = ("Ipos_2T", "Ineg_2T", "Tpos_2I", "Tneg_2I")


@pytest.fixture
def table(paint):
    rows = [
        {
            "image": {"bytes": paint(images[0]), "path": None},
            "caption": f"a {captions[0]} car",
            "negative_caption": f"a {captions[1]} car",
            "negative_image": {"bytes": paint(images[1]), "path": None},
            "type": kind,
            "subtype": "att",
        }
        for kind, captions, images, _ in ROWS
    ]
    return pyarrow.Table.from_pylist(rows)


def expected():
    """By a loop over the rows."""
    found = {"I2T": [], "T2I": [], "group": []} | {name: [] for name in CHOICES}
    for kind, _, _, right in ROWS:
        for name, each in zip(CHOICES, right, strict=True):
            found[name].append((kind, each))
        found["I2T"].append((kind, right[0] and right[1]))
        found["T2I"].append((kind, right[2] and right[3]))
        found["group"].append((kind, all(right)))
    values = {}
    for name, answers in found.items():
        values[name] = mean(float(right) for _, right in answers)
        for kind in ("add", "replace", "swap"):
            values[f"{name}/{kind}"] = mean(float(right) for each, right in answers if each == kind)
    return values


def test_scores_by_hand(tmp_path, table, color_encoder):
    pyarrow.parquet.write_table(table.slice(0, 4), tmp_path / "test-00000-of-00002.parquet")
    pyarrow.parquet.write_table(table.slice(4), tmp_path / "test-00001-of-00002.parquet")
    result = BIVLC.load(tmp_path, None, False).run(color_encoder, Cosine())
    scores = [score for score in result.scores if "text_only" not in score.name]
    want = expected()
    assert want["I2T"] == pytest.approx(2 / 6)
    assert want["group/replace"] == 0
    assert {score.name: score.accuracy.value for score in scores} == pytest.approx(want)
    assert [score.name for score in scores] == list(want)
    assert result.groups["subtype"] == ["att"] * 6
    assert result.names == tuple(f"row {number}" for number in range(6))


def test_a_broken_image_withholds_the_scores(tmp_path, table, color_encoder):
    path = tmp_path / "test.parquet"
    rows = table.to_pylist()
    rows[1]["negative_image"] = {"bytes": b"no image", "path": None}
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    with pytest.raises(Withheld, match=r"1 of 6 items .*test\.parquet row 1 negative_image"):
        BIVLC.load(path, None, False).run(color_encoder, Cosine())
    result = BIVLC.load(path, None, True).run(color_encoder, Cosine())
    assert (result["I2T/add"].value, result["I2T/add"].count) == (1, 1)
    assert result.left_out == 1


@pytest.mark.parametrize("column", ["caption", "negative_caption", "type", "subtype"])
def test_a_malformed_row_is_named(tmp_path, table, column):
    path = tmp_path / "test.parquet"
    rows = table.to_pylist()
    rows[2][column] = None
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    with pytest.raises(ValueError, match=f"row 2: '{column}' must be a non-empty string") as caught:
        BIVLC.load(path, None, False)
    assert "\n" not in str(caught.value)


def test_a_missing_column_is_named(tmp_path, table):
    path = tmp_path / "test.parquet"
    pyarrow.parquet.write_table(table.drop_columns(["negative_image"]), path)
    with pytest.raises(ValueError, match=r"bivlc: .* lacks the columns negative_image"):
        BIVLC.load(path, None, False)


def test_random_scores_are_at_chance(tmp_path, table, color_encoder):
    path = tmp_path / "test.parquet"
    pyarrow.parquet.write_table(table, path)
    assert_at_chance(BIVLC.load(path, None, False), color_encoder)
