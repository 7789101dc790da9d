"""The editors without weights, on real photos with COCO's polygons and on drawn ones."""

import dataclasses
import json
import subprocess
import sys
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageDraw

from hnpretrain.inpaint.editors import blend, colors, ground, paste
from hnpretrain.inpaint.editors.base import CannotEdit, Edited, Task
from hnpretrain.inpaint.editors.donors import (
    Cutting,
    DonorWriter,
    read_cut_out,
    read_donors,
    unfit,
)
from hnpretrain.inpaint.editors.perceptual import oklab_to_srgb, srgb_to_oklab
from hnpretrain.inpaint.editors.recolor import RecolorEditor, RecolorSettings
from hnpretrain.inpaint.editors.remove import RemoveEditor, RemoveSettings
from hnpretrain.inpaint.editors.replace import ReplaceEditor, ReplaceSettings
from hnpretrain.inpaint.editors.resize import ResizeEditor, ResizeSettings
from hnpretrain.inpaint.folder import Folder
from hnpretrain.inpaint.records import Proposal

ASSETS = Path(__file__).parents[1] / "assets" / "coco_ccby"


def write_donors(folder, things):
    writer = DonorWriter(folder)
    for thing in things:
        writer.add(thing)
    return writer.close()


@cache
def records():
    lines = (ASSETS / "data.jsonl").read_text().splitlines()
    return {record["coco_id"]: record for record in map(json.loads, lines)}


@cache
def thing(coco_id, number=0):
    """Photo and mask of an instance."""
    record = records()[coco_id]
    photo = Image.open(ASSETS / record["image"]).convert("RGB")
    mask = Image.new("L", photo.size)
    for polygon in record["instances"][number]["polygons"]:
        ImageDraw.Draw(mask).polygon(polygon, fill=255)
    return np.asarray(photo), np.asarray(mask) > 0


def task(photo_HWC, mask_HW, edit, target="", source="", seed=0, key="000000000000"):
    proposal = Proposal(
        id="p",
        key=key,
        photo="photos/p.jpg",
        source_caption="",
        caption="",
        new_caption="",
        concept="",
        edit=edit,
        source=source,
        target=target,
        span=(0, 0),
        noun="",
        category="",
        mask="masks/p.png",
        things=1,
        area=float(mask_HW.mean()),
        score=1.0,
    )
    return Task(proposal, photo_HWC, mask_HW, seed)


def edited(editor, made):
    (result,) = editor.edit([made])
    assert isinstance(result, Edited), result
    assert result.image_HWC.dtype == np.uint8
    assert result.changed_HW.dtype == bool
    outside_HW = ~result.changed_HW
    assert np.array_equal(result.image_HWC[outside_HW], made.photo_HWC[outside_HW])
    assert (result.image_HWC != made.photo_HWC).any()
    return result


def refused(editor, made):
    (result,) = editor.edit([made])
    assert isinstance(result, CannotEdit), result
    return str(result)


def disk(height, width, row, column, radius):
    rows, columns = np.indices((height, width))
    return np.hypot(rows - row, columns - column) <= radius


def noise(height=120, width=160, seed=0):
    """A ground of grass-like texture, brighter to the right."""
    grain = np.random.default_rng(seed).normal(0, 12, (height, width, 3))
    light = np.linspace(-15, 15, width)[None, :, None]
    return (np.array([90, 130, 70]) + grain + light).clip(0, 255).astype(np.uint8)


@cache
def donors(root):
    things = []
    for coco_id, number in ((551780, 0), (122745, 0), (297343, 0), (377575, 0), (403385, 0)):
        category = records()[coco_id]["instances"][number]["category"]
        things.append(Cutting(f"{coco_id:012d}", category, *thing(coco_id, number)))
    folder = Folder(root)
    write_donors(folder, things)
    return folder


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return donors(tmp_path_factory.mktemp("donors"))


# OKLab


def test_oklab_has_the_values_that_its_author_gives():
    # Of white, and of sRGB's primaries, as published with the definition of CSS Color 4.
    lab = srgb_to_oklab(
        np.array([[255, 255, 255], [255, 0, 0], [0, 255, 0], [0, 0, 255]], np.uint8)
    )
    expected = [
        [1, 0, 0],
        [0.62796, 0.22486, 0.12585],
        [0.86644, -0.23389, 0.17950],
        [0.45201, -0.03246, -0.31153],
    ]
    assert np.allclose(lab, expected, atol=2e-4)


def test_oklab_and_back_is_exact_for_8_bits():
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    assert np.array_equal(oklab_to_srgb(srgb_to_oklab(image)), image)


def test_what_srgb_cannot_show_keeps_lightness_and_hue():
    wanted = np.array([[0.6, 0.4, 0.1], [0.3, -0.3, 0.2], [0.9, 0.0, -0.4]], np.float32)
    shown = srgb_to_oklab(oklab_to_srgb(wanted))
    assert np.allclose(shown[:, 0], wanted[:, 0], atol=0.01)
    hues = [np.arctan2(lab[:, 2], lab[:, 1]) for lab in (wanted, shown)]
    assert np.allclose(*hues, atol=0.06)
    assert (np.hypot(*shown[:, 1:].T) < np.hypot(*wanted[:, 1:].T)).all()


@pytest.mark.parametrize(
    "words, name",
    [("Red", "red"), ("a grey one", "gray"), ("golden", "gold"), ("mauve", ""), ("red blue", "")],
)
def test_words_name_colors(words, name):
    color = colors.named_color(words)
    assert (color.name if color else "") == name


# recolor


@pytest.mark.parametrize("target", ["blue", "green", "yellow", "purple", "black"])
def test_a_red_sign_gets_the_color_and_keeps_its_letters(target):
    photo_HWC, mask_HW = thing(297343)
    result = edited(RecolorEditor(), task(photo_HWC, mask_HW, "recolor", target, "red"))
    before, after = srgb_to_oklab(photo_HWC), srgb_to_oklab(result.image_HWC)
    chroma_HW = np.hypot(before[..., 1], before[..., 2])
    inner_HW = blend.shrunk(mask_HW, 3)
    red_HW = inner_HW & (chroma_HW > 0.13)
    # In this light, white is beige.
    letters_HW = inner_HW & (chroma_HW < 0.085) & (before[..., 0] > 0.75)
    assert red_HW.sum() > 1000
    assert letters_HW.sum() > 50
    named = colors.named_color(target)
    usual = np.median(after[red_HW], axis=0)
    assert named.lightness[0] - 0.05 < usual[0] < named.lightness[1] + 0.05
    if named.is_gray:
        assert np.hypot(*usual[1:]) < 0.03
    else:
        beside = np.angle(complex(*usual[1:]) * np.conj(named.direction))
        assert abs(np.rad2deg(beside)) < 12
        assert np.hypot(*usual[1:]) > 0.5 * named.chroma
    # White stays white, and the sign's shading its own.
    assert np.abs(np.median(after[letters_HW] - before[letters_HW], axis=0)).max() < 0.1
    assert np.median(after[letters_HW][:, 0]) > usual[0] + (0.1 if target != "yellow" else -0.1)
    assert np.corrcoef(before[red_HW][:, 0], after[red_HW][:, 0])[0, 1] > 0.8


def test_no_old_color_is_left_around_a_sign():
    photo_HWC, mask_HW = thing(122745)
    result = edited(RecolorEditor(), task(photo_HWC, mask_HW, "recolor", "blue", "red"))
    near_HW = blend.grown(mask_HW, 2)
    for image_HWC, least, most in ((photo_HWC, 500, None), (result.image_HWC, 0, 10)):
        lab = srgb_to_oklab(image_HWC)[near_HW]
        hue = np.rad2deg(np.arctan2(lab[:, 2], lab[:, 1]))
        red = int(((np.hypot(lab[:, 1], lab[:, 2]) > 0.08) & (np.abs(hue - 27) < 25)).sum())
        assert red >= least
        assert most is None or red <= most


def test_a_white_cat_keeps_its_shading():
    photo_HWC, mask_HW = thing(196393, 1)
    result = edited(RecolorEditor(), task(photo_HWC, mask_HW, "recolor", "orange", "white"))
    before, after = srgb_to_oklab(photo_HWC), srgb_to_oklab(result.image_HWC)
    inner_HW = blend.shrunk(mask_HW, 3)
    assert np.corrcoef(before[inner_HW][:, 0], after[inner_HW][:, 0])[0, 1] > 0.95
    assert after[inner_HW][:, 0].std() > 0.5 * before[inner_HW][:, 0].std()
    usual = np.median(after[inner_HW], axis=0)
    assert abs(np.rad2deg(np.arctan2(usual[2], usual[1])) - colors.named_color("orange").hue) < 15


def test_black_and_white_keep_the_order_of_lightness():
    photo_HWC = np.full((64, 64, 3), 128, np.uint8)
    photo_HWC[8:56, 8:56] = np.linspace(170, 250, 48, dtype=np.uint8)[None, :, None]
    mask_HW = np.zeros((64, 64), bool)
    mask_HW[8:56, 8:56] = True
    result = edited(RecolorEditor(), task(photo_HWC, mask_HW, "recolor", "black", "white"))
    row = result.image_HWC[32, 12:52].astype(int).mean(-1)
    assert row.max() < 90
    assert (np.diff(row) >= -1).all()
    assert row[-1] - row[0] > 8


def test_color_is_not_painted_on_what_is_not_of_it():
    # A blue disk in a red square: the mask has both.
    photo_HWC = np.full((80, 80, 3), 200, np.uint8)
    mask_HW = np.zeros((80, 80), bool)
    mask_HW[10:70, 10:70] = True
    photo_HWC[mask_HW] = (190, 30, 40)
    blue_HW = disk(80, 80, 40, 40, 12)
    photo_HWC[blue_HW] = (40, 60, 190)
    result = edited(RecolorEditor(), task(photo_HWC, mask_HW, "recolor", "green", "red"))
    inner_HW = blend.shrunk(blue_HW, 4)
    change = np.abs(result.image_HWC[inner_HW].astype(int) - photo_HWC[inner_HW])
    assert change.max() <= 3


def test_what_cannot_be_recolored_is_told():
    photo_HWC, mask_HW = thing(297343)
    editor = RecolorEditor()
    assert "no color" in refused(editor, task(photo_HWC, mask_HW, "recolor", "shiny", "red"))
    assert "already" in refused(editor, task(photo_HWC, mask_HW, "recolor", "red", "red"))
    assert "blue" in refused(editor, task(photo_HWC, mask_HW, "recolor", "green", "blue"))
    # Its letters would be lost.
    assert "white already" in refused(editor, task(photo_HWC, mask_HW, "recolor", "white", "red"))
    boat_HWC, boat_HW = thing(204805)
    assert "no colors" in refused(editor, task(boat_HWC, boat_HW, "recolor", "green", "white"))
    car_HWC, car_HW = thing(303818, 2)
    assert "too dark" in refused(editor, task(car_HWC, car_HW, "recolor", "white", "black"))


# remove


def test_grass_goes_on_where_a_thing_was():
    ground_HWC = noise()
    mask_HW = disk(120, 160, 60, 80, 16)
    photo_HWC = ground_HWC.copy()
    photo_HWC[mask_HW] = (230, 40, 200)
    result = edited(RemoveEditor(), task(photo_HWC, mask_HW, "remove"))
    assert (mask_HW & ~result.changed_HW).sum() == 0
    filled, true = result.image_HWC[mask_HW].astype(float), ground_HWC[mask_HW].astype(float)
    assert np.abs(filled.mean(0) - true.mean(0)).max() < 4
    # Grain as strong as before: neither smeared nor harder.
    assert 0.7 < filled.std() / true.std() < 1.3


def test_a_removed_cow_leaves_nothing_of_it():
    photo_HWC, mask_HW = thing(418281, 0)
    result = edited(RemoveEditor(), task(photo_HWC, mask_HW, "remove"))
    before, after = (srgb_to_oklab(image) for image in (photo_HWC, result.image_HWC))
    inner_HW = blend.shrunk(mask_HW, 2)
    gray = [np.hypot(*lab[inner_HW][:, 1:].T) < 0.05 for lab in (before, after)]
    # The cow is gray, and grass and bushes are not; nor was the other cow copied there.
    assert gray[0].mean() > 0.7
    assert gray[1].mean() < 0.1
    assert not np.array_equal(result.image_HWC[mask_HW], photo_HWC[mask_HW])


def test_large_photos_are_filled_with_pixels_of_full_sharpness():
    ground_HWC = noise(800, 1000)
    mask_HW = disk(800, 1000, 400, 500, 110)
    photo_HWC = ground_HWC.copy()
    photo_HWC[mask_HW] = 255
    filled_HWC = ground.fill(photo_HWC, mask_HW)
    assert np.array_equal(filled_HWC[~mask_HW], photo_HWC[~mask_HW])
    for image_HWC in (filled_HWC, ground_HWC):
        step = np.abs(np.diff(image_HWC.astype(int), axis=1)).mean(-1)[mask_HW[:, 1:]].mean()
        assert step == pytest.approx(13.5, abs=2)


def test_a_hole_at_the_border_and_one_without_surroundings():
    photo_HWC = noise()
    corner_HW = np.zeros((120, 160), bool)
    corner_HW[:20, :25] = True
    photo_HWC[corner_HW] = 0
    result = edited(RemoveEditor(), task(photo_HWC, corner_HW, "remove"))
    assert result.image_HWC[corner_HW].mean() > 70
    wide_HW = np.ones((120, 160), bool)
    wide_HW[:, :10] = False
    assert "too much to fill" in refused(RemoveEditor(), task(photo_HWC, wide_HW, "remove"))
    with pytest.raises(CannotEdit, match="too little ground"):
        ground.fill(photo_HWC, wide_HW)


# resize


def width_of(image_HWC, ground_HWC):
    """Columns in which a picture clearly differs from its ground."""
    return (np.abs(image_HWC.astype(int) - ground_HWC).max(-1) > 100).any(0).sum()


def drawn():
    ground_HWC = noise()
    mask_HW = disk(120, 160, 70, 80, 18)
    photo_HWC = ground_HWC.copy()
    photo_HWC[mask_HW] = (250, 20, 240)
    return ground_HWC, photo_HWC, mask_HW


@pytest.mark.parametrize("edit, factor", [("shrink", 0.6), ("enlarge", 1.5)])
def test_a_thing_is_scaled_and_its_foot_stays(edit, factor):
    ground_HWC, photo_HWC, mask_HW = drawn()
    result = edited(ResizeEditor(), task(photo_HWC, mask_HW, edit))
    pink_HW = (result.image_HWC[..., 0] > 200) & (result.image_HWC[..., 1] < 80)
    rows, columns = np.flatnonzero(pink_HW.any(1)), np.flatnonzero(pink_HW.any(0))
    assert columns[-1] - columns[0] + 1 == pytest.approx(37 * factor, abs=5)
    assert rows[-1] == pytest.approx(88, abs=2)
    assert (columns[0] + columns[-1]) / 2 == pytest.approx(80, abs=1.5)
    assert result.details["factor"] == factor
    assert width_of(result.image_HWC, ground_HWC) == pytest.approx(37 * factor, abs=3)


def test_enlarged_legs_hide_none_of_the_old():
    ground_HWC = noise()
    mask_HW = np.zeros((120, 160), bool)
    mask_HW[50:65, 60:100] = True  # a table
    mask_HW[65:90, 60:68] = mask_HW[65:90, 92:100] = True
    photo_HWC = ground_HWC.copy()
    photo_HWC[mask_HW] = (250, 20, 240)
    result = edited(ResizeEditor(), task(photo_HWC, mask_HW, "enlarge"))
    # Between the new legs there is ground.
    assert width_of(result.image_HWC[75:88, 68:92], ground_HWC[75:88, 68:92]) == 0


def test_a_thing_that_the_bottom_cuts_stays_cut():
    photo_HWC = noise()
    mask_HW = np.zeros((120, 160), bool)
    mask_HW[80:, 60:100] = True
    photo_HWC[mask_HW] = (250, 20, 240)
    result = edited(ResizeEditor(), task(photo_HWC, mask_HW, "shrink"))
    assert (result.image_HWC[119, 70:90, 0] > 200).all()
    assert (result.image_HWC[90, 60:100, 0] < 200).all()


def test_what_cannot_be_resized_is_told():
    photo_HWC = noise()
    editor = ResizeEditor()
    masks = {
        "pieces": disk(120, 160, 40, 40, 12) | disk(120, 160, 80, 110, 12),
        "thin": np.pad(np.ones((60, 3), bool), ((30, 30), (70, 87))),
        "(top)": disk(120, 160, 5, 80, 15),
        "(right, bottom)": disk(120, 160, 115, 155, 15),
        "room": disk(120, 160, 55, 80, 50),
    }
    for words, mask_HW in masks.items():
        assert words in refused(editor, task(photo_HWC, mask_HW, "enlarge"))
    assert "too much" in refused(editor, task(photo_HWC, masks["room"], "shrink"))


def test_a_pasted_thing_has_no_halo_of_its_old_ground():
    photo_HWC = np.zeros((100, 100, 3), np.uint8)
    mask_HW = disk(100, 100, 50, 50, 20)
    photo_HWC[mask_HW] = (200, 40, 40)
    photo_HWC = cv2.GaussianBlur(photo_HWC, (0, 0), 1)
    cut = paste.cut_out(photo_HWC, blend.grown(mask_HW, 1))
    white_HWC = np.full_like(photo_HWC, 255)
    image_HWC, covered_HW = paste.pasted(white_HWC, cut, 1.0, (50.0, 50.0))
    # From red to white, with no black between.
    assert image_HWC[..., 0].min() > 150
    assert (image_HWC[~covered_HW] == 255).all()


# replace


@pytest.mark.parametrize("target", ["clock", "a clock", "Clocks"])
def test_a_sign_becomes_a_clock(folder, target):
    photo_HWC, mask_HW = thing(525891)
    made = task(photo_HWC, mask_HW, "replace", target, key="000000525891")
    result = edited(ReplaceEditor(folder), made)
    assert result.details["donor_key"] == "000000551780"
    before, after = (srgb_to_oklab(image) for image in (photo_HWC, result.image_HWC))
    inner_HW = blend.shrunk(mask_HW, 8)
    assert np.median(before[inner_HW][:, 0]) < 0.4
    assert np.median(after[inner_HW][:, 0]) > 0.6


def test_no_donor_is_of_the_photo_itself_nor_of_an_unknown_kind(folder):
    photo_HWC, mask_HW = thing(551780)
    editor = ReplaceEditor(folder, ReplaceSettings(most_area=0.3))
    own = task(photo_HWC, mask_HW, "replace", "clock", key="000000551780")
    assert "no other photo" in refused(editor, own)
    assert "no other photo" in refused(editor, task(photo_HWC, mask_HW, "replace", "unicorn"))
    sign_HWC, sign_HW = thing(122745)
    made = task(sign_HWC, sign_HW, "replace", "stop signs", key="000000122745")
    assert edited(editor, made).details["donor_key"] == "000000297343"


def test_candidates_take_donors_of_a_kind_in_turn(tmp_path):
    folder = Folder(tmp_path)
    writer = DonorWriter(folder)
    for number in range(4):
        _, photo_HWC, mask_HW = drawn()
        photo_HWC[mask_HW] = (60 * number, 20, 240)
        assert writer.add(Cutting(f"key{number}", "ball", photo_HWC, mask_HW)) == ""
    assert writer.close() == {"ball": {"key0", "key1", "key2", "key3"}}
    editor = ReplaceEditor(folder)
    _, photo_HWC, mask_HW = drawn()
    first = task(photo_HWC, mask_HW, "replace", "ball", key="key9")
    tasks = [dataclasses.replace(first, number=number) for number in range(5)]
    drawn_keys = [edited(editor, each).details["donor_key"] for each in tasks[:4]]
    assert set(drawn_keys) == {"key0", "key1", "key2", "key3"}
    (none,) = editor.edit(tasks[4:])
    assert isinstance(none, CannotEdit)
    assert "no further donor" in str(none)


def test_donors_come_back_as_they_were_written(folder):
    found = read_donors(folder)
    assert {donor.category for donor in found} >= {"clock", "stop sign", "dog", "toilet"}
    for donor in found:
        picture_HWC = read_cut_out(folder, donor, 10**6)
        assert picture_HWC.shape[2] == 4
        assert set(np.unique(picture_HWC[..., 3])) >= {0, 255}


def test_what_is_cut_small_or_hidden_is_no_donor():
    photo_HWC = noise()
    photo_HWC[disk(120, 160, 60, 60, 40)] = 255
    assert unfit(photo_HWC, disk(120, 160, 60, 60, 40)) == ""
    masks = {
        "border": disk(120, 160, 60, 10, 20),
        "small": disk(120, 160, 60, 60, 8),
        "pieces": disk(120, 160, 60, 40, 20) | disk(120, 160, 60, 110, 18),
        "stands out": disk(120, 160, 60, 125, 22),
        "empty": np.zeros((120, 160), bool),
    }
    for words, mask_HW in masks.items():
        assert words in unfit(photo_HWC, mask_HW)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"image": "../outside.png"}, "outside"),
        ({"light": [0.5, "a", 0]}, "light"),
        ({"id": "../x"}, "no name"),
        ({"category": 3}, "texts"),
        ({"more": 1}, "JSON object with"),
    ],
)
def test_a_damaged_list_of_donors_is_refused(folder, tmp_path, change, words):
    line = json.loads(folder.donors_file.read_text().splitlines()[0])
    (tmp_path / "donors.jsonl").write_text(json.dumps(line | change) + "\n")
    with pytest.raises(ValueError, match=f"line 1.*{words}"):
        ReplaceEditor(Folder(tmp_path))


def test_a_broken_donor_is_told(folder, tmp_path):
    (tmp_path / "donors.jsonl").write_bytes(folder.donors_file.read_bytes())
    donor = read_donors(Folder(tmp_path))[0]
    (tmp_path / "donors").mkdir()
    with pytest.raises(ValueError, match=donor.id):
        read_cut_out(Folder(tmp_path), donor, 10**6)
    whole = folder.path(donor.image).read_bytes()
    (tmp_path / donor.image).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="cannot be used"):
        read_cut_out(Folder(tmp_path), donor, 10**6)
    with pytest.raises(ValueError, match="too_many_pixels"):
        read_cut_out(folder, donor, 100)


# all


EDITS = [
    (RecolorEditor(), 525891, "recolor", "yellow"),
    (ResizeEditor(), 525891, "shrink", ""),
    (ResizeEditor(), 525891, "enlarge", ""),
    (RemoveEditor(), 525891, "remove", ""),
]
_AGAIN = """
import hashlib, sys
from tests.inpaint.test_editors import EDITS, task, thing
for editor, coco_id, edit, target in EDITS:
    (result,) = editor.edit([task(*thing(coco_id), edit, target, "red")])
    print(hashlib.sha256(result.image_HWC.tobytes() + result.changed_HW.tobytes()).hexdigest())
"""


def test_other_processes_make_the_same_bytes():
    root = Path(__file__).parents[2]
    runs = [
        subprocess.run(
            [sys.executable, "-c", _AGAIN], cwd=root, check=True, capture_output=True, text=True
        ).stdout.split()
        for _ in range(2)
    ]
    assert runs[0] == runs[1]
    assert len(set(runs[0])) == len(EDITS)


@pytest.mark.parametrize("edit", ["recolor", "shrink", "enlarge", "remove", "replace"])
@pytest.mark.parametrize("kind", ["empty", "one pixel", "full", "row"])
def test_masks_without_sense_are_refused(folder, edit, kind):
    photo_HWC = noise()
    mask_HW = np.zeros((120, 160), bool)
    if kind == "one pixel":
        mask_HW[50, 50] = True
    if kind == "full":
        mask_HW[:] = True
    if kind == "row":
        mask_HW[119, :60] = True
    target = {"recolor": "red", "replace": "clock"}.get(edit, "")
    for editor in (RecolorEditor(), ResizeEditor(), RemoveEditor(), ReplaceEditor(folder)):
        if edit in editor.edits:
            refused(editor, task(photo_HWC, mask_HW, edit, target))


def test_tasks_are_done_each_by_itself_and_in_order():
    photo_HWC, mask_HW = thing(525891)
    tasks = [
        task(photo_HWC, mask_HW, "recolor", "blue", "red"),
        task(photo_HWC, mask_HW, "recolor", "no color", "red"),
        task(photo_HWC, mask_HW, "recolor", "yellow", "red"),
    ]
    editor = RecolorEditor()
    together = editor.edit(tasks)
    assert [type(each) for each in together] == [Edited, CannotEdit, Edited]
    assert np.array_equal(together[2].image_HWC, editor.edit(tasks[2:])[0].image_HWC)


def test_a_mask_of_another_size_is_wrong_use():
    with pytest.raises(ValueError, match="needs a photo of") as caught:
        RemoveEditor().edit([task(noise(), np.ones((10, 10), bool), "remove")])
    assert not isinstance(caught.value, CannotEdit)


def test_small_photos_of_black_and_white_are_edited():
    photo_HWC = np.repeat(noise(64, 64)[..., :1], 3, axis=2)
    mask_HW = disk(64, 64, 34, 32, 8)
    photo_HWC[mask_HW] = 240
    for editor, edit, target in (
        (RecolorEditor(), "recolor", "black"),
        (ResizeEditor(), "shrink", ""),
        (ResizeEditor(), "enlarge", ""),
        (RemoveEditor(), "remove", ""),
    ):
        result = edited(editor, task(photo_HWC, mask_HW, edit, target, "white"))
        spread = result.image_HWC.max(-1).astype(int) - result.image_HWC.min(-1)
        assert spread.max() <= 3


@pytest.mark.parametrize(
    "settings, values",
    [
        (RecolorSettings, {"least_share": 0}),
        (RecolorSettings, {"strength": 9}),
        (RemoveSettings, {"most_area": 0.9}),
        (ResizeSettings, {"shrink": 1.2}),
        (ResizeSettings, {"enlarge": 1.2}),
        (ResizeSettings, {"most_area": 0}),
        (ReplaceSettings, {"most_stretch": 0.5}),
        (ReplaceSettings, {"most_scale": 0}),
        (ReplaceSettings, {"most_area": 1}),
    ],
)
def test_settings_are_checked(settings, values):
    (name,) = values
    with pytest.raises(ValueError, match=name):
        settings(**values)


def test_settings_are_told():
    assert ResizeEditor(ResizeSettings(shrink=0.5)).settings["shrink"] == 0.5
    json.dumps(RecolorEditor().settings)
