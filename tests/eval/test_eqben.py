"""EqBen: the ways its json is written, frames stored as arrays, scores by source, chance."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from hnpretrain.eval.benchmarks.eqben import EQBEN
from hnpretrain.eval.results import Withheld
from hnpretrain.eval.scorers import Cosine
from tests.eval.helpers import assert_at_chance

# (folder, captions, images). Of the colours in conftest, yellow is nearer to red than to green.
ROWS = [
    ("eqbenag/video", ("red", "blue"), ("red", "blue")),  # text and image
    ("eqbenag/video", ("blue", "red"), ("red", "blue")),  # neither
    ("eqbenkubric_attr", ("red", "green"), ("red", "yellow")),  # image alone
    ("eqbenkubric_loc", ("red", "yellow"), ("red", "green")),  # text alone
    ("eqbenkubric_loc", ("red", "red"), ("red", "red")),  # ties: neither
    ("eqbensd", ("green", "blue"), ("green", "blue")),  # text and image
    ("eqbenyoucook2", ("blue", "red"), ("blue", "red")),  # text and image, if read as B, G, R
]
EXPECTED = {
    "text": 4 / 7,
    "text/eqbenag": 1 / 2,
    "text/eqbenkubric_attr": 0,
    "text/eqbenkubric_loc": 1 / 2,
    "text/eqbensd": 1,
    "text/eqbenyoucook2": 1,
    "text/source-macro": 3 / 5,
    "text/eqbenkubric": 1 / 3,
    "image": 4 / 7,
    "image/eqbenag": 1 / 2,
    "image/eqbenkubric_attr": 1,
    "image/eqbenkubric_loc": 0,
    "image/eqbensd": 1,
    "image/eqbenyoucook2": 1,
    "image/source-macro": 3.5 / 5,
    "image/eqbenkubric": 1 / 3,
    "group": 3 / 7,
    "group/eqbenag": 1 / 2,
    "group/eqbenkubric_attr": 0,
    "group/eqbenkubric_loc": 0,
    "group/eqbensd": 1,
    "group/eqbenyoucook2": 1,
    "group/source-macro": 2.5 / 5,
    "group/eqbenkubric": 0,
}


@pytest.fixture
def items(tmp_path, paint):
    """The json's items; their images lie in the folder images beside it."""
    items = []
    for number, (folder, captions, images) in enumerate(ROWS):
        files = []
        for each, color in enumerate(images):
            file = f"{folder}/{number}_{each}.png"
            path = tmp_path / "images" / file
            path.parent.mkdir(parents=True, exist_ok=True)
            if folder == "eqbenyoucook2":
                file = file.replace(".png", ".npy")
                pixels = np.asarray(Image.open(io.BytesIO(paint(color))))
                np.save(path.with_suffix(".npy"), pixels[:, :, ::-1])
            else:
                path.write_bytes(paint(color))
            files.append(file)
        items.append(
            {
                "image0": files[0],
                "caption0": f"a {captions[0]} car",
                "image1": files[1],
                "caption1": f"a {captions[1]} car",
            }
        )
    return items


@pytest.fixture
def write(tmp_path):
    def write(items):
        path = tmp_path / "all_select.json"
        path.write_text(json.dumps(items))
        return path

    return write


def assert_expected(result):
    scores = [score for score in result.scores if "text_only" not in score.name]
    found = {score.name: score.accuracy.value for score in scores}
    assert found == pytest.approx(EXPECTED)
    assert list(found) == list(EXPECTED)


def test_scores_by_hand(items, write, color_encoder):
    path = write(items)
    result = EQBEN.load(path, None, False).run(color_encoder, Cosine())
    assert_expected(result)
    assert result["text/eqbenkubric"].count == 3
    assert result.names[2] == "2 eqbenkubric_attr/2_0.png"
    given = EQBEN.load(path, path.parent / "images", False).run(color_encoder, Cosine())
    assert given.scores == result.scores


def test_keys_with_underscores_and_listed_captions(items, write, color_encoder):
    written = [
        {
            "image_0": item["image0"],
            "image_1": item["image1"],
            "caption_0": [item["caption0"], "another"],
            "caption_1": [item["caption1"], "another"],
        }
        for item in items
    ]
    assert_expected(EQBEN.load(write(written), None, False).run(color_encoder, Cosine()))


def test_a_missing_image_withholds_the_scores(items, write, color_encoder):
    path = write(items)
    (path.parent / "images" / "eqbenyoucook2" / "6_1.npy").unlink()
    with pytest.raises(Withheld, match=r"1 of 7 items .*6_1\.npy: no such file"):
        EQBEN.load(path, None, False).run(color_encoder, Cosine())
    result = EQBEN.load(path, None, True).run(color_encoder, Cosine())
    assert (result["group"].count, result.left_out) == (6, 1)


def header(text: str) -> bytes:
    """A numpy file of this header and 10 bytes."""
    padded = text.ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(padded).to_bytes(2, "little") + padded.encode() + b"0" * 10


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((4, 4), np.uint8), r"height x width x 3 are needed, got uint8 of shape \(4, 4\)"),
        (np.zeros((4, 4, 3)), "are needed, got float64"),
        (np.array([{}]), "are needed, got object"),
        (np.zeros((0, 5, 3), np.uint8), "0 pixels"),
        (np.asfortranarray(np.zeros((4, 5, 3), np.uint8)), "are needed"),
    ],
)
def test_a_broken_frame_is_named(items, write, color_encoder, array, message):
    path = write(items)
    np.save(path.parent / "images" / "eqbenyoucook2" / "6_1.npy", array)
    with pytest.raises(Withheld, match=rf"6_1\.npy.*{message}"):
        EQBEN.load(path, None, False).run(color_encoder, Cosine())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read: it is no array"),
        (b"PK\x03\x04", "cannot be read: it is no array"),
        (header("{'descr': '|u1', 'fortran_order': False, 'shape': (9, 9, 3)}"), "is cut short"),
        (
            header("{'descr': '|u1', 'fortran_order': False, 'shape': (1000000, 1000000, 3)}"),
            "pixels; from 1 to",
        ),
        (header("{'descr': '|u1', 'fortran_order': (("), "cannot be read: it is no array"),
    ],
)
def test_a_frame_promises_nothing_that_is_not_there(items, write, color_encoder, content, message):
    path = write(items)
    (path.parent / "images" / "eqbenyoucook2" / "6_1.npy").write_bytes(content)
    with pytest.raises(Withheld, match=rf"6_1\.npy.*{message}"):
        EQBEN.load(path, None, False).run(color_encoder, Cosine())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"caption1": ""}, "'caption1' must be a non-empty string"),
        ({"caption1": []}, "'caption1' must be a non-empty string"),
        ({"caption1": [3]}, "'caption1' must be a non-empty string"),
        ({"image0": None}, "'image0' must be a non-empty string"),
        ({"image0": "1.png"}, "must begin with its source data set, .* got '1.png'"),
    ],
)
def test_a_malformed_item_is_named(items, write, change, message):
    items[3] |= change
    with pytest.raises(ValueError, match=message) as caught:
        EQBEN.load(write(items), None, False)
    assert "all_select.json item 3" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_of_another_form_are_refused(items, write):
    with pytest.raises(ValueError, match="a list is needed, got dict"):
        EQBEN.load(write({"0": items[0]}), None, False)
    pairs = [{"image": item["image0"], "caption": item["caption0"]} for item in items]
    with pytest.raises(ValueError, match=r"item 0: 'image0' must be .* got None"):
        EQBEN.load(write(pairs), None, False)


def test_random_scores_are_at_chance(items, write, color_encoder):
    assert_at_chance(EQBEN.load(write(items), None, False), color_encoder)
