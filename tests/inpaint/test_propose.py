"""From captions and masks to proposals, on real photos."""

import dataclasses
import io
import json
from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hnpretrain.inpaint import qualities
from hnpretrain.inpaint.folder import Folder
from hnpretrain.inpaint.masks import InstanceMasks
from hnpretrain.inpaint.photos import Photo, read_photos
from hnpretrain.inpaint.propose import ProposeSettings, propose
from hnpretrain.shards.schema import Caption, Negative
from shard_tools.sources import SourceSettings

COCO = Path("tests/assets/coco_ccby")
MAX_PIXELS = 10**7


def coco_photos():
    source = SourceSettings(kind="jsonl", path=str(COCO / "data.jsonl"))
    return read_photos(source, MAX_PIXELS)


def run(folder, photos, **settings):
    return propose(
        Folder(folder), photos, InstanceMasks(), ProposeSettings(**settings), 0, MAX_PIXELS
    )


@pytest.fixture(scope="module")
def proposed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("proposed")
    return Folder(folder), run(folder, coco_photos())


def test_real_photos_give_proposals_of_all_kinds(proposed):
    folder, result = proposed
    proposals = folder.proposals()
    assert result.photos == 73
    edits = Counter(proposal.edit for proposal in proposals)
    assert edits.keys() == {"recolor", "enlarge", "shrink", "remove", "replace"}
    assert sum(edits.values()) >= 60
    assert sum(result.proposals.values()) == len(proposals)
    scores = [proposal.score for proposal in proposals]
    assert scores == sorted(scores, reverse=True)


def test_a_proposal_holds_together(proposed):
    folder, _ = proposed
    for proposal in folder.proposals():
        start, end = proposal.span
        assert proposal.caption[start:end] == proposal.source
        assert proposal.caption != proposal.new_caption
        assert proposal.noun in proposal.caption
        photo = Image.open(folder.path(proposal.photo))
        mask = Image.open(folder.path(proposal.mask))
        assert (mask.mode, mask.size) == ("L", photo.size)
        mask_HW = np.asarray(mask)
        assert set(np.unique(mask_HW)) == {0, 255}
        assert (mask_HW > 0).mean() == pytest.approx(proposal.area, abs=1e-5)
        assert 0.01 <= proposal.area <= 0.5
        assert proposal.meta["license_url"]


def test_a_stated_quality_is_of_the_thing(proposed):
    """Of nothing that a caption of the photo describes otherwise."""
    folder, _ = proposed
    stated = [p for p in folder.proposals() if p.caption != p.source_caption]
    assert {proposal.concept for proposal in stated} == {"color", "size"}
    for proposal in stated:
        start, end = proposal.span
        rest = proposal.caption[:start].rstrip() + proposal.caption[end:]
        assert rest.lower().split()[-3:] == proposal.source_caption.lower().split()[-3:]
    signs = [p for p in stated if p.noun == "stop sign" and p.concept == "color"]
    assert {p.source for p in signs} <= {"red"}


def test_only_donors_are_pasted(proposed):
    folder, result = proposed
    replaced = [p for p in folder.proposals() if p.edit == "replace"]
    assert {p.target for p in replaced} <= result.donors.keys()
    assert result.left_out["no_donor"]
    assert result.left_out["scale"]  # no train where a bicycle was
    assert not {("bicycle", "train"), ("bird", "cow")} & {(p.category, p.target) for p in replaced}


def test_all_that_is_left_out_is_told(proposed):
    folder, result = proposed
    lines = [json.loads(line) for line in folder.left_out_file.open()]
    assert Counter(line["reason"] for line in lines) == result.left_out
    assert {"no_thing", "ambiguous", "covered", "small", "large"} <= result.left_out.keys()
    ambiguous = [line for line in lines if line["reason"] == "ambiguous"]
    assert all(" in the photo" in line["detail"] or "which" in line["detail"] for line in ambiguous)


def test_the_same_source_gives_the_same_bytes(tmp_path):
    one, again = tmp_path / "one", tmp_path / "again"
    for folder in (one, again):
        run(folder, islice(coco_photos(), 12))
    files = [path.relative_to(one) for path in sorted(one.rglob("*")) if path.is_file()]
    assert len(files) > 10
    for path in files:
        assert (again / path).read_bytes() == (one / path).read_bytes()


def test_proposals_are_not_overwritten(tmp_path):
    run(tmp_path, [red_square()])
    with pytest.raises(ValueError, match=r"is there: .* propose\.rebuild=true"):
        run(tmp_path, [red_square()])
    photos = islice(coco_photos(), 30)
    run(tmp_path, photos, rebuild=True, most=9, concepts=["color", "object"])
    concepts = Counter(proposal.concept for proposal in Folder(tmp_path).proposals())
    assert concepts["color"] + concepts["object"] == 9
    assert min(concepts.values()) >= 4  # in turns


def red_square(key="photo", size=(80, 60), categories=("bus",), captions=("A bus by a road.",)):
    """A photo of red squares on gray, one a category, with polygons."""
    image = Image.new("RGB", size, (128, 128, 128))
    instances = []
    for number, category in enumerate(categories):
        left = 5 + 25 * number
        box = (left, 20, left + 20, 40)
        image.paste((200, 20, 20), box)
        polygon = [box[0], box[1], box[2], box[1], box[2], box[3], box[0], box[3]]
        instances.append({"category": category, "iscrowd": 0, "polygons": [polygon]})
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    meta = {"instances": instances, "width": size[0], "height": size[1]}
    texts = tuple(map(Caption, captions))
    return Photo(key, buffer.getvalue(), "png", texts, tuple(sorted(set(categories))), meta)


def reasons(folder):
    return {json.loads(line)["reason"] for line in Folder(folder).left_out_file.open()}


def test_a_color_is_stated_where_the_photo_shows_one(tmp_path):
    run(tmp_path, [red_square()], concepts=["color"], per_thing=1)
    (proposal,) = Folder(tmp_path).proposals()
    assert proposal.caption == "A red bus by a road."
    assert proposal.source_caption == "A bus by a road."
    assert proposal.source == "red"


def test_negatives_of_a_source_are_kept(tmp_path):
    """No others are made for such a photo, but for what no caption states."""
    negative = Negative("A truck by a road.", "object", "replace", "bus", "truck", (2, 5))
    photo = red_square()
    photo = dataclasses.replace(photo, captions=(Caption("A bus by a road.", (negative,)),))
    run(tmp_path, [photo], state=[], weightless=False)
    (proposal,) = Folder(tmp_path).proposals()
    assert (proposal.new_caption, proposal.target) == ("A truck by a road.", "truck")


def test_a_rebuild_that_fails_leaves_what_was_there(tmp_path):
    run(tmp_path, [red_square()])
    files = {path: path.read_bytes() for path in tmp_path.rglob("*.*") if path.is_file()}
    with pytest.raises(ValueError, match="not one photo"):
        run(tmp_path, [dataclasses.replace(red_square(), image=b"none")], rebuild=True)
    del files[Folder(tmp_path).left_out_file]
    assert {path: path.read_bytes() for path in files} == files


def test_a_rebuild_leaves_nothing_of_what_was_there(tmp_path):
    """Another photo under the same key is another proposal, with candidates of its own."""
    run(tmp_path, [red_square()])
    before = {proposal.id for proposal in Folder(tmp_path).proposals()}
    other = red_square()
    image = Image.open(io.BytesIO(other.image)).convert("RGB")
    image.putpixel((0, 0), (1, 2, 3))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    run(tmp_path, [dataclasses.replace(other, image=buffer.getvalue())], rebuild=True)
    proposals = Folder(tmp_path).proposals()
    assert len(proposals) == len(before)
    assert before.isdisjoint(proposal.id for proposal in proposals)
    named = {name for p in proposals for name in (p.photo, p.mask)}
    kept = {
        str(p.relative_to(tmp_path)) for k in ("photos", "masks") for p in (tmp_path / k).iterdir()
    }
    assert kept == named


@pytest.mark.parametrize("sides", [(80, 60), (60, 80)])
def test_polygons_are_turned_with_their_photo(tmp_path, sides):
    """Whether they were made for it as it lies, or as it is seen."""
    seen = red_square(size=(80, 60))
    image = Image.open(io.BytesIO(seen.image)).transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", exif=exif, quality=95)
    meta = dict(seen.meta)
    if sides == (60, 80):
        (polygon,) = meta["instances"][0]["polygons"]
        points = zip(polygon[::2], polygon[1::2], strict=True)
        lies = [value for x, y in points for value in (y, 80 - x)]
        meta = {"instances": [{**meta["instances"][0], "polygons": [lies]}]}
        meta |= {"width": 60, "height": 80}
    photo = dataclasses.replace(seen, image=buffer.getvalue(), extension="jpg", meta=meta)
    run(tmp_path, [photo], concepts=["color"], per_thing=1)
    (proposal,) = Folder(tmp_path).proposals()
    mask_HW = np.asarray(Image.open(Folder(tmp_path).path(proposal.mask))) > 0
    image_HWC = np.asarray(Image.open(Folder(tmp_path).path(proposal.photo)).convert("RGB"))
    # Not all of its rim is red, after JPEG.
    assert image_HWC[mask_HW].mean(0) == pytest.approx((200, 20, 20), abs=15)


def test_broken_exif_is_no_orientation(tmp_path):
    photo = red_square()
    buffer = io.BytesIO()
    Image.open(io.BytesIO(photo.image)).save(buffer, "PNG", exif=b"Exif\x00\x00no header of TIFF")
    run(tmp_path, [dataclasses.replace(photo, image=buffer.getvalue())])
    assert Folder(tmp_path).proposals()


def test_a_turned_photo_of_unknown_polygons_is_left_out(tmp_path):
    photo = red_square(size=(80, 60))
    del photo.meta["width"], photo.meta["height"]
    exif = Image.Exif()
    exif[0x0112] = 3
    buffer = io.BytesIO()
    Image.open(io.BytesIO(photo.image)).save(buffer, "JPEG", exif=exif)
    run(tmp_path, [dataclasses.replace(photo, image=buffer.getvalue(), extension="jpg")])
    assert not Folder(tmp_path).proposals()
    assert "turned" in reasons(tmp_path)


@pytest.mark.parametrize(
    ("photo", "reason"),
    [
        ({"captions": ("What a lovely day!",)}, "no_noun"),
        ({"captions": ("A cat by a road.",)}, "no_thing"),
        ({"categories": ("bus", "bus")}, "ambiguous"),
        ({"captions": ("Two buses by a road.",)}, "number"),
        ({"size": (800, 600)}, "small"),
        ({"size": (31, 41)}, None),
    ],
)
def test_what_cannot_be_proposed(tmp_path, photo, reason):
    run(tmp_path, [red_square(**photo)], state=[], weightless=False)
    assert reason is None or reason in reasons(tmp_path)
    assert bool(Folder(tmp_path).proposals()) == (reason is None)


def test_bad_masks_are_told_and_survived(tmp_path):
    bad = red_square("bad")
    bad.meta["instances"][0]["polygons"] = [[500, 500, 600, 500, 600, 600]]
    run(tmp_path, [bad, red_square("good")])
    assert {proposal.key for proposal in Folder(tmp_path).proposals()} == {"good"}
    assert "outside" in reasons(tmp_path)


def test_a_source_without_photos_is_an_error(tmp_path):
    photos = [dataclasses.replace(red_square(), image=b"none")]
    with pytest.raises(ValueError, match="not one photo could be read"):
        run(tmp_path, photos)


def test_a_turned_photo_is_kept_upright(tmp_path):
    """Viewers turn it, and it would not lie on what is made of it."""
    photo = red_square(size=(80, 60))
    image = Image.open(io.BytesIO(photo.image)).transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", exif=exif, quality=95)
    photo = dataclasses.replace(photo, image=buffer.getvalue(), extension="jpg")
    run(tmp_path, [photo], concepts=["color"], per_thing=1)
    (proposal,) = Folder(tmp_path).proposals()
    assert proposal.photo.endswith(".png")
    upright = Image.open(Folder(tmp_path).path(proposal.photo))
    assert upright.size == (80, 60)
    assert proposal.source == "red"


@pytest.mark.parametrize(
    ("pixel", "word"),
    [
        ((200, 20, 20), "red"),
        ((30, 60, 200), "blue"),
        ((20, 120, 40), "green"),
        ((240, 220, 40), "yellow"),
        ((240, 130, 20), "orange"),
        ((110, 70, 30), "brown"),
        ((230, 130, 180), "pink"),
        ((120, 40, 160), "purple"),
        ((245, 245, 240), "white"),
        ((20, 20, 22), "black"),
        ((128, 128, 128), ""),
        ((210, 190, 150), ""),  # white in warm light, or beige
    ],
)
def test_names_of_colors(pixel, word):
    image_HWC = np.full((8, 8, 3), pixel, np.uint8)
    mask_HW = np.ones((8, 8), bool)
    assert qualities.color(image_HWC, mask_HW) == word
    image_HWC[:, :4] = (128, 128, 128)
    assert qualities.color(image_HWC, mask_HW) == ""


def test_names_of_sizes():
    image_HWC = np.zeros((10, 10, 3), np.uint8)
    for pixels, word in ((3, "small"), (6, ""), (20, "large")):
        mask_HW = np.arange(100).reshape(10, 10) < pixels
        assert qualities.size(image_HWC, mask_HW) == word
