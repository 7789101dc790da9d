"""VL-CheckList: 56 files; the means of files, data sets, kinds and aspects; missing images."""

import json
import math
import shutil

import pytest

from hnpretrain.eval.benchmarks.vl_checklist import ASPECTS, VL_CHECKLIST
from hnpretrain.eval.results import Withheld
from hnpretrain.eval.scorers import Cosine
from tests.eval.helpers import assert_at_chance

SIZES, LOCATIONS = ("large", "medium", "small"), ("center", "mid", "margin")
ROLES = ("agent", "destination", "item", "tool")

# The repository's files, written out, with the folder that their images lie in.
FILES = {
    **{f"Attribute/{of}/{kind}": "vg" for of in ("vg", "vaw") for kind in (
        "action", "color", "material", "size", "state")},
    **{f"Object/Size/hake_size/hake_obj_{size}": "hake" for size in SIZES},
    **{f"Object/Size/swig_size/swig_{role}/swig_{role}_{size}": "swig"
       for role in ROLES for size in SIZES},
    **{f"Object/Size/vg_size/vg_{end}_{size}": "vg" for end in ("obj", "subj") for size in SIZES},
    **{f"Object/Location/hake_location/hake_obj_{place}": "hake" for place in LOCATIONS},
    **{f"Object/Location/swig_location/swig_{role}/swig_{role}_{place}": "swig"
       for role in ROLES for place in LOCATIONS},
    **{f"Object/Location/vg_location/vg_{end}_{place}": "vg"
       for end in ("obj", "subj") for place in LOCATIONS},
    "Relation/vg/action": "vg",
    "Relation/vg/spatial": "vg",
    "Relation/swig_action": "swig",
    "Relation/hake_action": "hake",
}  # fmt: skip

RIGHT = {"POS": ["red floor", "a second one"], "NEG": ["blue floor"]}
WRONG = {"POS": ["blue floor"], "NEG": ["red floor"]}

# The share of right answers in a file; the others have one item, which is right.
SHARES = {
    "Object/Size/vg_size/vg_obj_large": (1, 4),
    "Object/Size/swig_size/swig_item/swig_item_large": (1, 2),
    "Object/Location/hake_location/hake_obj_mid": (0, 1),
    "Attribute/vaw/color": (1, 3),
    "Relation/vg/action": (0, 2),
    "Relation/vg/spatial": (2, 5),
}

IMAGE = {"vg": "VG_100K_2/1.jpg", "swig": "dialing_8.jpg", "hake": "openimages/a.jpg"}


@pytest.fixture
def places(tmp_path, paint):
    data, images = tmp_path / "data", tmp_path / "images"
    for folder, image in IMAGE.items():
        (images / folder / image).parent.mkdir(parents=True)
        (images / folder / image).write_bytes(paint("red"))
    for stem, folder in FILES.items():
        right, count = SHARES.get(stem, (1, 1))
        write(data, stem, [[IMAGE[folder], RIGHT if n < right else WRONG] for n in range(count)])
    return data, images


def write(data, stem, entries):
    path = data / f"{stem}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(entries))


def test_scores_by_hand(places, color_encoder):
    result = VL_CHECKLIST.load(*places, False).run(color_encoder, Cosine())
    vg_obj, swig_item, hake = 1 / 4, 1 / 2, 0
    kinds = {
        "acc/object-large": ((vg_obj + 1) / 2 + (swig_item + 1 + 1 + 1) / 4 + 1) / 3,
        "acc/object-medium": 1,
        "acc/object-small": 1,
        "acc/object-center": 1,
        "acc/object-mid": (1 + 1 + hake) / 3,
        "acc/object-margin": 1,
        "acc/attribute-color": (1 + 1 / 3) / 2,
        "acc/attribute-material": 1,
        "acc/attribute-size": 1,
        "acc/attribute-state": 1,
        "acc/attribute-action": 1,
        "acc/relation-action": (0 + 1 + 1) / 3,
        "acc/relation-spatial": 2 / 5,
    }
    values = list(kinds.values())
    of_aspects = {
        "acc/object": sum(values[:6]) / 6,
        "acc/attribute": sum(values[6:11]) / 5,
        "acc/relation": sum(values[11:]) / 2,
    }
    right = len(FILES) - len(SHARES) + sum(right for right, _ in SHARES.values())
    total = len(FILES) - len(SHARES) + sum(count for _, count in SHARES.values())
    expected = {
        "acc": right / total,
        **kinds,
        **of_aspects,
        "acc/aspect-macro": sum(of_aspects.values()) / 3,
    }
    told = [score.name for score in result.scores]
    assert told == [*expected, *(name.replace("acc", "text_only", 1) for name in expected)]
    for name, value in expected.items():
        assert result[name].value == pytest.approx(value), name
    assert all(score.chance == pytest.approx(1 / 2) for score in result.scores)
    assert result["acc/aspect-macro"].count == result["acc"].count == total
    assert result["acc/object-large"].count == 11
    data_sets = ASPECTS["object"]["object-large"].values()
    variance = sum(
        variance_of(*SHARES.get(stem, (1, 1))) / (len(data_sets) * len(stems)) ** 2
        for stems in data_sets
        for stem in stems
    )
    assert result["acc/object-large"].standard_error == pytest.approx(math.sqrt(variance))
    assert "Relation/swig_action 0" in result.names
    assert set(result.groups["aspect"]) == {"object", "attribute", "relation"}


def variance_of(right: int, count: int) -> float:
    """Of a share; a single answer says nothing of it."""
    share = right / count
    return share * (1 - share) / (count - 1) if count > 1 else 1 / 4


def test_missing_images_withhold_the_score_and_partial_means_leave_them_out(places, color_encoder):
    data, images = places
    shutil.rmtree(images / "hake")
    (images / "hake").mkdir()
    with pytest.raises(Withheld, match=r"7 of 67 items lack .*hake/openimages/a\.jpg: no such"):
        VL_CHECKLIST.load(data, images, False).run(color_encoder, Cosine())
    result = VL_CHECKLIST.load(data, images, True).run(color_encoder, Cosine())
    assert result.left_out == 7
    assert result["acc/object-mid"].value == 1
    assert result["acc/relation-action"].value == 1 / 2
    averages = {score.name: score.average for score in result.scores}
    assert averages["acc/relation-action"].startswith("mean of 2 data sets")


def test_a_kind_without_images_has_no_score(places, color_encoder):
    data, images = places
    write(data, "Relation/vg/spatial", [["gone.jpg", RIGHT]])
    result = VL_CHECKLIST.load(data, images, True).run(color_encoder, Cosine())
    assert not [score for score in result.scores if "spatial" in score.name]
    assert result["acc/relation"].value == result["acc/relation-action"].value == 2 / 3


@pytest.mark.parametrize(
    "entries, message",
    [
        ({"a": 1}, "a list is needed, got dict"),
        ([["dialing_8.jpg"]], r"item 0: a list \[image, captions\] is needed"),
        ([["dialing_8.jpg", RIGHT], [7, RIGHT]], "item 1: 'image' must be a non-empty string"),
        ([["dialing_8.jpg", ["a", "b"]]], "item 0 captions: a JSON object is needed, got list"),
        ([["dialing_8.jpg", {"POS": ["a"]}]], "item 0: 'NEG' must be a list, got None"),
        ([["dialing_8.jpg", {"POS": [], "NEG": ["b"]}]], "item 0: 'POS' must start with a caption"),
        ([["dialing_8.jpg", {"POS": ["a"], "NEG": [3]}]], "item 0: 'NEG' must start with"),
    ],
)
def test_malformed_files_are_one_clear_error(places, entries, message):
    data, images = places
    write(data, "Relation/swig_action", entries)
    with pytest.raises(ValueError, match=message) as caught:
        VL_CHECKLIST.load(data, images, False)
    assert "swig_action.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_files_are_named(places):
    data, images = places
    (data / "Relation" / "hake_action.json").unlink()
    with pytest.raises(ValueError, match=r"lacks Relation/hake_action\.json; .* all 56 files"):
        VL_CHECKLIST.load(data, images, False)
    with pytest.raises(ValueError, match="needs an image folder"):
        VL_CHECKLIST.load(data, None, False)


def test_random_scores_are_at_chance(places, color_encoder):
    assert_at_chance(VL_CHECKLIST.load(*places, False), color_encoder, seeds=100)
