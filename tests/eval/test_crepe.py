"""CREPE: a crop prefers its caption to all hard negatives; productivity and systematicity."""

import csv
import io

import pytest
from PIL import Image

from hnpretrain.eval.benchmarks.crepe import (
    COMPLEXITIES,
    CREPE_PRODUCTIVITY,
    CREPE_SYSTEMATICITY,
    KINDS,
)
from hnpretrain.eval.results import Withheld
from hnpretrain.eval.scorers import Cosine
from tests.eval.helpers import assert_at_chance, assert_scores

RIGHT = ("a red car", ["a blue car", "a green car", "a yellow car", "a blue bus", "a green bus"])
WRONG = ("a blue car", ["a green car", "a red car", "a yellow car", "a green bus", "a blue bus"])
LEFT = {"x": "0", "y": "2", "width": "4", "height": "20"}


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        # An unnamed first column, as pandas writes it.
        writer = csv.DictWriter(file, ["", *rows[0]])
        writer.writeheader()
        writer.writerows(rows)


def entry(answer, image="2", **changes):
    caption, negatives = answer
    return {
        "region_id": "374",
        "caption": caption,
        **LEFT,
        "image_id": image,
        "hard_negs": str(negatives),
        **changes,
    }


@pytest.fixture
def images(tmp_path, paint):
    """Photo 2 is red at its left and blue at its right; photo 5 is blue."""
    photo = Image.open(io.BytesIO(paint("red")))
    photo.paste(Image.open(io.BytesIO(paint("blue"))), (4, 0))
    folder = tmp_path / "vg"
    for each in ("VG_100K", "VG_100K_2"):
        (folder / each).mkdir(parents=True)
    photo.save(folder / "VG_100K" / "2.jpg", "PNG")
    (folder / "VG_100K_2" / "5.jpg").write_bytes(paint("blue"))
    return folder


@pytest.fixture
def productivity(tmp_path):
    """Right answers of 2 at complexity 4 of atom, 1 of 2 at 5; else 1 right of 1."""
    data = tmp_path / "prod"
    for kind in KINDS:
        for complexity in COMPLEXITIES:
            rows = [entry(RIGHT)]
            if kind == "atom" and complexity in (4, 5):
                rows.append(entry(RIGHT if complexity == 4 else WRONG))
            write(data / kind / f"prod_vg_hard_negs_{kind}_complexity_{complexity}.csv", rows)
    return data


def file_of(data, kind, complexity):
    return data / kind / f"prod_vg_hard_negs_{kind}_complexity_{complexity}.csv"


def test_productivity_by_hand(productivity, images, color_encoder):
    result = CREPE_PRODUCTIVITY.load(productivity, images, False).run(color_encoder, Cosine())
    levels = [f"{complexity:02}" for complexity in range(4, 13)]
    expected = {
        "acc": (28 / 29, 29),
        "acc/atom": (10 / 11, 11),
        "acc/negate": (1, 9),
        "acc/swap": (1, 9),
        "acc/kind-macro": ((10 / 11 + 2) / 3, 29),
        **{f"acc/atom-{level}": (1, 1) for level in levels},
        "acc/atom-macro": ((8 + 1 / 2) / 9, 11),
        **{f"acc/swap-{level}": (1, 1) for level in levels},
        "acc/swap-macro": (1, 9),
        **{f"acc/negate-{level}": (1, 1) for level in levels},
        "acc/negate-macro": (1, 9),
        "acc/atom-04": (1, 2),
        "acc/atom-05": (1 / 2, 2),
    }
    told = [score.name for score in result.scores]
    assert told == [*expected, *(name.replace("acc", "text_only", 1) for name in expected)]
    assert_scores(result, expected)
    assert all(score.chance == pytest.approx(1 / 6) for score in result.scores)
    assert result.names[0] == "atom-04 row 0"


@pytest.mark.parametrize(
    "changes, right",
    [
        ({}, True),
        ({"x": "4.0", "width": "3.5"}, False),  # the blue half
        ({"x": "4", "width": "900"}, False),  # ends with the photo
        ({"image_id": "2.0"}, True),
        ({"image_id": "5"}, False),  # in the second folder
    ],
)
def test_the_crop_is_what_is_judged(productivity, images, color_encoder, changes, right):
    write(file_of(productivity, "swap", 7), [entry(RIGHT, **changes)])
    result = CREPE_PRODUCTIVITY.load(productivity, images, False).run(color_encoder, Cosine())
    assert result["acc/swap-07"].value == right


def test_the_folder_may_be_that_of_the_images_themselves(productivity, images, color_encoder):
    benchmark = CREPE_PRODUCTIVITY.load(productivity, images / "VG_100K", False)
    assert benchmark.run(color_encoder, Cosine())["acc"].count == 29


def test_a_missing_image_withholds_the_score(productivity, images, color_encoder):
    write(file_of(productivity, "swap", 7), [entry(RIGHT, image="77"), entry(RIGHT)])
    with pytest.raises(Withheld, match=r"1 of 30 items lack .*VG_100K/77\.jpg: no such file"):
        CREPE_PRODUCTIVITY.load(productivity, images, False).run(color_encoder, Cosine())
    result = CREPE_PRODUCTIVITY.load(productivity, images, True).run(color_encoder, Cosine())
    assert (result.left_out, result["acc/swap-07"].count) == (1, 1)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"hard_negs": "['a'"}, "'hard_negs' must be a list of strings"),
        ({"hard_negs": "['a', 3]"}, "'hard_negs' must be a list of strings"),
        ({"hard_negs": "open('x')"}, "'hard_negs' must be a list of strings"),
        ({"x": "left"}, "'x' must be a number, got 'left'"),
        ({"height": "nan"}, "'height' must be a number"),
        ({"width": ""}, "'width' must be"),
        ({"caption": ""}, "'caption' must be a non-empty string"),
        ({"image_id": "x7"}, "'image_id' must be a whole number from 0, got 'x7'"),
    ],
)
def test_a_malformed_row_is_one_clear_error(productivity, images, changes, message):
    write(file_of(productivity, "swap", 7), [entry(RIGHT), entry(RIGHT, **changes)])
    with pytest.raises(ValueError, match=message) as caught:
        CREPE_PRODUCTIVITY.load(productivity, images, False)
    assert "prod_vg_hard_negs_swap_complexity_7.csv line 3" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_files_and_columns_are_named(productivity, images):
    write(file_of(productivity, "swap", 7), [{"caption": "a", "image_id": "2"}])
    with pytest.raises(ValueError, match="'hard_negs' must be a string, got None"):
        CREPE_PRODUCTIVITY.load(productivity, images, False)
    file_of(productivity, "negate", 12).unlink()
    with pytest.raises(
        ValueError, match=r"lacks negate/prod_vg_hard_negs_negate_complexity_12\.csv"
    ):
        CREPE_PRODUCTIVITY.load(productivity, images, False)


def negatives(atom, comp):
    caption, *_ = RIGHT
    return {
        "caption": caption,
        **LEFT,
        "image_id": "2",
        "valid_hard_negs_atom": str(atom),
        "valid_hard_negs_comp": str(comp),
    }


@pytest.fixture
def systematicity(tmp_path):
    data = tmp_path / "syst"
    rows = [
        negatives(["a blue car"], ["a blue bus", "a green bus", "a yellow bus"]),  # right twice
        negatives(["a blue car", "a red bus"], []),  # a tie; nothing
        negatives([], ["a green bus"]),  # nothing; right
    ]
    write(data / "syst_vg_hard_negs_seen_compounds_in_cc12m.csv", rows)
    unseen = [row | {"valid_hard_negs_combined": str(["a green bus"])} for row in rows[:1]]
    write(data / "syst_vg_hard_negs_unseen_compounds_in_cc12m.csv", unseen)
    return data


def test_systematicity_by_hand(systematicity, images, color_encoder):
    result = CREPE_SYSTEMATICITY.load(systematicity, images, False).run(color_encoder, Cosine())
    # value, count, chance
    expected = {
        "acc": (6 / 7, 7, (1 / 2 + 1 / 4 + 1 / 3 + 1 / 2 + 1 / 2 + 1 / 4 + 1 / 2) / 7),
        "acc/cc12m-seen-atom": (1 / 2, 2, (1 / 2 + 1 / 3) / 2),
        "acc/cc12m-seen-comp": (1, 2, (1 / 4 + 1 / 2) / 2),
        "acc/cc12m-unseen-atom": (1, 1, 1 / 2),
        "acc/cc12m-unseen-combined": (1, 1, 1 / 2),
        "acc/cc12m-unseen-comp": (1, 1, 1 / 4),
    }
    told = [score.name for score in result.scores]
    assert told == [*expected, *(name.replace("acc", "text_only", 1) for name in expected)]
    for score in result.scores[: len(expected)]:
        value, count, chance = expected[score.name]
        assert score.accuracy.value == pytest.approx(value), score.name
        assert (score.accuracy.count, score.chance) == (count, pytest.approx(chance)), score.name
    assert "cc12m-seen-comp row 2" in result.names


def test_one_file_of_systematicity_is_enough(systematicity, images, color_encoder):
    path = systematicity / "syst_vg_hard_negs_unseen_compounds_in_cc12m.csv"
    result = CREPE_SYSTEMATICITY.load(path, images, False).run(color_encoder, Cosine())
    assert result["acc"].count == 3
    other = path.rename(path.with_name("syst_other.csv"))
    with pytest.raises(ValueError, match=r"syst_other\.csv' is not named syst_vg_hard_negs_"):
        CREPE_SYSTEMATICITY.load(other, images, False)
    write(path, [{"caption": "a", "image_id": "2"}])
    with pytest.raises(ValueError, match="line 2: none of the columns valid_hard_negs_atom"):
        CREPE_SYSTEMATICITY.load(path, images, False)
    with pytest.raises(ValueError, match="holds no item"):
        CREPE_SYSTEMATICITY.load(images, images, False)


@pytest.mark.parametrize("benchmark", ["productivity", "systematicity"])
def test_random_scores_are_at_chance(benchmark, productivity, systematicity, images, color_encoder):
    kind, data = {
        "productivity": (CREPE_PRODUCTIVITY, productivity),
        "systematicity": (CREPE_SYSTEMATICITY, systematicity),
    }[benchmark]
    assert_at_chance(kind.load(data, images, False), color_encoder, seeds=150)
