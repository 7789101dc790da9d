"""SPEC: both directions by subset, by hand."""

import json

import pytest

from hnpretrain.eval.benchmarks.spec import SPEC, SUBSETS
from hnpretrain.eval.results import Withheld
from hnpretrain.eval.scorers import Cosine
from tests.eval.helpers import assert_at_chance

COLORS = ("red", "green", "blue")


@pytest.fixture
def official(tmp_path, paint):
    """Six subsets with three questions each way; `count` alone has some that go wrong."""
    for subset in SUBSETS:
        folder = tmp_path / subset
        (folder / "images").mkdir(parents=True)
        for color in COLORS:
            (folder / "images" / f"{color}.jpg").write_bytes(paint(color))
        texts = [f"the {color} dog" for color in COLORS]
        images = [f"images/{color}.jpg" for color in COLORS]
        to_text = [
            {"query": image, "keys": texts, "label": label} for label, image in enumerate(images)
        ]
        to_image = [
            {"query": text, "keys": images, "label": label} for label, text in enumerate(texts)
        ]
        if subset == "count":
            to_text[1]["label"] = 2
            to_image[0]["label"] = 1
            to_image[2].update(keys=["images/blue.jpg"] * 2, label=0)  # a tie
        (folder / "image2text.json").write_text(json.dumps(to_text))
        (folder / "text2image.json").write_text(json.dumps(to_image))
    return tmp_path


def test_scores_by_hand(official, color_encoder):
    result = SPEC.load(official, None, False).run(color_encoder, Cosine())
    of_count = {"i2t": (2 / 3, 1 / 3), "t2i": (1 / 3, (1 / 3 + 1 / 3 + 1 / 2) / 3)}
    for way, (value, chance) in of_count.items():
        found = {score.name: score for score in result.scores}
        for subset in SUBSETS:
            score = found[f"{way}/{subset}"]
            right = value if subset == "count" else 1
            assert (score.accuracy.value, score.accuracy.count) == (pytest.approx(right), 3)
            assert score.chance == pytest.approx(chance if subset == "count" else 1 / 3)
        assert found[f"{way}/subset-macro"].accuracy.value == pytest.approx((5 + value) / 6)
        assert found[way].accuracy.count == 18
        assert found[way].ties == (1 if way == "t2i" else 0)
    # Questions of images to captions alone: the mean of three colours has one answer for all three.
    assert result["text_only"].count == 18
    assert result["text_only/existence"].value == pytest.approx(1 / 3)


def test_missing_images(official, color_encoder):
    (official / "existence" / "images" / "red.jpg").unlink()
    with pytest.raises(Withheld, match=r"4 of 36 items .*red\.jpg"):
        SPEC.load(official, None, False).run(color_encoder, Cosine())
    result = SPEC.load(official, None, True).run(color_encoder, Cosine())
    # All questions of captions to images need it.
    assert result["i2t/existence"].count == 2
    assert "t2i/existence" not in [score.name for score in result.scores]
    assert result["t2i"].count == 15


def test_random_scores_lie_at_chance(official, color_encoder):
    assert_at_chance(SPEC.load(official, None, False), color_encoder, seeds=200)


@pytest.mark.parametrize(
    "file, value, message",
    [
        ("image2text.json", {}, "a list is needed, got dict"),
        ("image2text.json", [3], "item 0: a JSON object is needed"),
        ("image2text.json", [{"keys": [], "label": 0}], "item 0: 'query' must be"),
        ("image2text.json", [{"query": "x.jpg", "label": 0}], "item 0: 'keys' must be a list"),
        (
            "text2image.json",
            [{"query": "x", "keys": ["a", 3], "label": 0}],
            "'keys 1' must be a non-empty string, got 3",
        ),
        (
            "text2image.json",
            [{"query": "x", "keys": ["a", "b"], "label": 2}],
            "one of 2 keys, got 2",
        ),
        ("text2image.json", [{"query": "x", "keys": ["a", "b"], "label": "1"}], "got '1'"),
        ("text2image.json", [{"query": "x", "keys": ["a", "b"]}], "'label' must be .*, got None"),
    ],
)
def test_malformed_files_are_one_clear_error(official, file, value, message):
    (official / "relative_spatial" / file).write_text(json.dumps(value))
    with pytest.raises(ValueError, match=message) as caught:
        SPEC.load(official, None, False)
    assert f"relative_spatial/{file}" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_files_are_named(official, tmp_path):
    (official / "count" / "text2image.json").unlink()
    (official / "existence" / "image2text.json").unlink()
    with pytest.raises(ValueError, match=r"lacks existence/image2text\.json, count/text2image\."):
        SPEC.load(official, None, False)
    with pytest.raises(ValueError, match="takes no image folder"):
        SPEC.load(official, tmp_path, False)
