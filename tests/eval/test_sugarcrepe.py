"""SugarCrepe: the official files, the photos' own pairs, the averages, and holes in the data."""

import json
import math
import shutil
from pathlib import Path

import pytest

from hnpretrain.eval import benchmarks
from hnpretrain.eval.benchmarks.sugarcrepe import CATEGORIES
from hnpretrain.eval.results import Withheld
from hnpretrain.eval.scorers import Cosine
from tests.eval.helpers import assert_at_chance

SIZES = {
    "add_att": 692,
    "add_obj": 2062,
    "replace_att": 788,
    "replace_obj": 1652,
    "replace_rel": 1406,
    "swap_att": 666,
    "swap_obj": 245,
}
PHOTO_SIZES = {
    "add_att": 12,
    "add_obj": 40,
    "replace_att": 21,
    "replace_obj": 29,
    "replace_rel": 22,
    "swap_att": 8,
    "swap_obj": 2,
}


def write_official(folder: Path, items: dict[str, list[tuple[str, str, str]]]) -> Path:
    """Seven files of (filename, caption, negative caption)."""
    folder.mkdir(exist_ok=True)
    for category in CATEGORIES:
        rows = {
            str(number): {"filename": file, "caption": right, "negative_caption": wrong}
            for number, (file, right, wrong) in enumerate(items.get(category, []))
        }
        (folder / f"{category}.json").write_text(json.dumps(rows))
    return folder


@pytest.fixture
def colored(tmp_path, paint):
    """(data, images) with pairs that a model that sees colours gets right or wrong by design."""
    images = tmp_path / "images"
    images.mkdir()
    for color in ("red", "blue"):
        (images / f"{color}.png").write_bytes(paint(color))
    right = ("red.png", "a red car", "a blue car")
    wrong = ("red.png", "a blue car", "a red car")
    tie = ("blue.png", "a blue car on a hill", "a blue car under a tree")
    items = {
        "add_att": [right, right, right, wrong],  # 3/4
        "add_obj": [right],  # 1
        "replace_att": [wrong, tie],  # 0
        "replace_obj": [right, tie],  # 1/2
        "replace_rel": [right] * 5 + [wrong],  # 5/6
        "swap_att": [tie],  # 0
        "swap_obj": [right, wrong],  # 1/2
    }
    return write_official(tmp_path / "data", items), images


def test_averages_by_hand_on_a_small_case(colored, color_encoder):
    result = benchmarks.load("sugarcrepe", *colored).run(color_encoder, Cosine())
    expected = {
        "acc": (11 / 18, 18),
        "acc/add_att": (3 / 4, 4),
        "acc/add_obj": (1, 1),
        "acc/replace_att": (0, 2),
        "acc/replace_obj": (1 / 2, 2),
        "acc/replace_rel": (5 / 6, 6),
        "acc/swap_att": (0, 1),
        "acc/swap_obj": (1 / 2, 2),
        "acc/category-macro": ((3 / 4 + 1 + 0 + 1 / 2 + 5 / 6 + 0 + 1 / 2) / 7, 18),
        "acc/add": (4 / 5, 5),
        "acc/replace": (6 / 10, 10),
        "acc/swap": (1 / 3, 3),
    }
    told = [score for score in result.scores if not score.name.startswith("text_only")]
    assert [score.name for score in told] == list(expected)
    for name, (value, count) in expected.items():
        got = result[name]
        assert (got.value, got.count) == (pytest.approx(value), count), name
        if not name.endswith("macro"):
            error = math.sqrt(value * (1 - value) / (count - 1)) if count > 1 else 0.5
            assert got.standard_error == pytest.approx(error), name
    assert result.left_out == 0
    # "on a hill" and "under a tree" are nothing to this model's tokenizer.
    assert result.notes == (
        "3 items have captions of equal tokens (replace_att 1, replace_obj 1, swap_att 0): always "
        "a tie, counted as wrong",
    )
    ties = {score.name: score.ties for score in told}
    assert (ties["acc"], ties["acc/swap"], ties["acc/add"]) == (3, 1, 0)
    # Two images; the captions are red or blue.
    assert len(color_encoder.store.get([*color_encoder._digests.values()])) == 2


def test_the_text_only_score_looks_at_no_image(tmp_path, paint, color_encoder):
    """The mean of a red and a yellow picture is nearer to "red" than to "blue"."""
    for color in ("red", "yellow"):
        (tmp_path / f"{color}.png").write_bytes(paint(color))
    guessed = ("yellow.png", "a red car", "a blue car")
    missed = ("red.png", "a blue car", "a red car")
    items = {"add_att": [guessed, guessed], "swap_obj": [guessed, missed, missed]}
    data = write_official(tmp_path / "data", items)
    result = benchmarks.load("sugarcrepe", data, tmp_path).run(color_encoder, Cosine())
    expected = {
        "text_only": (3 / 5, 5),
        "text_only/add_att": (1, 2),
        "text_only/swap_obj": (1 / 3, 3),
        "text_only/category-macro": (2 / 3, 5),
        "text_only/add": (1, 2),
        "text_only/swap": (1 / 3, 3),
    }
    told = [score.name for score in result.scores if score.name.startswith("text_only")]
    assert told == list(expected)
    for name, (value, count) in expected.items():
        assert (result[name].value, result[name].count) == (pytest.approx(value), count), name


def test_a_random_scorer_is_at_chance(colored, color_encoder):
    assert_at_chance(benchmarks.load("sugarcrepe", *colored), color_encoder)


@pytest.fixture
def official(tmp_path, assets, paint):
    """The official files, with an image of a colour of its own for each of their photos."""
    data = assets / "sugarcrepe" / "data"
    files = {
        item["filename"]
        for category in CATEGORIES
        for item in json.loads((data / f"{category}.json").read_text()).values()
    }
    for number, file in enumerate(sorted(files)):
        (tmp_path / file).write_bytes(paint(number * 997, size=4))
    return data, tmp_path


def test_the_official_files_are_read_whole_and_a_random_model_is_at_chance(
    official, random_encoder
):
    result = benchmarks.load("sugarcrepe", *official).run(random_encoder, Cosine())
    assert {name: result[f"acc/{name}"].count for name in SIZES} == SIZES
    assert [result[name].count for name in ("acc/add", "acc/replace", "acc/swap", "acc")] == [
        2754,
        3846,
        911,
        7511,
    ]
    for score in result.scores:
        assert score.chance == 0.5
        assert abs(score.accuracy.value - 0.5) < 3 * score.accuracy.standard_error, score.name
        assert score.accuracy.standard_error > 0


def test_missing_images_withhold_the_score_unless_allowed(official, random_encoder):
    data, images = official
    swaps = json.loads((data / "swap_obj.json").read_text())
    gone = {item["filename"] for item in swaps.values()}
    for file in gone:
        (images / file).unlink()
    lost = sum(
        item["filename"] in gone
        for category in CATEGORIES
        for item in json.loads((data / f"{category}.json").read_text()).values()
    )
    with pytest.raises(Withheld, match=rf"{lost} of 7511 items .* {len(gone)} are miss") as caught:
        benchmarks.load("sugarcrepe", data, images)
    assert len(caught.value.reasons) == len(gone)
    assert "--partial" in str(caught.value)
    assert str(images) in str(caught.value)
    assert len(str(caught.value)) < 600

    result = benchmarks.load("sugarcrepe", data, images, partial=True).run(random_encoder, Cosine())
    assert result["acc"].count == 7511 - lost
    assert result.left_out == lost
    assert result.notes[0].startswith(f"PARTIAL: {lost} items left out")
    (macro,) = (score for score in result.scores if score.name == "acc/category-macro")
    assert macro.average == "mean of 6 groups"


def test_all_images_missing_is_an_error_even_if_allowed(tmp_path, assets):
    with pytest.raises(ValueError, match=r"7511 of 7511 items .* right image folder"):
        benchmarks.load("sugarcrepe", assets / "sugarcrepe" / "data", tmp_path, partial=True)


def test_the_photos_pairs_agree_with_the_official_files(assets):
    items = benchmarks.load("sugarcrepe", assets / "coco_ccby" / "data.jsonl").items
    sizes = dict.fromkeys(CATEGORIES, 0)
    official = {
        (category, item["filename"], item["caption"], item["negative_caption"])
        for category in CATEGORIES
        for item in json.loads(
            (assets / "sugarcrepe" / "data" / f"{category}.json").read_text()
        ).values()
    }
    for item in items:
        category = item.groups["category"]
        sizes[category] += 1
        assert (category, item.images[0].path.name, *item.captions) in official
    assert sizes == PHOTO_SIZES


def test_missing_files_are_named(colored, tmp_path):
    data, images = colored
    (data / "swap_att.json").unlink()
    (data / "add_obj.json").unlink()
    with pytest.raises(ValueError, match=r"lacks add_obj\.json, swap_att\.json"):
        benchmarks.load("sugarcrepe", data, images)
    with pytest.raises(ValueError, match="needs an image folder"):
        benchmarks.load("sugarcrepe", data)
    with pytest.raises(ValueError, match="is not a folder"):
        benchmarks.load("sugarcrepe", data, tmp_path / "nowhere")
    with pytest.raises(ValueError, match="neither a folder"):
        benchmarks.load("sugarcrepe", tmp_path / "sugarcrepe.zip", images)


@pytest.mark.parametrize(
    "content, message",
    [
        ("[1, 2]", r"swap_att\.json: a JSON object is needed, got list"),
        ('{"0": "text"}', "item '0': a JSON object is needed, got str"),
        ('{"0": {"filename": "red.png", "caption": "x"}}', "'negative_caption' must be"),
        ('{"4": {"filename": "red.png", "caption": " ", "negative_caption": "x"}}', "item '4'"),
        ('{"0": {"filename": 7, "caption": "x", "negative_caption": "y"}}', "'filename' must be"),
        ("{", "not readable JSON"),
        ("\x00\xff", "not readable JSON"),
    ],
)
def test_malformed_files_are_one_clear_error(colored, content, message):
    data, images = colored
    (data / "swap_att.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(ValueError, match=message) as caught:
        benchmarks.load("sugarcrepe", data, images)
    assert "swap_att.json" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "line, message",
    [
        ('{"image": "red.png"}', "'sugarcrepe' must be a list, got None"),
        ('{"sugarcrepe": []}', "'image' must be"),
        ('{"image": "red.png", "sugarcrepe": [{"type": "swap_at"}]}', "did you mean 'swap_att'"),
        ('{"image": "red.png", "sugarcrepe": ["x"]}', "pair 0: a JSON object"),
        ("oops", "line 2 is not JSON"),
        ("[]", "line 2: a JSON object"),
    ],
)
def test_malformed_lines_are_one_clear_error(colored, line, message):
    _, images = colored
    path = images / "data.jsonl"
    path.write_text('{"image": "red.png", "sugarcrepe": []}\n' + line + "\n")
    with pytest.raises(ValueError, match=message) as caught:
        benchmarks.load("sugarcrepe", path)
    assert "line 2" in str(caught.value)


def test_lines_end_at_newlines_alone(colored):
    """Not at U+2028 or U+0085, which may stand in a JSON string; a byte order mark is passed."""
    _, images = colored
    pair = {"type": "swap_att", "caption": "a red\u2028car", "negative_caption": "a blue\x85car"}
    lines = [json.dumps({"image": "red.png", "sugarcrepe": [pair]}, ensure_ascii=False)] * 2
    path = images / "data.jsonl"
    path.write_text("\r\n".join(lines) + "\r\n", encoding="utf-8-sig", newline="")
    first, second = benchmarks.load("sugarcrepe", path).items
    assert first.captions == second.captions == ("a red\u2028car", "a blue\x85car")


def test_no_pairs_at_all_is_an_error(colored):
    _, images = colored
    path = images / "data.jsonl"
    path.write_text('{"image": "red.png", "sugarcrepe": []}\n\n')
    with pytest.raises(ValueError, match="holds no item"):
        benchmarks.load("sugarcrepe", path)


def test_a_broken_image_is_named_when_it_is_reached(colored, color_encoder):
    data, images = colored
    shutil.copy(data / "add_att.json", images / "red.png")
    with pytest.raises(ValueError, match=r"red\.png cannot be read"):
        benchmarks.load("sugarcrepe", data, images).run(color_encoder, Cosine())


def test_an_unknown_benchmark_names_the_nearest(tmp_path):
    with pytest.raises(ValueError, match="did you mean 'sugarcrepe'"):
        benchmarks.load("sugarcrape", tmp_path)
