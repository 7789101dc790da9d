"""What's Up: sets of four by hand and by a direct loop, and questions about one object or two."""

import json
import math

import pytest
import torch

from hnpretrain.eval.benchmarks.whatsup import ACC, PAIR, SET, WHATSUP, WHATSUP_COCO, WHATSUP_VG
from hnpretrain.eval.results import Withheld
from hnpretrain.eval.scorers import Cosine
from tests.eval.helpers import assert_at_chance, assert_scores

FILES = {
    "A": ("controlled_images_dataset", "controlled_images", ("left_of", "right_of", "on", "under")),
    "B": (
        "controlled_clevr_dataset",
        "controlled_clevr",
        ("left_of", "right_of", "in-front_of", "behind"),
    ),
}
# What the captions of the four arrangements say; a model that sees colours knows them by it.
RIGHT = ("red", "green", "blue", "yellow")


def write_sets(folder, paint, sets):
    """Sets by subset, each the colours that its four photos have."""
    for subset, (file, place, arrangements) in FILES.items():
        (folder / place).mkdir(parents=True)
        rows = []
        for number, colors in enumerate(sets[subset]):
            for which, (color, arrangement) in enumerate(zip(colors, arrangements, strict=True)):
                name = f"cup{number}_{arrangement}_table.jpeg"
                (folder / place / name).write_bytes(paint(color))
                right = f"a {RIGHT[which]} cup{number}"
                wrong = [f"a {RIGHT[each]} cup{number}" for each in range(4) if each != which]
                rows.append(
                    {"image_path": f"data/{place}/{name}", "caption_options": [right, *wrong]}
                )
        # The official order is by name, not by set.
        rows.sort(key=lambda row: row["image_path"].split("_")[-2])
        (folder / f"{file}.json").write_text(json.dumps(rows))
    return folder


@pytest.fixture
def sets(tmp_path, paint):
    left_wrong = ("green", "green", "blue", "yellow")
    crossed = ("red", "blue", "green", "yellow")
    return write_sets(
        tmp_path / "data", paint, {"A": [RIGHT, left_wrong], "B": [crossed, RIGHT, ("red",) * 4]}
    )


def test_sets_by_hand(sets, color_encoder):
    result = WHATSUP.load(sets, None, False).run(color_encoder, Cosine())
    expected = {
        "acc": ((4 + 3 + 2 + 4 + 1) / 20, 20, 1 / 4),
        "acc/A": (7 / 8, 8, 1 / 4),
        "acc/B": (7 / 12, 12, 1 / 4),
        "acc/subset-macro": ((7 / 8 + 7 / 12) / 2, 20, 1 / 4),
        "pair": ((2 + 1 + 0 + 2 + 0) / 10, 10, 1 / 16),
        "pair/A": (3 / 4, 4, 1 / 16),
        "pair/B": (2 / 6, 6, 1 / 16),
        "pair/subset-macro": ((3 / 4 + 2 / 6) / 2, 10, 1 / 16),
        "set": (2 / 5, 5, 1 / 256),
        "set/A": (1 / 2, 2, 1 / 256),
        "set/B": (1 / 3, 3, 1 / 256),
        "set/subset-macro": ((1 / 2 + 1 / 3) / 2, 5, 1 / 256),
        # Without an image each set has one answer.
        "text_only": (1 / 4, 20, 1 / 4),
        "text_only/A": (1 / 4, 8, 1 / 4),
        "text_only/B": (1 / 4, 12, 1 / 4),
        "text_only/subset-macro": (1 / 4, 20, 1 / 4),
    }
    assert [score.name for score in result.scores] == list(expected)
    for score in result.scores:
        value, count, chance = expected[score.name]
        got = (score.accuracy.value, score.accuracy.count, score.chance)
        assert got == (pytest.approx(value), count, pytest.approx(chance)), score.name
    assert result.names == tuple(
        f"{subset} cup{number} table" for subset, n in (("A", 2), ("B", 3)) for number in range(n)
    )


def test_rules_agree_with_a_direct_loop():
    s_NIC = torch.randn(200, 4, 4, generator=torch.Generator().manual_seed(0))
    s_NIC[0, 1, 2] = s_NIC[0, 1, 1]  # a tie
    s_NIC[1, 2, 0] = math.nan
    s_NIC[2] = math.nan
    right = [
        [all(row[i] > row[c] for c in range(4) if c != i) for i, row in enumerate(item)]
        for item in s_NIC.tolist()
    ]
    assert not right[0][1]
    assert not right[1][2]
    assert (ACC.margins(s_NIC) > 0).tolist() == right
    assert (PAIR.margins(s_NIC) > 0).tolist() == [[a and b, c and d] for a, b, c, d in right]
    assert (SET.margins(s_NIC) > 0).tolist() == [[all(item)] for item in right]


def write_questions(folder, stem, one, two):
    folder.mkdir(exist_ok=True)
    (folder / f"{stem}_one_obj.json").write_text(json.dumps(one))
    (folder / f"{stem}_two_obj.json").write_text(json.dumps(two))
    return folder


@pytest.fixture
def coco(tmp_path, paint):
    data = tmp_path / "coco"
    (data / "val2017").mkdir(parents=True)
    (data / "val2017" / "000000000139.jpg").write_bytes(paint("red"))
    (data / "val2017" / "000000581929.jpg").write_bytes(paint("blue"))
    one = [
        [139, "A photo of a red cup on the left", "A photo of a blue cup on the right"],
        [139, "A photo of a blue cup on the left", "A photo of a red cup on the right"],
        [581929, "A photo of a blue cup on the top", "A photo of a red cup on the bottom"],
    ]
    two = [
        [139, "A red cup to the right of a dog", "A blue cup to the left of a dog"],
        [581929, "A red cup above a dog", "A blue cup below a dog"],
        ["581929", "A blue cup under a dog", "A red cup over a dog"],
    ]
    return write_questions(data, "coco_qa", one, two)


def test_questions_by_hand(coco, color_encoder):
    result = WHATSUP_COCO.load(coco, None, False).run(color_encoder, Cosine())
    expected = {
        "acc": (4 / 6, 6),
        "acc/one": (2 / 3, 3),
        "acc/two": (2 / 3, 3),
        "acc/subset-macro": (2 / 3, 6),
        "acc/one_left": (1 / 2, 2),
        "acc/one_top": (1, 1),
        "acc/two_above": (0, 1),
        "acc/two_below": (1, 1),  # the authors' word for all others
        "acc/two_right": (1, 1),
    }
    assert_scores(result, expected)
    again = WHATSUP_COCO.load(coco, coco / "val2017", False).run(color_encoder, Cosine())
    assert again["acc"] == result["acc"]


def test_visual_genome_has_its_own_names_and_words(tmp_path, paint, color_encoder):
    images = tmp_path / "images"
    images.mkdir()
    for name in ("7", "n5"):
        (images / f"{name}.jpg").write_bytes(paint("red"))
    one = [[7, "A photo of a red cup on the left", "A photo of a blue cup on the right"]]
    two = [
        ["n5", "A red cup in front of a dog", "A blue cup behind a dog"],
        ["n5", "A blue cup on top of a dog", "A red cup below a dog"],
    ]
    data = write_questions(tmp_path / "data", "vg_qa", one, two)
    result = WHATSUP_VG.load(data, images, False).run(color_encoder, Cosine())
    assert result["acc/two_front"].value == 1
    assert result["acc/two_top"].value == 0
    assert result["acc/one_left"].value == 1
    assert result["acc/subset-macro"].value == pytest.approx((1 + 1 / 2) / 2)


def test_missing_photos(sets, coco, color_encoder):
    (sets / "controlled_images" / "cup0_on_table.jpeg").unlink()
    with pytest.raises(Withheld, match=r"1 of 5 items .*cup0_on_table\.jpeg"):
        WHATSUP.load(sets, None, False).run(color_encoder, Cosine())
    result = WHATSUP.load(sets, None, True).run(color_encoder, Cosine())
    assert (result["acc"].count, result["pair"].count, result["set"].count) == (16, 8, 4)
    assert result.left_out == 1

    (coco / "val2017" / "000000000139.jpg").unlink()
    with pytest.raises(Withheld, match=r"3 of 6 items .*000000000139\.jpg"):
        WHATSUP_COCO.load(coco, None, False).run(color_encoder, Cosine())
    partial = WHATSUP_COCO.load(coco, None, True).run(color_encoder, Cosine())
    assert partial["acc"].count == 3


def test_random_scores_lie_at_chance(tmp_path, paint, color_encoder):
    folder = write_sets(tmp_path / "data", paint, {"A": [RIGHT] * 2, "B": [RIGHT]})
    assert_at_chance(WHATSUP.load(folder, None, False), color_encoder, seeds=400)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda rows: rows.pop(), r"set 'A cup1 table' lacks the arrangements under"),
        (lambda rows: rows.append(rows[0]), "item 8: 'image_path' .* shows the same as .* item 0"),
        (lambda rows: rows[3].pop("image_path"), "item 3: 'image_path' must be"),
        (lambda rows: rows[3].pop("caption_options"), "item 3: 'caption_options' must be a list"),
        (lambda rows: rows[3].update(image_path="data/cup.jpeg"), "item 3: .* must be named"),
        (lambda rows: rows[3].update(image_path="cup_in-front_of_x.jpeg"), "one of left, right"),
        (lambda rows: rows[3]["caption_options"].pop(), "item 3: 'caption_options' must be the"),
        (lambda rows: rows[3]["caption_options"].append(5), "item 3: 'caption_options 4' must be"),
        (lambda rows: rows.insert(0, "x"), "item 0: a JSON object is needed, got str"),
    ],
)
def test_malformed_sets_are_one_clear_error(sets, change, message):
    path = sets / "controlled_images_dataset.json"
    rows = json.loads(path.read_text())
    change(rows)
    path.write_text(json.dumps(rows))
    with pytest.raises(ValueError, match=message) as caught:
        WHATSUP.load(sets, None, False)
    assert "controlled_images_dataset.json" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content, message",
    [
        ({}, "a list is needed, got dict"),
        ([[139, "x"]], r"item 0: a list \[image id, right, wrong\] is needed"),
        ([[139, "x", " "]], "item 0: 'wrong' must be a non-empty string"),
        ([[True, "x", "y"]], "item 0: the image id must be"),
        ([[1.5, "x", "y"]], "item 0: the image id must be"),
        ([["", "x", "y"]], "item 0: the image id must be"),
    ],
)
def test_malformed_questions_are_one_clear_error(coco, content, message):
    (coco / "coco_qa_two_obj.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message) as caught:
        WHATSUP_COCO.load(coco, None, False)
    assert "coco_qa_two_obj.json" in str(caught.value)


def test_missing_files_are_named(sets, coco):
    (sets / "controlled_clevr_dataset.json").unlink()
    with pytest.raises(ValueError, match=r"lacks controlled_clevr_dataset\.json"):
        WHATSUP.load(sets, None, False)
    with pytest.raises(ValueError, match=r"lacks vg_qa_one_obj\.json, vg_qa_two_obj\.json"):
        WHATSUP_VG.load(coco, coco, False)
    with pytest.raises(ValueError, match="vg_images' is not a folder"):
        WHATSUP_VG.load(coco, None, False)
