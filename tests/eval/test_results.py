"""The JSON file: what went most wrong, and reading it back."""

import base64
import io
import json

import pytest
import torch
from PIL import Image

from hnpretrain.eval.accuracy import Accuracy
from hnpretrain.eval.images import ImageSource
from hnpretrain.eval.items import Item
from hnpretrain.eval.results import (
    ModelName,
    Outcome,
    Result,
    Score,
    Withheld,
    read_json,
    to_json,
    write_json,
)

NAME = ModelName("ViT-B-32", "openai")


def make_result(margins, images=None, matrices=()):
    """One answer an item; `images` by item."""
    names = [f"item {number}" for number in range(len(margins))]
    items = tuple(
        Item(name, tuple(pictures), ("right", "wrong"), {"kind": "a"})
        for name, pictures in zip(names, images or [()] * len(names), strict=True)
    )
    margins_N1 = torch.tensor(margins)[:, None]
    return Result(
        "sugarcrepe",
        "image_caption_selection",
        "data",
        (Score("acc", Accuracy.of(margins_N1 > 0), 0.5, "micro"),),
        ("a note",),
        names=tuple(names),
        groups={"kind": ["a"] * len(names)},
        outcomes={"acc": Outcome(range(len(names)), margins_N1)},
        items=items,
        matrices=matrices,
    )


@pytest.fixture
def written(tmp_path):
    path = tmp_path / "out.json"
    withheld = [Withheld("winoground", "items", 1, 400, {"x": "image x.png: no such file"})]
    write_json(path, [make_result([0.5, -0.25])], withheld, NAME)
    return path


def test_the_worst_items_are_the_wrong_ones_of_lowest_margin():
    margins = [0.1, -0.5, 0.0, -0.125, 0.3] + [-1.0 - number for number in range(12)]
    worst = to_json(make_result(margins), NAME)["worst"]
    assert [item["margin"] for item in worst] == [-12.0 + number for number in range(12)]
    worst = to_json(make_result(margins[:5]), NAME)["worst"]
    assert [(item["name"], item["margin"]) for item in worst] == [
        ("item 1", -0.5),
        ("item 3", -0.125),
        ("item 2", 0.0),
    ]
    assert worst[0]["captions"] == ["right", "wrong"]
    assert worst[0]["groups"] == {"kind": "a"}
    assert "scores" not in worst[0]


def test_an_item_is_as_wrong_as_its_worst_answer():
    result = make_result([0.0, 0.0])
    outcome = Outcome((1, 0), torch.tensor([[0.5, -0.25], [-0.125, -0.125]]))
    result = Result(
        "d", "t", "", (), names=result.names, outcomes={"pair": outcome}, items=result.items
    )
    worst = to_json(result, NAME)["worst"]
    assert [(item["name"], item["margin"]) for item in worst] == [
        ("item 1", -0.25),
        ("item 0", -0.125),
    ]


def test_pictures_are_small_and_a_bad_one_leaves_a_gap(tmp_path):
    Image.new("RGB", (800, 400), "red").save(tmp_path / "large.png")
    large = ImageSource.file(tmp_path / "large.png")
    cut = ImageSource.file(tmp_path / "large.png", crop=(0, 0, 40, 80))
    gone = ImageSource.file(tmp_path / "gone.png")
    result = make_result([-1.0], [(large, gone, cut)], [torch.tensor([[0.25, 0.5]] * 3)])
    (item,) = to_json(result, NAME)["worst"]
    first, second, third = item["pictures"]
    assert second is None
    sizes = []
    for uri in (first, third):
        head, _, data = uri.partition(",")
        assert head == "data:image/jpeg;base64"
        with Image.open(io.BytesIO(base64.b64decode(data))) as picture:
            assert picture.format == "JPEG"
            sizes.append(picture.size)
    assert sizes == [(192, 96), (40, 80)]
    assert item["scores"] == [[0.25, 0.5]] * 3


def test_a_file_is_read_as_it_was_written(written):
    run = read_json(written)
    assert (run.path, run.model, run.title) == (written, "ViT-B-32:openai", "ViT-B-32:openai")
    assert run.results == [to_json(make_result([0.5, -0.25]), NAME)]
    assert run.withheld == [{"dataset": "winoground", "reasons": ["image x.png: no such file"]}]
    assert list(run.by_key()) == [("sugarcrepe", "image_caption_selection", 0)]


def test_a_run_of_which_all_was_withheld_goes_by_its_file(tmp_path):
    write_json(tmp_path / "a.json", [], [], NAME)
    assert read_json(tmp_path / "a.json").model == "a.json"


def test_a_benchmark_may_be_there_twice(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, [make_result([0.5]), make_result([-0.5])], [], NAME)
    by_key = read_json(path).by_key()
    assert [key[2] for key in by_key] == [0, 1]
    assert [result["metrics"]["acc"] for result in by_key.values()] == [1, 0]


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "not readable JSON"),
        ("\x00\xff", "not readable JSON"),
        ("[" * 100_000, "not readable JSON"),
        ('{"format": 2, "results": [], "withheld": [NaN]}', "NaN is no JSON number"),
        ("[]", "no results file of hnpretrain eval"),
        ('{"type": "FeatureCollection"}', "no results file of hnpretrain eval"),
        ('{"format": 1, "results": []}', "format 1, but 2 is needed"),
        ('{"format": 2, "results": []}', "'withheld' must be a list, got None"),
        ('{"format": 2, "results": [3], "withheld": []}', "'results' must hold an object each"),
    ],
)
def test_files_that_are_none(tmp_path, text, message):
    path = tmp_path / "x.json"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match=message) as caught:
        read_json(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match=r"no\.json: no such file"):
        read_json(tmp_path / "no.json")


def damage(value, place, new):
    *path, last = place
    for step in path:
        value = value[step]
    if new is None:
        del value[last]
    else:
        value[last] = new


@pytest.mark.parametrize(
    "place, new, message",
    [
        (("dataset",), 3, "result 0: 'dataset' must be a string, got 3"),
        (("names",), None, "'names' must be a list, got None"),
        (("names", 0), 7, "'names' must hold a string each, got 7 at 0"),
        (("left_out",), True, "'left_out' must be a whole number, got True"),
        (("model",), None, "'model' must be a string"),
        (("groups", "kind"), ["a"], "groups 'kind' must be a list of 2"),
        (("groups", "kind", 1), 5, "groups 'kind' must be a list of 2 strings"),
        (("scores", 0, "value"), 1.5, r"score 0: 'value' must lie in \[0, 1\], got 1.5"),
        (("scores", 0, "value"), "1", "'value' must be a number, got '1'"),
        (("scores", 0, "count"), -1, "'count' must lie in"),
        (("scores", 0, "chance"), None, "'chance' must be a number"),
        (("outcomes", "acc"), [], "outcome 'acc': an object is needed"),
        (("outcomes", "acc", "rows"), [0, 2], "numbers of the 2 names"),
        (("outcomes", "acc", "rows"), [1, 1], "each once"),
        (("outcomes", "acc", "margins"), [[0.5]], "for each of 2 rows"),
        (("outcomes", "acc", "margins"), [[], []], "at least one"),
        (("outcomes", "acc", "margins", 1), [0.5, 0.5], "as many for each row"),
        (("outcomes", "acc", "margins", 1), [10**400], "must be numbers"),
        (("worst", 0, "margin"), "x", "worst item 0: 'margin' must be a number"),
        (("worst", 0, "groups"), {"kind": 3}, "'groups' must be strings"),
        (("worst", 0, "pictures"), ["https://x.org/a.jpg"], "no JPEG data URI, got 'https:"),
        (("worst", 0, "pictures"), ['data:image/jpeg;base64,A"'], "no JPEG data URI"),
        (("worst", 0, "pictures"), ["data:image/svg+xml;base64,AAAA"], "no JPEG data URI"),
        (("worst", 0, "scores"), [[0.5]], "'scores' must be 0 x 2 numbers"),
    ],
)
def test_damaged_results(written, place, new, message):
    value = json.loads(written.read_text())
    damage(value["results"][0], place, new)
    written.write_text(json.dumps(value))
    with pytest.raises(ValueError, match=message) as caught:
        read_json(written)
    assert str(caught.value).startswith(str(written))
    assert "\n" not in str(caught.value)


def test_a_file_is_of_one_model(written):
    value = json.loads(written.read_text())
    value["results"].append({**value["results"][0], "pretrained": "laion2b"})
    written.write_text(json.dumps(value))
    with pytest.raises(ValueError, match=r"2 models \(ViT-B-32:openai, ViT-B-32:laion2b\)"):
        read_json(written)
