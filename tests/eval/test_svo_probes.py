"""SVO-Probes: a sentence prefers its image, by the part that the other one differs in."""

import csv

import pytest

from hnpretrain.eval.benchmarks.svo_probes import SVO_PROBES
from hnpretrain.eval.results import Withheld
from hnpretrain.eval.scorers import Cosine
from tests.eval.helpers import assert_at_chance, assert_scores

COLUMNS = (
    "sentence",
    "pos_triplet",
    "neg_triplet",
    "pos_url",
    "neg_url",
    "pos_image_id",
    "neg_image_id",
    "subj_neg",
    "verb_neg",
    "obj_neg",
)
RED, BLUE, GREEN = "0", "17", "4012"


def row(sentence, right, wrong, *parts):
    return {
        "sentence": sentence,
        "pos_triplet": "girl,sit,car",
        "neg_triplet": "['dog,sit,car', 'cat,sit,car']",
        "pos_url": f"https://example.org/{right}.jpg?a,b",
        "neg_url": f"https://example.org/{wrong}.jpg",
        "pos_image_id": right,
        "neg_image_id": wrong,
        **{f"{part}_neg": str(part in parts) for part in ("subj", "verb", "obj")},
    }


ROWS = [
    row("A red girl, sitting.", RED, BLUE, "subj"),  # right
    row("A red girl sits.", BLUE, RED, "subj"),  # wrong
    row("A blue girl sits.", BLUE, RED, "verb"),  # right
    row("A girl\nsits in a green car.", GREEN, RED, "obj"),  # right
    row("A green girl sits.", RED, GREEN, "obj"),  # wrong
    row("A green girl sits.", GREEN, GREEN, "obj"),  # a tie
    row("A red girl sits.", RED, BLUE, "subj", "verb"),  # two parts: left out
    row("A red girl sits.", RED, BLUE),  # none: left out
]


def write(path, rows):
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.fixture
def places(tmp_path, paint):
    images = tmp_path / "images"
    images.mkdir()
    (images / f"{RED}.jpg").write_bytes(paint("red"))
    (images / f"{BLUE}.jpg").write_bytes(paint("blue"))
    (images / f"{GREEN}.PNG").write_bytes(paint("green"))
    (images / f"{RED}.json").write_text("{}")
    (images / f"{BLUE}.txt").write_text("as a downloader leaves it")
    return write(tmp_path / "svo_probes.csv", ROWS), images


def test_scores_by_hand(places, color_encoder):
    result = SVO_PROBES.load(*places, False).run(color_encoder, Cosine())
    expected = {
        "acc": (3 / 6, 6),
        "acc/object": (1 / 3, 3),
        "acc/subject": (1 / 2, 2),
        "acc/verb": (1, 1),
        "acc/part-macro": ((1 / 3 + 1 / 2 + 1) / 3, 6),
    }
    assert_scores(result, expected)
    # No text-only score: there is one caption.
    assert len(result.scores) == len(expected)
    assert all(score.chance == 1 / 2 for score in result.scores)
    assert result.scores[0].ties == 1
    assert result.names == tuple(f"row {number}" for number in range(6))


def test_a_folder_and_numbers_written_as_floats_are_read(places, color_encoder):
    data, images = places
    write(data, [row("red", f"{RED}.0", f"{BLUE}.0", "verb")])
    result = SVO_PROBES.load(data.parent, images, False).run(color_encoder, Cosine())
    assert result["acc"].value == 1


def test_a_missing_image_withholds_the_score(places, color_encoder):
    data, images = places
    (images / f"{BLUE}.jpg").unlink()
    with pytest.raises(Withheld, match=r"3 of 6 items lack .*17\.jpg: no such file"):
        SVO_PROBES.load(data, images, False).run(color_encoder, Cosine())
    result = SVO_PROBES.load(data, images, True).run(color_encoder, Cosine())
    assert (result.left_out, result["acc"].count, result["acc/part-macro"].count) == (3, 3, 3)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"subj_neg": "maybe"}, "'subj_neg' must be True or False, got 'maybe'"),
        ({"obj_neg": ""}, "'obj_neg' must be"),
        ({"neg_image_id": "photo"}, "'neg_image_id' must be a whole number from 0, got 'photo'"),
        ({"pos_image_id": "1.5"}, "'pos_image_id' must be a whole number"),
    ],
)
def test_a_malformed_row_is_one_clear_error(places, changes, message):
    data, images = places
    write(data, [ROWS[0], ROWS[1] | changes])
    with pytest.raises(ValueError, match=message) as caught:
        SVO_PROBES.load(data, images, False)
    assert "svo_probes.csv line 3" in str(caught.value)


def test_a_missing_column_is_named(places):
    data, images = places
    data.write_text("sentence,pos_image_id\na,1\n")
    with pytest.raises(ValueError, match="'subj_neg' must be"):
        SVO_PROBES.load(data, images, False)
    with pytest.raises(ValueError, match="no such file"):
        SVO_PROBES.load(data.parent / "gone.csv", images, False)


def test_random_scores_are_at_chance(places, color_encoder):
    assert_at_chance(SVO_PROBES.load(*places, False), color_encoder)
