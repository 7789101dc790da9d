"""ComCLIP against its formula written out, and over photos with COCO's instances."""

import io
import json
import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from hnpretrain.eval.benchmarks.sugarcrepe import SUGARCREPE
from hnpretrain.eval.comclip import ComClip, occurs, read_regions, reweighted
from hnpretrain.eval.encode import Encoder
from hnpretrain.eval.images import ImageSource, Shape
from hnpretrain.eval.items import Item
from hnpretrain.eval.results import Withheld
from hnpretrain.eval.scorers import Cosine, make_scorer
from tests.eval.conftest import RandomClip, to_tensor, tokenize_bytes


class PositiveClip(RandomClip):
    """Random features whose cosines lie above 0, as CLIP's do."""

    @staticmethod
    def _draw(content):
        return RandomClip._draw(content).abs()


@pytest.fixture
def positive_encoder() -> Encoder:
    return Encoder(PositiveClip(), to_tensor, tokenize_bytes, batch_size=4, threads=2)


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def photo(tmp_path):
    """A file of 24 x 16 random pixels, and those pixels."""
    pixels = np.random.default_rng(0).integers(1, 256, (16, 24, 3), dtype=np.uint8)
    path = tmp_path / "photos/street.png"
    path.parent.mkdir()
    path.write_bytes(png(pixels))
    return path, pixels


def write(folder, *lines):
    path = folder / "regions.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def item(path, *captions):
    return Item("1", (ImageSource.file(path),), captions)


STREET = {
    "image": "street.png",
    "regions": [
        {"words": "red car", "box": [2, 3, 9, 10]},
        {"words": "man", "mask": "man.png"},
        {"words": "passes", "box": [2, 3, 9, 10]},
        {"words": "passes", "mask": "man.png"},
        {"words": "tree", "polygons": [[12, 0, 20, 0, 20, 6, 12, 6], [0, 12, 4, 12, 4, 15]]},
    ],
}


@pytest.fixture
def street(tmp_path):
    """The regions of the photo, and where each of them is."""
    places = {each: np.zeros((16, 24), bool) for each in ("red car", "man", "tree")}
    places["red car"][3:11, 2:10] = True  # the last row and column of a box are in it
    places["man"][5:14, 8:18] = True
    # A dark colour, and not white.
    (tmp_path / "man.png").write_bytes(png(places["man"][..., None] * np.uint8([0, 0, 1])))
    places["tree"][0:7, 12:21] = True
    for x, y in ((x, y) for x in range(5) for y in range(12, 16)):
        places["tree"][y, x] |= (y - 12) <= x * 3 / 4 + 0.5
    places["passes"] = places["red car"] | places["man"]
    return write(tmp_path, STREET), places


def unit(vector):
    return vector / np.linalg.norm(vector)


def by_hand(pixels, places, caption, words):
    """winoground/comclip.py of the authors in numpy."""

    def image(array):
        return unit(PositiveClip._draw(to_tensor(Image.fromarray(array)).numpy().tobytes()).numpy())

    def text(string):
        return unit(PositiveClip._draw(tokenize_bytes([string])[0].numpy().tobytes()).numpy())

    embedding, images, scores = image(pixels), [], []
    for word in words:
        images.append(image(pixels * places[word][..., None].astype(np.uint8)))
        scores.append(100 * text(word) @ images[-1])  # logits; the scale does not count
    for score, sub_image in zip(scores, images, strict=True):
        embedding = embedding + score / sum(scores) * sub_image
    return text(caption) @ unit(embedding)


def test_the_published_formula(photo, street, positive_encoder):
    path, pixels = photo
    regions, places = street
    captions = {
        "A man passes a red car.": ["red car", "man", "passes"],
        "a red-car man": ["man"],
        "the car is red": [],
        "Red  CAR, tree": ["red car", "tree"],
    }
    places["tree"] = np.asarray(shown(regions, path, "tree")).any(-1)
    scorer = make_scorer("comclip", regions)
    assert scorer.name == "comclip"
    got = scorer.scores([item(path, *captions)], positive_encoder)[1, 4]
    expected = [by_hand(pixels, places, *each) for each in captions.items()]
    assert got.dtype == torch.float32
    assert got[0, 0].tolist() == pytest.approx(expected, abs=1e-6)


def shown(regions, path, words):
    [part] = [each for each in read_regions(regions)["street.png"] if each.words == words]
    return replace(ImageSource.file(path), parts=part.shapes).open()


@pytest.mark.parametrize("words", ["red car", "man", "passes", "tree"])
def test_sub_images_are_black_outside_of_their_part(photo, street, words):
    path, pixels = photo
    regions, places = street
    got = np.asarray(shown(regions, path, words))
    assert got.shape == pixels.shape
    kept = got.any(axis=-1)
    assert np.array_equal(got[kept], pixels[kept])
    # Along a slanting edge a pixel may be in or out.
    assert (kept != places[words]).sum() <= (3 if words == "tree" else 0)


def test_a_similarity_below_0_has_no_weight():
    x, y, z = torch.eye(3)
    got = reweighted(x, torch.stack([y, z]), torch.stack([y, -z]))
    assert got.tolist() == pytest.approx([0.5**0.5, 0.5**0.5, 0])


def test_without_a_similarity_above_0_the_image_is_left(
    color_encoder, tmp_path, paint, monkeypatch
):
    (tmp_path / "a.png").write_bytes(paint("red"))
    part = {"words": "green", "box": [0, 0, 3, 3]}
    regions = write(tmp_path, {"image": "a.png", "regions": [part]})
    monkeypatch.setattr(
        color_encoder.model, "encode_text", lambda tokens: -color_encoder.model.words[tokens[:, 0]]
    )
    items = [item(tmp_path / "a.png", "green", "red")]
    got = make_scorer("comclip", regions).scores(items, color_encoder)
    assert torch.allclose(got[1, 2], Cosine().scores(items, color_encoder)[1, 2])


def test_without_parts_it_is_the_cosine(photo, street, tmp_path, random_encoder, paint):
    regions, _ = street
    (tmp_path / "other.png").write_bytes(paint("red"))
    captions = ("a man", "a woman")
    items = [item(tmp_path / "other.png", *captions), replace(item(photo[0], *captions), name="2")]
    scorer = make_scorer("comclip", regions)
    got, plain = (each.scores(items, random_encoder)[1, 2] for each in (scorer, Cosine()))
    assert torch.equal(got[0], plain[0])
    assert torch.equal(got[1, 0, 1], plain[1, 0, 1])
    assert got[1, 0, 0] != plain[1, 0, 0]
    for name in ("text_scores", "blind_scores"):
        ours, theirs = (getattr(each, name)(items, random_encoder) for each in (scorer, Cosine()))
        assert torch.equal(ours[1, 2], theirs[1, 2])


def test_several_images_and_captions(photo, street, tmp_path, random_encoder, paint):
    """Each pair has the score that it has alone."""
    regions, _ = street
    (tmp_path / "other.png").write_bytes(paint("red"))
    images = (ImageSource.file(tmp_path / "other.png"), ImageSource.file(photo[0]))
    captions = ("a man", "a red car", "nothing")
    scorer = make_scorer("comclip", regions)
    got = scorer.scores([Item("1", images, captions)], random_encoder)[2, 3]
    for c, caption in enumerate(captions):
        alone = scorer.scores([item(photo[0], caption)], random_encoder)[1, 1]
        assert got[0, 1, c] == alone[0, 0, 0]


@pytest.mark.parametrize(
    "words, caption, found",
    [
        ("red car", "Two Red cars", False),
        ("red car", "a red, old car", False),
        ("red car", "a RED car.", True),
        ("car", "a scar", False),
        ("car", "a car's wheel", False),
        ("man's hat", "the man's hat", True),
        ("potted plant", "potted-plant", False),
    ],
)
def test_words_stand_whole_and_in_order(words, caption, found):
    assert occurs(words, caption) == found


@pytest.mark.parametrize("name", ["street.png", "photos/street.png", "whole"])
@pytest.mark.usefixtures("street")
def test_an_image_is_known_by_the_end_of_its_path(photo, positive_encoder, tmp_path, name):
    path, _ = photo
    name = str(path) if name == "whole" else name
    regions = write(tmp_path, {**STREET, "image": name})
    items = [item(path, "a man")]
    got = make_scorer("comclip", regions).scores(items, positive_encoder)[1, 1]
    assert got.item() != Cosine().scores(items, positive_encoder)[1, 1].item()


def test_a_file_of_other_images_is_refused(photo, positive_encoder, tmp_path):
    regions = write(tmp_path, {"image": "reet.png", "regions": []})
    with pytest.raises(
        ValueError, match=r"regions\.jsonl has a line for none .*street\.png.*'reet"
    ):
        make_scorer("comclip", regions).scores([item(photo[0], "a man")], positive_encoder)


def test_the_image_is_part_of_what_a_feature_is_of(photo):
    whole = ImageSource.file(photo[0])
    box, other = Shape("box", (0.0, 0.0, 4.0, 4.0)), Shape("polygon", (0.0, 0.0, 4.0, 4.0))
    sources = [whole, *(replace(whole, parts=each) for each in ((box,), (other,), (box, other)))]
    sources.append(replace(whole, parts=(Shape("mask", mask=b"1"),)))
    sources.append(replace(whole, parts=(Shape("mask", mask=b"2"),)))
    assert len({source.identity for source in sources}) == len(sources)
    assert len({source.digest(whole.read()) for source in sources}) == len(sources)


GOOD = {"words": "man", "box": [0, 0, 2, 2]}


@pytest.mark.parametrize(
    "region, message",
    [
        ({"box": [0, 0, 1, 1]}, "'words' must be a non-empty string"),
        ({"words": "!?", "box": [0, 0, 1, 1]}, "'words' holds no word"),
        ({"words": "man"}, "one of box, mask, polygons is needed, got none"),
        ({**GOOD, "mask": "a.png"}, r"is needed, got \['box', 'mask'\]"),
        ({"words": "man", "box": [0, 0, 0, 1]}, "left < right .* got "),
        ({"words": "man", "box": [0, 0, 1]}, r"'box' must be \[left, top"),
        ({"words": "man", "box": [0, 0, math.nan, 1]}, "'box' must be"),
        ({"words": "man", "box": ["0", 0, 1, 1]}, "'box' must be"),
        ({"words": "man", "polygons": []}, "'polygons' is empty"),
        ({"words": "man", "polygons": [[0, 0, 1, 1, 2]]}, "polygon 0 must be .* 3 corners"),
        ({"words": "man", "polygons": {"counts": 1}}, "'polygons' must be a list"),
        ({"words": "man", "mask": "no.png"}, r"'mask' .*no\.png cannot be read: No such file"),
        ({"words": "man", "mask": "regions.jsonl"}, r"'mask' .*regions\.jsonl is no picture"),
        ("man", "a JSON object is needed"),
    ],
)
def test_a_malformed_region_is_named(tmp_path, region, message):
    regions = write(
        tmp_path, {"image": "a", "regions": []}, {"image": "b", "regions": [GOOD, region]}
    )
    with pytest.raises(ValueError, match=rf"regions\.jsonl line 2 region 1.*{message}") as caught:
        make_scorer("comclip", regions)
    assert "\n" not in str(caught.value)


def test_a_malformed_file_is_named(tmp_path):
    line = {"image": "a", "regions": [GOOD]}
    with pytest.raises(ValueError, match=r"line 2: image 'a' has a line already"):
        read_regions(write(tmp_path, line, line))
    with pytest.raises(ValueError, match=r"line 1: 'regions' must be a list"):
        read_regions(write(tmp_path, {"image": "a"}))
    with pytest.raises(ValueError, match="holds no image"):
        read_regions(write(tmp_path))
    with pytest.raises(ValueError, match="--regions goes with"):
        make_scorer("comclip", None)


@pytest.mark.parametrize(
    "region, message",
    [
        ({"words": "dog", "box": [100, 100, 110, 110]}, "hold nothing of its 8 x 8 pixels"),
        ({"words": "dog", "mask": "small.png"}, r"mask has \(4, 4\) pixels, the image \(8, 8\)"),
    ],
)
def test_a_part_that_does_not_fit_is_a_fault_of_its_image(
    tmp_path, paint, color_encoder, region, message
):
    (tmp_path / "small.png").write_bytes(paint("red", 4))
    lines = []
    for name in ("bad", "good"):
        (tmp_path / f"{name}.png").write_bytes(paint("red" if name == "bad" else "blue"))
        pair = {"caption": "red dog", "negative_caption": "green", "type": "add_obj", "id": 0}
        lines.append(json.dumps({"image": f"{name}.png", "sugarcrepe": [pair]}) + "\n")
    (tmp_path / "data.jsonl").write_text("".join(lines))
    regions = write(
        tmp_path,
        {"image": "bad.png", "regions": [region]},
        {"image": "good.png", "regions": [{"words": "dog", "box": [0, 0, 4, 4]}]},
    )
    scorer = make_scorer("comclip", regions)
    run = partial(SUGARCREPE.load, tmp_path / "data.jsonl", None)
    with pytest.raises(Withheld, match=rf"bad\.png: .*{message}"):
        run(False).run(color_encoder, scorer)
    result = run(True).run(color_encoder, scorer)
    assert "PARTIAL: 1 items" in " ".join(result.notes)


def regions_of_coco(line):
    """A line of the regions file from one of tests/assets/coco_ccby/data.jsonl.

    All instances of a category are one part; captions call COCO's persons by other words too. Every
    other instance is given by its box, so that both are read.
    """
    regions = []
    for number, instance in enumerate(line["instances"]):
        left, top, width, height = instance["bbox"]
        box = {"box": [left, top, left + width, top + height]}
        place = box if number % 2 else {"polygons": instance["polygons"]}
        names = {"person": ["person", "man", "woman"]}.get(instance["category"])
        regions += [{"words": word, **place} for word in names or [instance["category"]]]
    return {"image": line["image"], "regions": regions}


def test_photos_with_instances_end_to_end(assets, tmp_path, positive_encoder):
    data = assets / "coco_ccby/data.jsonl"
    lines = [json.loads(line) for line in data.read_text().splitlines()]
    regions = write(tmp_path, *map(regions_of_coco, lines))
    benchmark = SUGARCREPE.load(data, None, False)
    plain = benchmark.run(positive_encoder, Cosine())
    got = benchmark.run(positive_encoder, make_scorer("comclip", regions))
    assert got.scorer == "comclip"
    assert [score.name for score in got.scores] == [score.name for score in plain.scores]

    # The pairs whose captions name no category keep their margin; those that do have another.
    parts = read_regions(regions)
    pairs = [(line["image"], pair) for line in lines for pair in line["sugarcrepe"]]
    named = [
        any(
            occurs(part.words, pair[key])
            for part in parts[image]
            for key in ("caption", "negative_caption")
        )
        for image, pair in pairs
    ]
    same = (got.outcomes["acc"].margins == plain.outcomes["acc"].margins)[:, 0].tolist()
    assert 20 < sum(named) < len(named)
    assert same == [not each for each in named]


def test_a_scorer_is_made_of_parts_in_memory(photo, positive_encoder):
    scorer = ComClip({})
    with pytest.raises(ValueError, match="--regions has a line for none"):
        scorer.scores([item(photo[0], "a man")], positive_encoder)
