"""ARO: crops, the relations and pairs that count, shuffles given and made."""

import io
import json
from collections import Counter

import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from hnpretrain.eval.benchmarks.aro import (
    ARO_ATTRIBUTION,
    ARO_COCO_ORDER,
    ARO_FLICKR_ORDER,
    ARO_RELATION,
    LEFT_OUT,
    made_options,
)
from hnpretrain.eval.results import Withheld
from hnpretrain.eval.scorers import Cosine
from tests.eval.conftest import COLORS
from tests.eval.helpers import assert_at_chance

RIGHT, WRONG = "red", "blue"


def values(result):
    return {score.name: score.accuracy.value for score in result.scores}


@pytest.fixture
def root(tmp_path):
    """images/two.png is red on its left and blue on its right, 20 x 10 pixels."""
    image = Image.new("RGB", (20, 10), COLORS["red"])
    image.paste(COLORS["blue"], (10, 0, 20, 10))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "two.png").write_bytes(buffer.getvalue())
    return tmp_path


def case(true, false="", left=0, **more):
    """A case of the official files, of the red half unless told otherwise."""
    return {
        "image_id": "two",
        "image_path": "two.png",
        "bbox_x": left,
        "bbox_y": 0,
        "bbox_w": 10,
        "bbox_h": 10,
        "true_caption": f"the {true} door",
        "false_caption": f"the door {false or {'red': 'blue', 'blue': 'red'}[true]}",
        **more,
    }


def relations(root):
    cases = [
        *[case(RIGHT, relation_name="on")] * 3,  # 3/4
        case(WRONG, relation_name="on"),
        case(RIGHT, relation_name="to the left of"),  # 1, in a group of one
        *[case(WRONG, relation_name="near")] * 2,  # 0, left out
        case(RIGHT, relation_name="sitting next to"),  # 1, left out
    ]
    (root / "visual_genome_relation.json").write_text(json.dumps(cases))
    return cases


def test_relations_that_the_paper_leaves_out_are_in_no_group_of_its_mean(root, color_encoder):
    relations(root)
    assert len(LEFT_OUT) == 157
    result = ARO_RELATION.load(root, None, False).run(color_encoder, Cosine())
    got = values(result)
    assert got["acc"] == 5 / 8
    assert got["acc/on"] == 3 / 4
    assert got["acc/to the left of"] == 1
    assert "acc/near" not in got
    assert got["acc/relation-macro"] == (3 / 4 + 1) / 2
    assert got["acc/every-relation-macro"] == (3 / 4 + 1 + 0 + 1) / 4
    assert all(score.chance == 1 / 2 for score in result.scores)
    assert result.groups["relation"][-1] is None
    by_file = ARO_RELATION.load(root / "visual_genome_relation.json", root / "images", False)
    assert values(by_file.run(color_encoder, Cosine())) == got


def test_the_image_is_cut_to_its_box(root, color_encoder):
    # The blue half, a box of which half lies outside, and one that is red but for a column.
    cases = [
        case("blue", left=10, relation_name="on"),
        case("blue", left=15, relation_name="under"),
        case("red", relation_name="above", bbox_w=11),
    ]
    (root / "visual_genome_relation.json").write_text(json.dumps(cases))
    got = values(ARO_RELATION.load(root, None, False).run(color_encoder, Cosine()))
    assert (got["acc/on"], got["acc/under"], got["acc/above"]) == (1, 1, 1)
    outside = case("blue", left=20, relation_name="on")
    (root / "visual_genome_relation.json").write_text(json.dumps([outside, *cases]))
    with pytest.raises(Withheld, match=r"two\.png: the crop .20.0, 0.0, 30.0, 10.0. holds nothing"):
        ARO_RELATION.load(root, None, False).run(color_encoder, Cosine())


def test_small_pairs_of_attributes_are_not_in_the_mean(root, color_encoder):
    cases = [
        *[case(RIGHT, attributes=["red", "wooden"])] * 20,
        *[case(WRONG, attributes=["red", "wooden"])] * 5,
        *[case(RIGHT, attributes=["white", "tall"])] * 26,
        # The other order is another pair, of 24: too few.
        *[case(WRONG, attributes=["wooden", "red"])] * 24,
    ]
    (root / "visual_genome_attribution.json").write_text(json.dumps(cases))
    result = ARO_ATTRIBUTION.load(root, None, False).run(color_encoder, Cosine())
    got = values(result)
    assert got["acc/attributes-macro"] == pytest.approx((20 / 25 + 1) / 2)
    assert got["acc"] == pytest.approx(46 / 75)
    assert set(got) == {"acc", "acc/attributes-macro", "text_only", "text_only/attributes-macro"}
    average = next(score.average for score in result.scores if "macro" in score.name)
    assert average == "mean of 2 groups (of 3; the others have under 25 items)"


@pytest.mark.parametrize(
    "change, message",
    [
        ({"bbox_w": 0}, "'bbox_w' and 'bbox_h' must be above 0, got 0.0, 10.0"),
        ({"bbox_y": "0"}, "'bbox_y' must be a number, got '0'"),
        ({"false_caption": None}, "'false_caption' must be a non-empty string, got None"),
        ({"attributes": ["red"]}, r"'attributes' must be two strings, got \['red'\]"),
        ({"attributes": "red"}, "'attributes' must be a list, got 'red'"),
    ],
)
def test_broken_cases_are_named(root, change, message):
    cases = [case("red", attributes=["red", "tall"]), case("red", attributes=["a", "b"]) | change]
    path = root / "visual_genome_attribution.json"
    path.write_text(json.dumps(cases))
    with pytest.raises(ValueError, match=rf"attribution\.json item 1: {message}$"):
        ARO_ATTRIBUTION.load(path, None, False)


def test_files_that_lack_something_are_one_clear_line(root):
    with pytest.raises(ValueError, match=r"visual_genome_relation\.json: no such file"):
        ARO_RELATION.load(root, None, False)
    (root / "visual_genome_relation.json").write_text('{"0": {}}')
    with pytest.raises(ValueError, match=r"relation\.json: a list is needed, got dict"):
        ARO_RELATION.load(root, None, False)
    (root / "visual_genome_relation.json").write_text(json.dumps([case("red")]))
    with pytest.raises(ValueError, match=r"item 0: 'relation_name' must be a non-empty string"):
        ARO_RELATION.load(root, None, False)
    (root / "images").rename(root / "elsewhere")
    with pytest.raises(ValueError, match=r"aro_relation: image folder '.*images' is not a folder"):
        ARO_RELATION.load(root, None, False)


@pytest.fixture
def photos(tmp_path, paint):
    folder = tmp_path / "photos" / "val2014"
    folder.mkdir(parents=True)
    for color in COLORS:
        (folder / f"{color}.png").write_bytes(paint(color))
    return folder.parent


GIVEN = [  # right, wrong, a tie in the third of four, and a shuffle that is the caption itself
    ("red", ["a red door", "door a blue", "blue a door", "green a door", "a door yellow"]),
    ("red", ["a blue door", "door a red", "blue a door", "green a door", "a door yellow"]),
    ("red", ["a red door", "door a blue", "blue a door", "red a door", "a door yellow"]),
    ("red", ["a red door", "door a blue", "a red door", "green a door", "a red door"]),
    ("red", ["red"] * 5),  # no other order: no question
]


@pytest.mark.parametrize("form", ["image", "image_path", "parquet"])
def test_given_shuffles(tmp_path, photos, paint, color_encoder, form):
    if form == "parquet":
        names = ["correct_caption", *(f"hard_text_{number}" for number in range(1, 5))]
        rows = [
            {
                "images": {"bytes": paint(image), "path": None},
                **dict(zip(names, options, strict=True)),
            }
            for image, options in GIVEN
        ]
        data, images = tmp_path / "order", None
        data.mkdir()
        table = pyarrow.Table.from_pylist(rows)
        pyarrow.parquet.write_table(table, data / "test-00000-of-00001.parquet")
    else:
        data, images = tmp_path / "order.json", photos
        rows = [
            {form: f"val2014/{image}.png", "caption_options": options} for image, options in GIVEN
        ]
        data.write_text(json.dumps(rows))
    result = ARO_COCO_ORDER.load(data, images, False).run(color_encoder, Cosine())
    got = values(result)
    assert (got["acc"], got["acc/given"]) == (1 / 2, 1 / 2)
    assert result["acc"].count == 4
    acc = result.scores[0]
    assert acc.ties == 1
    # The fourth chooses among three.
    assert acc.chance == pytest.approx((3 / 5 + 1 / 3) / 4)
    assert [item.shape for item in result.items] == [(1, 5), (1, 5), (1, 5), (1, 3)]


CAPTIONS = ["A red door, near (the) old house.", "Two people's dogs run in the wide green park"]


def write_captions(folder, form):
    path = folder / "captions.json"
    if form == "blip":
        value = [{"image": "val2014/red.png", "caption": CAPTIONS}]
    else:
        sentences = [{"raw": caption, "tokens": []} for caption in CAPTIONS]
        one = {"filename": "red.png", "split": "test", "sentences": sentences}
        value = {"images": [one, {**one, "split": "train"}], "dataset": "coco"}
        if form == "karpathy coco":
            one["filepath"] = "val2014"
    path.write_text(json.dumps(value))
    return path


@pytest.mark.parametrize("form", ["blip", "karpathy", "karpathy coco"])
def test_captions_alone_are_shuffled_here_and_marked(tmp_path, photos, color_encoder, form):
    data = write_captions(tmp_path, form)
    images = photos / "val2014" if form == "karpathy" else photos
    result = ARO_FLICKR_ORDER.load(data, images, False).run(color_encoder, Cosine())
    # The model sees the first colour alone, so every shuffle ties.
    assert values(result)["acc/made"] == 0
    assert result.scores[0].ties == 2
    assert "acc/given" not in values(result)
    assert [item.captions for item in result.items] == [
        tuple(made_options(caption)) for caption in CAPTIONS
    ]
    if form == "karpathy coco":
        inner = ARO_FLICKR_ORDER.load(data, photos / "val2014", False)
        assert values(inner.run(color_encoder, Cosine())) == values(result)


def test_made_shuffles_are_what_they_are_said_to_be():
    for caption in CAPTIONS:
        true, trigrams, within, words = (option.split() for option in made_options(caption))
        assert len({tuple(each) for each in (true, trigrams, within, words)}) == 4
        starts = range(0, len(true), 3)
        threes = Counter(tuple(true[start : start + 3]) for start in starts)
        assert sum((" ".join(three) in " ".join(trigrams)) for three in threes) == len(threes)
        for start in starts:
            assert Counter(within[start : start + 3]) == Counter(true[start : start + 3])
        assert Counter(trigrams) == Counter(within) == Counter(words) == Counter(true)
    assert made_options(CAPTIONS[0])[0] == "a red door, near the old house"
    assert made_options(CAPTIONS[0]) == made_options(CAPTIONS[0])
    # Fixed for good: other numbers would not be comparable with those of before.
    assert made_options("one two three four five six") == [
        "one two three four five six",
        "four five six one two three",
        "one three two five four six",
        "three four two five six one",
    ]
    assert len(made_options("word " * 40)[0].split()) == 30


def test_shuffles_that_cannot_differ_stay_as_they_are():
    true, trigrams, *others = made_options("three short words")
    assert true == trigrams
    assert true not in others
    assert made_options("Word.") == ["word"] * 4


@pytest.mark.parametrize(
    "value, message",
    [
        ({"a": 1}, "a list of images with 'caption_options' or 'caption' is needed, .*got dict"),
        ([{"image": "a.png"}], "item 0: 'caption' must be a list, got None"),
        ([{"caption": ["a"]}], "item 0: 'image_path' must be a non-empty string"),
        ([{"image": "a", "caption": ["b", 3]}], "item 0: 'caption 1' must be a non-empty string"),
        ([{"image": "a", "caption_options": ["b"]}], "item 0: 'caption_options' must hold a cap"),
        ({"images": [{"split": "test", "sentences": [3]}]}, "image 0: a JSON object is needed"),
        ([{"image": "a", "caption": []}], "holds no item"),
    ],
)
def test_broken_order_files_are_named(tmp_path, photos, value, message):
    path = tmp_path / "order.json"
    path.write_text(json.dumps(value))
    with pytest.raises(ValueError, match=message):
        ARO_COCO_ORDER.load(path, photos, False)


def test_order_says_where_its_images_lie(tmp_path, photos):
    path = write_captions(tmp_path, "blip")
    with pytest.raises(ValueError, match="aro_flickr_order needs an image folder"):
        ARO_FLICKR_ORDER.load(path, None, False)
    with pytest.raises(ValueError, match=r"aro_flickr_order takes no image folder, got .*photos'"):
        ARO_FLICKR_ORDER.load(tmp_path, photos, False)


def test_a_missing_image_withholds_all_but_partial_scores(root, color_encoder):
    lost = case("red", relation_name="on") | {"image_path": "lost.png"}
    path = root / "visual_genome_relation.json"
    path.write_text(json.dumps([case("red", relation_name="on"), lost]))
    with pytest.raises(Withheld, match=r"lost\.png"):
        ARO_RELATION.load(root, None, False).run(color_encoder, Cosine())
    result = ARO_RELATION.load(root, None, True).run(color_encoder, Cosine())
    assert (result.left_out, result["acc"].value, result.names) == (1, 1, ("case 0",))


def test_random_scores_lie_at_chance(root, photos, color_encoder):
    relations(root)
    rows = [
        {"image": f"val2014/{image}.png", "caption_options": options} for image, options in GIVEN
    ]
    (root / "order.json").write_text(json.dumps(rows))
    assert_at_chance(ARO_RELATION.load(root, None, False), color_encoder)
    assert_at_chance(ARO_COCO_ORDER.load(root / "order.json", photos, False), color_encoder)
