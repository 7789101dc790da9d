"""COLA's two settings: the published comparison, and average precision over the hard images."""

import itertools
import json
from statistics import mean

import pytest
import torch

from hnpretrain.eval.benchmarks.cola import (
    COLA,
    COLA_SINGLE,
    average_precision,
    average_precision_chance,
)
from hnpretrain.eval.results import Withheld
from hnpretrain.eval.scorers import Cosine
from tests.eval.helpers import assert_at_chance

LINK = "https://cs-people.bu.edu/array/data/vg_gqa_images"
# (captions, images). Of the colours in conftest, yellow is nearer to red than to green.
PAIRS = [
    (("red", "blue"), ("red", "blue")),  # text and image
    (("blue", "red"), ("red", "blue")),  # neither
    (("red", "green"), ("red", "yellow")),  # image alone
    (("red", "red"), ("red", "blue")),  # ties: neither
]


@pytest.fixture
def images(tmp_path, paint):
    folder = tmp_path / "images"
    folder.mkdir()
    for color in ("red", "green", "blue", "yellow"):
        (folder / f"{color}.jpg").write_bytes(paint(color))
    return folder


def write(folder, value):
    path = folder / "COLA.json"
    path.write_text(json.dumps(value))
    return path


def pairs():
    return [
        [
            f"{LINK}/{images[0]}.jpg",
            f"{captions[0]} car to the left of a tree",
            f"{LINK}/{images[1]}.jpg",
            f"{captions[1]} car to the left of a tree",
        ]
        for captions, images in PAIRS
    ]


def test_scores_by_hand(tmp_path, images, color_encoder):
    result = COLA.load(write(tmp_path, pairs()), images, False).run(color_encoder, Cosine())
    found = {score.name: score.accuracy.value for score in result.scores}
    del found["text_only"]
    assert found == {"image": 2 / 4, "text": 1 / 4, "group": 1 / 4}
    assert next(iter(found)) == "image"


def test_missing_images_withhold_the_scores(tmp_path, images, color_encoder):
    (images / "yellow.jpg").unlink()
    path = write(tmp_path, pairs())
    with pytest.raises(Withheld, match=r"1 of 4 items .*yellow\.jpg"):
        COLA.load(path, images, False).run(color_encoder, Cosine())
    result = COLA.load(path, images, True).run(color_encoder, Cosine())
    assert result["image"].value == pytest.approx(1 / 3)
    with pytest.raises(ValueError, match="cola needs an image folder"):
        COLA.load(path, None, False)


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (
            ["a.jpg", "x", "b.jpg"],
            r"a list \[link 1, caption 1, link 2, caption 2\] is needed, got \['a.jpg'",
        ),
        (["a.jpg", "x", "b.jpg", ""], "'caption 2' must be a non-empty string, got ''"),
        (["a.jpg", "x", 7, "y"], "'link 2' must be a non-empty string, got 7"),
        ({"image": "a.jpg"}, r"a list \[link 1, .* is needed, got {'image': 'a.jpg'}"),
    ],
)
def test_a_malformed_pair_is_named(tmp_path, images, item, message):
    path = write(tmp_path, [*pairs(), item])
    with pytest.raises(ValueError, match=rf"COLA\.json item 4: {message}") as caught:
        COLA.load(path, images, False)
    assert "\n" not in str(caught.value)


def test_random_pairs_are_at_chance(tmp_path, images, color_encoder):
    assert_at_chance(COLA.load(write(tmp_path, pairs()), images, False), color_encoder)


def singles():
    """Classes red, green, blue and yellow; only some images count for each."""
    return {
        "labels": ["a red car", "a green car", "a blue car", "a yellow car"],
        "data": [
            # image, annotations, shown, counts; the model ranks by colour:
            # red: red, yellow, green, blue. green: green, yellow, blue, red.
            ["vg/red.jpg", {"car": ["red"]}, [1, 0, 1, 0], [1, 1, 1, 0]],
            ["vg/green.jpg", {}, [0, 0, 0, 0], [1, 1, 0, 0]],
            ["vg/blue.jpg", None, [1, 1, 0, 0], [1, 1, 1, 0]],
            ["vg/yellow.jpg", None, [0, 0, 0, 1], [1, 0, 0, 0]],
        ],
    }


def test_mean_average_precision_by_hand(tmp_path, images, color_encoder):
    path = write(tmp_path, singles())
    result = COLA_SINGLE.load(path, images, False).run(color_encoder, Cosine())
    # Red: red (shown), yellow, green, blue (shown). Green, of three: green, blue (shown), red.
    # Blue, of two: blue, red (shown). Yellow is shown by an image that does not count: left out.
    precisions = [(1 + 2 / 4) / 2, 1 / 2, 1 / 2]
    (score,) = result.scores
    assert score.name == "map"
    assert score.accuracy.value == pytest.approx(mean(precisions))
    assert score.accuracy.count == 3
    spread = mean((each - mean(precisions)) ** 2 for each in precisions) ** 0.5
    assert score.accuracy.standard_error == pytest.approx(spread / 3**0.5)
    assert result.notes == ("4 images, 4 classes",)


def test_images_lie_where_the_file_says_or_by_their_name(tmp_path, images, color_encoder):
    path = write(tmp_path, singles())
    want = COLA_SINGLE.load(path, images, False).run(color_encoder, Cosine())
    images.rename(tmp_path / "vg")
    got = COLA_SINGLE.load(path, tmp_path, False).run(color_encoder, Cosine())
    assert got.scores == want.scores


def test_a_missing_or_broken_image_withholds_the_map(tmp_path, images, color_encoder):
    path = write(tmp_path, singles())
    (images / "yellow.jpg").unlink()
    with pytest.raises(Withheld, match=r"1 of 4 images .*yellow\.jpg"):
        COLA_SINGLE.load(path, images, False).run(color_encoder, Cosine())
    (images / "green.jpg").write_bytes(b"no image")
    result = COLA_SINGLE.load(path, images, True).run(color_encoder, Cosine())
    # Of red and blue alone: red 1 and blue 2 of two; green: blue first; blue: red second.
    assert result["map"].value == pytest.approx(mean([1, 1, 1 / 2]))
    assert result.left_out == 2


def test_all_broken_images_are_named(tmp_path, images, color_encoder):
    for color in ("red", "yellow"):
        (images / f"{color}.jpg").write_bytes(f"no image of {color}".encode())
    benchmark = COLA_SINGLE.load(write(tmp_path, singles()), images, False)
    color_encoder.batch_size = 1
    with pytest.raises(Withheld, match=r"2 of 4 images .*red\.jpg.*yellow\.jpg"):
        benchmark.run(color_encoder, Cosine())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": []}, "'labels' must be the classes' names"),
        ({"labels": "red"}, "'labels' must be a list"),
        (
            {"data": [["a.jpg", {}, [1]]]},
            r"image 0: a list \[image, annotations, label, hard_list\]",
        ),
        ({"data": [["", {}, [1] * 4, [1] * 4]]}, "image 0: 'image' must be a non-empty string"),
        (
            {"data": [["a.jpg", {}, [1] * 3, [1] * 4]]},
            "image 0: 'label' must be 4 numbers 0 or .* got 3",
        ),
        ({"data": [["a.jpg", {}, [1] * 4, [2] * 4]]}, "image 0: 'hard_list' must be 4 numbers"),
        ({"data": [7]}, r"image 0: a list \[image, .* is needed, got 7"),
        ({"data": []}, "holds no image"),
    ],
)
def test_a_malformed_image_is_named(tmp_path, images, change, message):
    path = write(tmp_path, singles() | change)
    with pytest.raises(ValueError, match=message) as caught:
        COLA_SINGLE.load(path, images, False)
    assert "COLA.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_class_to_judge_is_an_error(tmp_path, images, color_encoder):
    value = singles()
    for image in value["data"]:
        image[2] = [0] * 4
    benchmark = COLA_SINGLE.load(write(tmp_path, value), images, False)
    with pytest.raises(ValueError, match="has no class that an image shows"):
        benchmark.run(color_encoder, Cosine())


def test_ties_and_what_is_no_number_come_before_a_positive():
    shown = torch.tensor([True, True, False, False])
    constant = torch.zeros(4)
    assert average_precision(shown, constant) == 2 / 4
    tied = torch.tensor([2.0, 1.0, 1.0, 0.0])
    assert average_precision(shown, tied) == pytest.approx((1 + 2 / 3) / 2)
    broken = torch.tensor([2.0, 1.0, torch.nan, 0.0])
    assert average_precision(shown, broken) == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert average_precision(shown, torch.tensor([torch.nan, 1.0, 0.0, 0.0])) == 1 / 4


@pytest.mark.parametrize(("positives", "count"), [(1, 1), (1, 4), (2, 4), (3, 5), (5, 5)])
def test_chance_is_the_mean_over_all_orders(positives, count):
    shown = torch.arange(count) < positives
    orders = itertools.permutations(range(count))
    found = [average_precision(shown, torch.tensor(order)) for order in orders]
    assert average_precision_chance(positives, count) == pytest.approx(mean(found))


def test_a_random_map_is_at_chance(tmp_path, images, color_encoder):
    assert_at_chance(COLA_SINGLE.load(write(tmp_path, singles()), images, False), color_encoder)
