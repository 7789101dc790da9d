"""ColorSwap: the official json and the hub's parquet files give the same scores."""

import json

import pyarrow
import pyarrow.parquet
import pytest

from hnpretrain.eval.benchmarks.colorswap import COLORSWAP
from hnpretrain.eval.results import Withheld
from hnpretrain.eval.scorers import Cosine
from tests.eval.helpers import assert_at_chance

# Colours of two captions and of two images.
ITEMS = [
    ("red", "blue", "red", "blue"),  # all right
    ("blue", "red", "red", "blue"),  # all wrong
    ("red", "red", "red", "blue"),  # captions of one colour: text ties, image is wrong
    ("red", "green", "red", "yellow"),  # yellow prefers red; both captions prefer their image
]


def fields(number, first, second):
    return {
        "id": number,
        "caption_1": f"a {first} car by a tree",
        "caption_2": f"a {second} tree by a car",
        "image_source": "midjourney",
        "caption_source": "human",
    }


@pytest.fixture
def official(tmp_path, paint):
    """test.json with its images beside it."""
    folder = tmp_path / "official"
    (folder / "images").mkdir(parents=True)
    rows = []
    for number, (*captions, first, second) in enumerate(ITEMS):
        row = fields(number, *captions)
        for which, color in enumerate((first, second), start=1):
            row[f"image_{which}"] = f"images/img_{number}_{which}.png"
            (folder / row[f"image_{which}"]).write_bytes(paint(color))
        rows.append(row)
    (folder / "test.json").write_text(json.dumps(rows))
    return folder


@pytest.fixture
def hub(tmp_path, paint):
    """data/test-*.parquet and a training file that must not be read."""
    folder = tmp_path / "hub" / "data"
    folder.mkdir(parents=True)
    rows = [
        fields(number, *captions)
        | {f"image_{k}": {"bytes": paint(each), "path": None} for k, each in enumerate(images, 1)}
        for number, (*captions, one, two) in enumerate(ITEMS)
        for images in [(one, two)]
    ]
    table = pyarrow.Table.from_pylist(rows)
    pyarrow.parquet.write_table(table, folder / "test-00000-of-00001.parquet")
    (folder / "train-00000-of-00001.parquet").write_bytes(b"not to be read")
    return folder.parent


@pytest.mark.parametrize("form", ["file", "folder", "apart", "hub", "parquet"])
def test_scores_by_hand(official, hub, tmp_path, color_encoder, form):
    images = None
    data = official if form in ("file", "folder", "apart") else hub
    if form == "file":
        data = official / "test.json"
    if form == "parquet":
        data = hub / "data" / "test-00000-of-00001.parquet"
    if form == "apart":
        images = official
        data = tmp_path / "annotations.json"
        (official / "test.json").rename(data)
    result = COLORSWAP.load(data, images, False).run(color_encoder, Cosine())
    # The last: cos(yellow, red) = .79 > cos(yellow, green) = .75, so its second image prefers the
    # other caption; both captions prefer their own image.
    want = {"text": 1 / 4, "image": 2 / 4, "group": 1 / 4}
    got = {score.name: score.accuracy.value for score in result.scores}
    assert {name: got[name] for name in want} == want
    assert list(got)[:3] == list(want)
    assert result.names == tuple(f"example {number}" for number in range(4))


def test_files_that_lack_something_are_one_clear_line(official, hub, tmp_path):
    path = official / "test.json"
    rows = json.loads(path.read_text())
    for key in ("caption_2", "image_1"):
        path.write_text(json.dumps([rows[0], {**rows[1], key: ""}]))
        with pytest.raises(ValueError, match=rf"test\.json item 1: '{key}' must be a non-empty"):
            COLORSWAP.load(official, None, False)
    path.write_text(json.dumps({"0": rows[0]}))
    with pytest.raises(ValueError, match=r"test\.json: a list is needed, got dict"):
        COLORSWAP.load(path, None, False)
    with pytest.raises(
        ValueError,
        match=r"colorswap takes no image folder, got .*official': its images lie in .*hub",
    ):
        COLORSWAP.load(hub, official, False)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"colorswap: no test\*\.parquet in"):
        COLORSWAP.load(tmp_path / "empty", None, False)


def test_a_missing_image_withholds_all_but_partial_scores(official, color_encoder):
    (official / "images" / "img_1_2.png").unlink()
    with pytest.raises(Withheld, match=r"img_1_2\.png"):
        COLORSWAP.load(official, None, False).run(color_encoder, Cosine())
    result = COLORSWAP.load(official, None, True).run(color_encoder, Cosine())
    assert result.left_out == 1
    assert result["text"].value == pytest.approx(1 / 3)


def test_random_scores_lie_at_chance(official, color_encoder):
    assert_at_chance(COLORSWAP.load(official, None, False), color_encoder)
