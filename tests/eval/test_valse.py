"""VALSE: the valid samples of eleven instruments, their means, and where the images lie."""

import json

import pytest

from hnpretrain.eval.benchmarks.valse import PIECES, VALSE
from hnpretrain.eval.results import Withheld
from hnpretrain.eval.scorers import Cosine
from tests.eval.helpers import assert_at_chance, assert_scores

# Of each instrument: right (True) or wrong answers of a model that sees colours.
ANSWERS = {
    "existence": [True, True, False],
    "plurals": [True],
    "counting-hard": [True, False],
    "counting-small-quant": [True, True, True, False],
    "counting-adversarial": [False],
    "relations": [False, False],
    "action-replacement": [True],
    "actant-swap": [True, False],
    "coreference-standard": [True, False, False, False],
    "coreference-hard": [True],
    "foil-it": [True, True, False, False],
}


def sample(right, image="red.png", votes=3):
    """As in the official files, with the fields that are not needed."""
    caption, foil = ("a red car", "a blue car") if right else ("a blue car", "a red car")
    return {
        "dataset": "SWiG",
        "original_split": "test",
        "dataset_idx": image,
        "linguistic_phenomena": "actions",
        "image_file": image,
        "caption": caption,
        "classes": "red",
        "classes_foil": ["blue"],
        "mturk": {"foil": 0, "caption": votes, "other": 3 - votes},
        "foil": foil,
    }


@pytest.fixture
def places(tmp_path, paint):
    data, images = tmp_path / "data", tmp_path / "images"
    data.mkdir()
    (images / "swig" / "images_512").mkdir(parents=True)
    (images / "red.png").write_bytes(paint("red"))
    (images / "swig" / "images_512" / "deep.png").write_bytes(paint("red"))
    for instrument, answers in ANSWERS.items():
        # The same ids in several files, as in the official ones.
        samples = {f"test_{number}": sample(right) for number, right in enumerate(answers)}
        (data / f"{instrument}.json").write_text(json.dumps(samples))
    return data, images


def rewrite(data, instrument, **changes):
    path = data / f"{instrument}.json"
    samples = json.loads(path.read_text())
    samples["test_0"] |= changes
    path.write_text(json.dumps(samples))


def test_scores_by_hand(places, color_encoder):
    result = VALSE.load(*places, False).run(color_encoder, Cosine())
    share = {name: sum(answers) / len(answers) for name, answers in ANSWERS.items()}
    total = sum(map(len, ANSWERS.values()))
    expected = {
        "acc": (13 / 25, 25),
        **{f"acc/{name}": (share[name], len(ANSWERS[name])) for name in sorted(ANSWERS)},
        "acc/instrument-macro": (sum(share.values()) / 11, total),
        "acc/counting-macro": ((1 / 2 + 3 / 4 + 0) / 3, 7),
        "acc/actions-macro": ((1 + 1 / 2) / 2, 3),
        "acc/coreference-macro": ((1 / 4 + 1) / 2, 5),
    }
    told = [score.name for score in result.scores]
    assert told == [*expected, *(name.replace("acc", "text_only") for name in expected)]
    assert_scores(result, expected)
    assert all(score.chance == 1 / 2 for score in result.scores)
    # With the mean image, which is red here, the texts give the same away.
    assert result["text_only"].value == pytest.approx(13 / 25)
    assert result.names[0] == "existence test_0"
    assert result.groups["piece"][-1] == "noun phrases"
    assert set(ANSWERS) == set(PIECES)


@pytest.mark.parametrize("votes, counted", [(0, False), (1, False), (2, True), (3, True)])
def test_samples_that_two_annotators_found_valid_count(places, color_encoder, votes, counted):
    data, images = places
    (data / "plurals.json").write_text(
        json.dumps({"a": sample(True), "b": sample(False, votes=votes)})
    )
    result = VALSE.load(data, images, False).run(color_encoder, Cosine())
    assert result["acc/plurals"].count == 1 + counted


def test_images_lie_in_the_folder_or_in_those_within(places, color_encoder):
    data, images = places
    rewrite(data, "plurals", image_file="deep.png")
    result = VALSE.load(data, images, False).run(color_encoder, Cosine())
    assert result["acc/plurals"].value == 1


def test_a_missing_image_withholds_the_score(places, color_encoder):
    data, images = places
    rewrite(data, "foil-it", image_file="gone.png")
    with pytest.raises(Withheld, match=r"1 of 25 items lack .*gone\.png: no such file"):
        VALSE.load(data, images, False).run(color_encoder, Cosine())
    result = VALSE.load(data, images, True).run(color_encoder, Cosine())
    assert (result.left_out, result["acc"].count, result["acc/foil-it"].count) == (1, 24, 3)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"foil": None}, "'foil' must be a non-empty string, got None"),
        ({"caption": ["a car"]}, "'caption' must be a non-empty string"),
        ({"image_file": ""}, "'image_file' must be"),
        ({"mturk": None}, "'mturk': a JSON object is needed"),
        ({"mturk": {"foil": 1}}, "'mturk': 'caption' must be a number, got None"),
    ],
)
def test_a_malformed_sample_is_one_clear_error(places, changes, message):
    data, images = places
    rewrite(data, "relations", **changes)
    with pytest.raises(ValueError, match=message) as caught:
        VALSE.load(data, images, False)
    assert "relations.json item 'test_0'" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_all_eleven_files_are_needed(places):
    data, images = places
    (data / "foil-it.json").unlink()
    (data / "plurals.json").unlink()
    with pytest.raises(ValueError, match=r"lacks plurals\.json, foil-it\.json"):
        VALSE.load(data, images, False)
    with pytest.raises(ValueError, match="needs an image folder"):
        VALSE.load(data, None, False)


def test_random_scores_are_at_chance(places, color_encoder):
    assert_at_chance(VALSE.load(*places, False), color_encoder, seeds=200)
