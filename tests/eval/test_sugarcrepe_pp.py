"""SugarCrepe++: image to text and text to text, by category; broken files; chance."""

import json
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cosine_similarity

from hnpretrain.eval.benchmarks.sugarcrepe_pp import CATEGORIES, SUGARCREPE_PP
from hnpretrain.eval.results import Withheld
from hnpretrain.eval.scorers import Cosine
from tests.eval.conftest import COLORS
from tests.eval.helpers import assert_at_chance

# Image, caption, caption2, negative caption, by their colour.
ITEMS = {
    "replace_att": [
        ("red", "red", "red", "blue"),  # both right
        ("red", "red", "blue", "green"),  # blue loses to green; red and blue lie apart
        ("blue", "red", "red", "blue"),  # the image is wrong, the texts are right
    ],
    "replace_obj": [("red", "red", "red", "red")],  # ties
    "replace_rel": [("green", "green", "yellow", "blue"), ("red", "red", "yellow", "green")],
    "swap_att": [("blue", "blue", "blue", "yellow")],
    "swap_obj": [("yellow", "blue", "green", "red"), ("green", "red", "green", "red")],
}


def write(folder: Path, items=ITEMS) -> Path:
    """The five files as their authors lay them out."""
    folder.mkdir(parents=True, exist_ok=True)
    for category in CATEGORIES:
        rows = [
            {
                "id": number,
                "filename": f"{image}.png",
                "caption": f"a {first} car ",
                "caption2": f"the car is {second}",
                "negative_caption": f"a {wrong} van",
            }
            for number, (image, first, second, wrong) in enumerate(items[category])
        ]
        (folder / f"{category}.json").write_text(json.dumps(rows))
    return folder


@pytest.fixture
def images(tmp_path, paint):
    folder = tmp_path / "val2017"
    folder.mkdir()
    for color in COLORS:
        (folder / f"{color}.png").write_bytes(paint(color))
    return folder


def near(one: str, other: str) -> float:
    pair = [torch.tensor(COLORS[color]).double() for color in (one, other)]
    # Equal colours give one feature, so that they tie to the last bit.
    return 1.0 if one == other else float(cosine_similarity(*pair, dim=0))


def right(task: str, image: str, first: str, second: str, wrong: str) -> bool:
    if task == "itt":
        return all(near(image, each) > near(image, wrong) for each in (first, second))
    return all(near(first, second) > near(each, wrong) for each in (first, second))


@pytest.mark.parametrize("inner", ["", "data"])
def test_scores_are_those_of_a_loop_over_the_colours(tmp_path, images, color_encoder, inner):
    write(tmp_path / "set" / inner)
    result = SUGARCREPE_PP.load(tmp_path / "set", images, False).run(color_encoder, Cosine())
    scores = {score.name: score for score in result.scores}
    for task in ("itt", "tot"):
        got = {name: [right(task, *item) for item in items] for name, items in ITEMS.items()}
        got["swap"] = got["swap_att"] + got["swap_obj"]
        got["replace"] = got["replace_att"] + got["replace_obj"] + got["replace_rel"]
        for name, answers in got.items():
            score = scores[f"{task}/{name}"]
            assert score.accuracy.value == pytest.approx(sum(answers) / len(answers)), score.name
            assert score.accuracy.count == len(answers)
        everything = got["swap"] + got["replace"]
        assert scores[task].accuracy.value == pytest.approx(sum(everything) / len(everything))
        macro = sum(sum(got[name]) / len(got[name]) for name in CATEGORIES) / len(CATEGORIES)
        assert scores[f"{task}/category-macro"].accuracy.value == pytest.approx(macro)
        assert f"{task}/edit-macro" not in scores
        assert scores[task].chance == pytest.approx(1 / 3)
    # By hand, so that the loop is not taken on trust.
    assert scores["itt/replace_att"].accuracy.value == pytest.approx(1 / 3)
    assert scores["tot/replace_att"].accuracy.value == pytest.approx(2 / 3)
    assert (scores["itt/replace_obj"].ties, scores["tot/replace_obj"].ties) == (1, 1)
    assert result.names[:2] == ("replace_att 0", "replace_att 1")


def test_two_equal_captions_are_no_tie(tmp_path, images, color_encoder):
    """As in replace_att 14, whose second caption is the first."""
    items = {category: [("red", "red", "red", "blue")] for category in CATEGORIES}
    path = write(tmp_path / "data", items) / "replace_att.json"
    rows = json.loads(path.read_text())
    rows[0]["caption2"] = rows[0]["caption"]
    path.write_text(json.dumps(rows))
    result = SUGARCREPE_PP.load(path.parent, images, False).run(color_encoder, Cosine())
    assert [(score.accuracy.value, score.ties) for score in result.scores[:1]] == [(1, 0)]


def test_files_that_lack_something_are_one_clear_line(tmp_path, images):
    data = write(tmp_path / "data")
    with pytest.raises(ValueError, match=r"^sugarcrepe_pp needs an image folder"):
        SUGARCREPE_PP.load(data, None, False)
    with pytest.raises(ValueError, match=r"swap_obj\.json' is not a folder with replace_att"):
        SUGARCREPE_PP.load(data / "swap_obj.json", images, False)
    broken = {"id": 0, "filename": "red.png", "caption": "a", "negative_caption": "b"}
    for value, message in (
        ([broken], r"swap_att\.json item 0: 'caption2' must be a non-empty string, got None$"),
        ([[]], r"swap_att\.json item 0: a JSON object is needed, got list$"),
        ({"0": broken}, r"swap_att\.json: a list is needed, got dict$"),
    ):
        (data / "swap_att.json").write_text(json.dumps(value))
        with pytest.raises(ValueError, match=message):
            SUGARCREPE_PP.load(data, images, False)
    (data / "swap_att.json").unlink()
    with pytest.raises(ValueError, match=r"lacks swap_att\.json; its averages are over all 5"):
        SUGARCREPE_PP.load(data, images, False)


def test_a_missing_image_withholds_all_but_partial_scores(tmp_path, images, color_encoder):
    data = write(tmp_path / "data")
    (images / "yellow.png").unlink()
    with pytest.raises(Withheld, match="yellow"):
        SUGARCREPE_PP.load(data, images, False).run(color_encoder, Cosine())
    result = SUGARCREPE_PP.load(data, images, True).run(color_encoder, Cosine())
    assert result.left_out == 1
    assert "swap_obj 0" not in result.names


def test_random_scores_lie_at_chance(tmp_path, images, color_encoder):
    assert_at_chance(SUGARCREPE_PP.load(write(tmp_path / "data"), images, False), color_encoder)
