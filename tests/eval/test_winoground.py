"""Winoground's two forms: scores by tag, images beside the lines, broken files, chance."""

import json

import pyarrow
import pyarrow.parquet
import pytest

from hnpretrain.eval.benchmarks.winoground import WINOGROUND_SET
from hnpretrain.eval.results import Withheld
from hnpretrain.eval.scorers import Cosine
from tests.eval.helpers import assert_at_chance, assert_scores

# (captions, images, collapsed_tag, num_main_preds, secondary_tag). Of the colours in conftest,
# yellow is nearer to red (.79) than to green (.75).
ROWS = [
    (("red", "blue"), ("red", "blue"), "Object", 1, ""),  # text and image
    (("blue", "red"), ("red", "blue"), "Object", 1, "Series"),  # neither
    (("red", "red"), ("red", "blue"), "Object", 2, ""),  # ties: neither
    (("red", "green"), ("red", "yellow"), "Relation", 1, "Symbolic"),  # image alone
    (("red", "yellow"), ("red", "green"), "Relation", 2, "Symbolic"),  # text alone
    (("green", "blue"), ("green", "blue"), "Both", 1, ""),  # text and image
]
EXPECTED = {
    "text": (3, 6),
    "text/Both": (1, 1),
    "text/Object": (1, 3),
    "text/Relation": (1, 2),
    "text/1-pred": (2, 4),
    "text/2-pred": (1, 2),
    "text/Series": (0, 1),
    "text/Symbolic": (1, 2),
    "image": (3, 6),
    "image/Both": (1, 1),
    "image/Object": (1, 3),
    "image/Relation": (1, 2),
    "image/1-pred": (3, 4),
    "image/2-pred": (0, 2),
    "image/Series": (0, 1),
    "image/Symbolic": (1, 2),
    "group": (2, 6),
    "group/Both": (1, 1),
    "group/Object": (1, 3),
    "group/Relation": (0, 2),
    "group/1-pred": (2, 4),
    "group/2-pred": (0, 2),
    "group/Series": (0, 1),
    "group/Symbolic": (0, 2),
}


def fields(number, row):
    """A line as in the official file."""
    captions, _, tag, predicates, visual = row
    return {
        "id": number,
        "image_0": f"ex_{number}_img_0",
        "image_1": f"ex_{number}_img_1",
        "caption_0": f"a {captions[0]} car",
        "caption_1": f"the {captions[1]} car",
        "tag": "Noun, Adjective",
        "secondary_tag": visual,
        "num_main_preds": predicates,
        "collapsed_tag": tag,
    }


@pytest.fixture
def folder(tmp_path, paint):
    """data/examples.jsonl and data/images."""
    images = tmp_path / "data" / "images"
    images.mkdir(parents=True)
    lines = []
    for number, row in enumerate(ROWS):
        lines.append(json.dumps(fields(number, row)))
        for each, color in enumerate(row[1]):
            (images / f"ex_{number}_img_{each}.png").write_bytes(paint(color))
    (tmp_path / "data" / "examples.jsonl").write_text("\n".join(lines) + "\n")
    return tmp_path


def write_parquet(path, paint, **changes):
    rows = []
    for number, row in enumerate(ROWS):
        cells = {f"image_{each}": {"bytes": paint(row[1][each]), "path": ""} for each in (0, 1)}
        rows.append(fields(number, row) | cells | changes)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=4)
    return path


def assert_expected(result):
    assert_scores(
        result, {name: (right / count, count) for name, (right, count) in EXPECTED.items()}
    )


def test_scores_by_hand_of_lines(folder, color_encoder):
    whole = WINOGROUND_SET.load(folder, None, False).run(color_encoder, Cosine())
    assert_expected(whole)
    assert whole.names == tuple(f"id {number}" for number in range(6))
    lines, images = folder / "data" / "examples.jsonl", folder / "data" / "images"
    for data, given in ((folder / "data", None), (lines, None), (lines, images)):
        result = WINOGROUND_SET.load(data, given, False).run(color_encoder, Cosine())
        assert result.scores == whole.scores


def test_scores_by_hand_of_parquet(tmp_path, paint, color_encoder):
    path = write_parquet(tmp_path / "test-00000-of-00001.parquet", paint)
    for data in (path, tmp_path):
        assert_expected(WINOGROUND_SET.load(data, None, False).run(color_encoder, Cosine()))
    with pytest.raises(ValueError, match="takes no image folder"):
        WINOGROUND_SET.load(path, tmp_path, False)


def test_no_secondary_tag_may_be_null(tmp_path, paint, color_encoder):
    path = write_parquet(tmp_path / "test.parquet", paint, secondary_tag=None)
    result = WINOGROUND_SET.load(path, None, False).run(color_encoder, Cosine())
    assert set(result.groups) == {"tag", "predicates"}


def test_a_missing_image_withholds_the_scores(folder, color_encoder):
    (folder / "data" / "images" / "ex_3_img_1.png").unlink()
    with pytest.raises(Withheld, match=r"1 of 6 items .*ex_3_img_1\.png"):
        WINOGROUND_SET.load(folder, None, False).run(color_encoder, Cosine())
    result = WINOGROUND_SET.load(folder, None, True).run(color_encoder, Cosine())
    assert (result["image"].count, result.left_out) == (5, 1)
    assert result["image"].value == pytest.approx(2 / 5)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("caption_1", " ", "'caption_1' must be a non-empty string"),
        ("image_0", 3, "'image_0' must be a non-empty string, got 3"),
        ("num_main_preds", "one", "'num_main_preds' must be a whole number from 0, got 'one'"),
        ("collapsed_tag", None, "'collapsed_tag' must be"),
        ("secondary_tag", 7, "'secondary_tag' must be"),
        ("id", None, "'id' must be a whole number from 0, got None"),
        ("id", 1.5, "'id' must be a whole number from 0, got 1.5"),
        ("id", True, "'id' must be a whole number from 0, got True"),
    ],
)
def test_a_malformed_line_is_named(folder, key, value, message):
    path = folder / "data" / "examples.jsonl"
    broken = fields(6, ROWS[0]) | {key: value}
    path.write_text(path.read_text() + json.dumps(broken))
    with pytest.raises(ValueError, match=message) as caught:
        WINOGROUND_SET.load(folder, None, False)
    assert "examples.jsonl line 7" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_not_there_is_named(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"no \*\.parquet in"):
        WINOGROUND_SET.load(tmp_path / "empty", None, False)
    (folder / "data" / "images").rename(folder / "elsewhere")
    with pytest.raises(ValueError, match=r"image folder .*images' is not a folder"):
        WINOGROUND_SET.load(folder, None, False)


def test_random_scores_are_at_chance(folder, color_encoder):
    assert_at_chance(WINOGROUND_SET.load(folder, None, False), color_encoder)
