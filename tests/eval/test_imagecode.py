"""ImageCoDe: one of ten images by hand, frames by their order, and sets with holes."""

import json

import pytest

from hnpretrain.eval.benchmarks.imagecode import IMAGECODE
from hnpretrain.eval.results import Withheld
from hnpretrain.eval.scorers import Cosine
from tests.eval.helpers import assert_at_chance

STATIC = "open-images-1815_f91d6f546e63f20d"
VIDEO = "MSR-VTT-videoTestVideo_video7047-shot1_0"


def write_set(folder, paint, name, colors, frames):
    (folder / name).mkdir(parents=True)
    for frame, color in zip(frames, colors, strict=True):
        (folder / name / f"img{frame}.jpg").write_bytes(paint(color))


@pytest.fixture
def official(tmp_path, paint):
    """(valid_data.json, image sets); in each set the sixth image is blue, the eighth red."""
    images = tmp_path / "image-sets"
    colors = ["green"] * 10
    colors[5], colors[7] = "blue", "red"
    write_set(images, paint, STATIC, colors, range(10))
    # The order of the names' text would be another one.
    write_set(images, paint, VIDEO, colors, range(6, 106, 10))
    # What a Mac leaves in an archive.
    (images / VIDEO / "._img6.jpg").write_bytes(b"no image")
    value = {
        STATIC: {"5": "a blue bird", "7": " a red bird. ", "3": "a blue fish"},
        VIDEO: {"5": "a blue car", "1": "a green car"},
    }
    data = tmp_path / "valid_data.json"
    data.write_text(json.dumps(value))
    return data, images


def test_scores_by_hand(official, color_encoder):
    result = IMAGECODE.load(*official, False).run(color_encoder, Cosine())
    # "a blue fish" is of a green image; "a green car" ties with seven others.
    expected = {"acc": (3 / 5, 5, 1), "acc/static": (2 / 3, 3, 0), "acc/video": (1 / 2, 2, 1)}
    assert [score.name for score in result.scores] == list(expected)
    for score in result.scores:
        value, count, ties = expected[score.name]
        assert score.accuracy.value == pytest.approx(value), score.name
        assert (score.accuracy.count, score.ties) == (count, ties), score.name
        assert score.chance == pytest.approx(1 / 10)
    assert result.names[:2] == (f"{STATIC} 5", f"{STATIC} 7")
    assert result.items[1].captions == ("a red bird.",)


def test_the_index_counts_images_in_the_order_of_their_frames(official):
    images = official[1]
    item = IMAGECODE.load(*official, False).items[3]
    assert item.name == f"{VIDEO} 5"
    frames = [image.path.relative_to(images / VIDEO).name for image in item.images]
    right, others = "img56.jpg", [f"img{frame}.jpg" for frame in range(6, 106, 10) if frame != 56]
    assert frames == [right, *others]


def test_a_set_that_lacks_an_image_is_left_out_whole(official, color_encoder):
    data, images = official
    (images / VIDEO / "img96.jpg").unlink()
    with pytest.raises(Withheld, match=r"2 of 5 items .*number 10 of 10"):
        IMAGECODE.load(data, images, False).run(color_encoder, Cosine())
    result = IMAGECODE.load(data, images, True).run(color_encoder, Cosine())
    assert [score.name for score in result.scores] == ["acc", "acc/static"]
    assert (result["acc"].count, result.left_out) == (3, 2)
    for path in (images / STATIC).iterdir():
        path.unlink()
    with pytest.raises(Withheld, match="5 of 5 items"):
        IMAGECODE.load(data, images, True).run(color_encoder, Cosine())
    (images / STATIC).rmdir()
    with pytest.raises(Withheld, match="5 of 5 items"):
        IMAGECODE.load(data, images, True).run(color_encoder, Cosine())


def test_random_scores_lie_at_chance(official, color_encoder):
    assert_at_chance(IMAGECODE.load(*official, False), color_encoder)


@pytest.mark.parametrize(
    "value, message",
    [
        ([], "a JSON object is needed, got list"),
        ({STATIC: ["a bird", "a fish"]}, "valid_data.json is an unlabeled file"),
        ({STATIC: 3}, "a JSON object is needed, got int"),
        ({STATIC: {"10": "a bird"}}, "an image index must be 0 to 9, got '10'"),
        ({STATIC: {"-1": "a bird"}}, "an image index must be 0 to 9, got '-1'"),
        ({STATIC: {"x": "a bird"}}, "an image index must be 0 to 9, got 'x'"),
        ({STATIC: {"1": " "}}, "'1' must be a non-empty string"),
        ({STATIC: {}}, "holds no item"),
    ],
)
def test_malformed_files_are_one_clear_error(official, value, message):
    data, images = official
    data.write_text(json.dumps(value))
    with pytest.raises(ValueError, match=message) as caught:
        IMAGECODE.load(data, images, False)
    assert "valid_data.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_too_many_images_and_no_folder(official, paint):
    data, images = official
    (images / STATIC / "img10.jpg").write_bytes(paint("red"))
    with pytest.raises(ValueError, match=f"set '{STATIC}': 10 images are needed, .* has 11"):
        IMAGECODE.load(data, images, False)
    with pytest.raises(ValueError, match="imagecode needs an image folder"):
        IMAGECODE.load(data, None, False)
