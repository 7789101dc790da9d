"""Each check tells what it is named after, of real photos edited well and badly on purpose."""

from __future__ import annotations

import json
import math
import pickle
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image, ImageDraw

from hnpretrain.config import load as load_settings
from hnpretrain.inpaint.checks import (
    DISTANCE_CAP,
    PSNR_CAP,
    Checks,
    CheckSettings,
    distance_to_nearest,
    outside_psnr,
)
from hnpretrain.inpaint.editors.base import Edited, Task
from hnpretrain.inpaint.preference import Preference
from hnpretrain.inpaint.records import Proposal

PHOTOS = Path(__file__).parents[1] / "assets" / "coco_ccby"
NAMES = [
    "size", "change_inside", "outside", "seam", "not_black", "not_saturated", "not_flat",
    "duplicate",
]  # fmt: skip
PROPOSAL = Proposal(
    id="p", key="k", photo="", source_caption="a bus", caption="a green bus",
    new_caption="a red bus", concept="color", edit="recolor", source="green", target="red",
    span=(2, 7), noun="bus", category="bus", mask="", things=1, area=0.1, score=1.0,
)  # fmt: skip


def things(count: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Photos, and the mask of a thing that takes 2 to 40 % of each."""
    for line in (PHOTOS / "data.jsonl").read_text().splitlines():
        record = json.loads(line)
        for instance in record["instances"]:
            mask = Image.new("L", (record["width"], record["height"]))
            for polygon in instance["polygons"]:
                ImageDraw.Draw(mask).polygon(polygon, fill=255)
            mask_HW = np.asarray(mask) > 0
            if not instance["iscrowd"] and 0.02 < mask_HW.mean() < 0.4:
                with Image.open(PHOTOS / record["image"]) as photo:
                    yield np.array(photo.convert("RGB")), mask_HW
                count -= 1
                if not count:
                    return
                break


def grown(mask_HW: np.ndarray, radius: int) -> np.ndarray:
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    return cv2.dilate(mask_HW.astype(np.uint8), disc) > 0


def recolored(photo_HWC: np.ndarray, mask_HW: np.ndarray, softness: float = 1.5) -> Edited:
    """Orange with the photo's own lightness, and an edge that is as soft as told, in pixels."""
    weight_HW = mask_HW.astype(np.float32)
    if softness:
        weight_HW = cv2.GaussianBlur(weight_HW, (0, 0), softness)
    lab_HWC = cv2.cvtColor(photo_HWC.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    for channel, value in ((1, 35), (2, 30)):
        lab_HWC[..., channel] += (value - lab_HWC[..., channel]) * weight_HW
    rgb_HWC = cv2.cvtColor(lab_HWC, cv2.COLOR_LAB2RGB)
    image_HWC = np.rint(np.clip(rgb_HWC, 0, 1) * 255).astype(np.uint8)
    changed_HW = weight_HW > 0.004
    image_HWC[~changed_HW] = photo_HWC[~changed_HW]
    return Edited(image_HWC, changed_HW)


def removed(photo_HWC: np.ndarray, mask_HW: np.ndarray) -> Edited:
    changed_HW = grown(mask_HW, 4)
    hole_HW = changed_HW.astype(np.uint8)
    return Edited(cv2.inpaint(photo_HWC, hole_HW, 5, cv2.INPAINT_TELEA), changed_HW)


def filled(photo_HWC: np.ndarray, changed_HW: np.ndarray, color: Any) -> Edited:
    image_HWC = photo_HWC.copy()
    image_HWC[changed_HW] = color
    return Edited(image_HWC, changed_HW)


def failed(photo_HWC: np.ndarray, edited: Edited, **settings: float) -> set[str]:
    task = Task(PROPOSAL, photo_HWC, edited.changed_HW, 0)
    found = Checks(CheckSettings(**settings))(task, edited, [])
    assert all(math.isfinite(check.value) for check in found.values())
    assert json.loads(json.dumps([check.value for check in found.values()]))
    return {name for name, check in found.items() if not check.passed}


@pytest.fixture(scope="module")
def photos() -> list[tuple[np.ndarray, np.ndarray]]:
    return list(things(20))


def test_good_edits_pass(photos: list[tuple[np.ndarray, np.ndarray]]) -> None:
    for photo_HWC, mask_HW in photos:
        assert failed(photo_HWC, recolored(photo_HWC, mask_HW)) == set()
        assert failed(photo_HWC, removed(photo_HWC, mask_HW)) == set()


def test_most_hard_edges_in_the_right_place_pass(
    photos: list[tuple[np.ndarray, np.ndarray]],
) -> None:
    """A thing of another colour has an edge where it had one; a halo around it is new."""
    sharp = [failed(p, recolored(p, m, softness=0)) for p, m in photos]
    halos = [failed(p, recolored(p, grown(m, 8), softness=0)) for p, m in photos]
    assert set().union(*sharp, *halos) == {"seam"}
    assert sum(map(bool, sharp)) <= 0.2 * len(photos)
    assert sum(map(bool, halos)) >= 0.6 * len(photos)


def test_nothing_changed(photos: list[tuple[np.ndarray, np.ndarray]]) -> None:
    photo_HWC, mask_HW = photos[0]
    assert failed(photo_HWC, Edited(photo_HWC, mask_HW)) == {"change_inside"}
    slightly_HWC = photo_HWC.copy()
    slightly_HWC[mask_HW] = photo_HWC[mask_HW] // 2 * 2 + 1
    assert failed(photo_HWC, Edited(slightly_HWC, mask_HW)) == {"change_inside"}
    assert failed(photo_HWC, Edited(slightly_HWC, mask_HW), change_inside=0) == set()
    nowhere = Edited(photo_HWC, np.zeros_like(mask_HW))
    assert failed(photo_HWC, nowhere) == {"change_inside"}


def test_a_change_of_known_size() -> None:
    """From L* = 0 to L* = 100 is a distance of 100."""
    photo_HWC = np.zeros((40, 50, 3), np.uint8)
    changed_HW = np.zeros((40, 50), bool)
    changed_HW[10:20, 10:30] = True
    edited = filled(photo_HWC, changed_HW, 255)
    checks = Checks(CheckSettings())(Task(PROPOSAL, photo_HWC, changed_HW, 0), edited, [])
    assert list(checks) == NAMES
    assert checks["change_inside"].value == pytest.approx(100, abs=0.1)
    # All its border is an edge on what was smooth; all of it is at the ends of the channels.
    assert checks["seam"].value == 1
    assert checks["not_saturated"].value == 1
    assert checks["not_black"].value == 0
    assert checks["outside"].value == PSNR_CAP
    assert checks["not_flat"].value == 1  # there was no texture to lose


def test_a_change_elsewhere_is_the_psnr_there(
    photos: list[tuple[np.ndarray, np.ndarray]],
) -> None:
    photo_HWC, mask_HW = photos[0]
    edited = recolored(photo_HWC, mask_HW)
    noise_HWC = np.random.default_rng(0).integers(-6, 7, photo_HWC.shape)
    image_HWC = np.clip(edited.image_HWC + noise_HWC, 0, 255).astype(np.uint8)
    kept_HW = ~edited.changed_HW
    error = (image_HWC.astype(float) - photo_HWC)[kept_HW]
    value = outside_psnr(photo_HWC, image_HWC, edited.changed_HW)
    assert value == pytest.approx(10 * math.log10(255**2 / np.mean(error**2)))
    assert 35 < value < 40
    assert failed(photo_HWC, Edited(image_HWC, edited.changed_HW)) == {"outside"}
    assert failed(photo_HWC, Edited(image_HWC, edited.changed_HW), outside=35) == set()
    everywhere_HW = np.ones_like(mask_HW)
    assert outside_psnr(photo_HWC, 255 - photo_HWC, everywhere_HW) == PSNR_CAP


def test_black_white_and_flat_pictures(photos: list[tuple[np.ndarray, np.ndarray]]) -> None:
    for photo_HWC, mask_HW in photos[:8]:
        assert {"not_black", "not_flat"} <= failed(photo_HWC, filled(photo_HWC, mask_HW, 0))
        white = failed(photo_HWC, filled(photo_HWC, mask_HW, 255))
        assert {"not_saturated", "not_flat"} <= white
        mean = photo_HWC[mask_HW].mean(axis=0)
        assert "not_flat" in failed(photo_HWC, filled(photo_HWC, mask_HW, mean))
        darker_HWC = photo_HWC.copy()
        darker_HWC[mask_HW] = darker_HWC[mask_HW] // 3  # a black thing keeps its shading
        assert not {"not_black", "not_flat"} & failed(photo_HWC, Edited(darker_HWC, mask_HW))


def test_what_was_black_may_stay_so() -> None:
    photo_HWC = np.zeros((60, 60, 3), np.uint8)
    photo_HWC[:, 30:] = np.random.default_rng(0).integers(0, 255, (60, 30, 3))
    changed_HW = np.zeros((60, 60), bool)
    changed_HW[20:40, 10:35] = True
    image_HWC = photo_HWC.copy()
    image_HWC[20:40, 30:35] //= 2
    task = Task(PROPOSAL, photo_HWC, changed_HW, 0)
    assert Checks(CheckSettings())(task, Edited(image_HWC, changed_HW), [])["not_black"].passed


def test_candidates_that_are_alike(photos: list[tuple[np.ndarray, np.ndarray]]) -> None:
    photo_HWC, mask_HW = photos[0]
    task = Task(PROPOSAL, photo_HWC, mask_HW, 0)
    check = Checks(CheckSettings())
    orange, gone = recolored(photo_HWC, mask_HW), removed(photo_HWC, mask_HW)
    image_HWC = np.minimum(orange.image_HWC, 254) + np.uint8(1)
    hardly_another = Edited(image_HWC, orange.changed_HW)
    assert check(task, orange, [])["duplicate"].value == DISTANCE_CAP
    assert check(task, orange, [gone])["duplicate"].passed
    same = check(task, orange, [gone, orange])["duplicate"]
    assert (same.value, same.passed) == (0, False)
    assert not check(task, hardly_another, [gone, orange])["duplicate"].passed
    # Where only the earlier one was changed counts too.
    nowhere = Edited(photo_HWC, np.zeros_like(mask_HW))
    assert distance_to_nearest(nowhere, [orange]) > 5
    assert distance_to_nearest(nowhere, [nowhere]) == 0


def test_another_size_is_told_alone(photos: list[tuple[np.ndarray, np.ndarray]]) -> None:
    photo_HWC, mask_HW = photos[0]
    assert failed(photo_HWC, Edited(photo_HWC[:-1], mask_HW)) == {"size"}
    assert failed(photo_HWC, Edited(photo_HWC, mask_HW[:, :-1])) == {"size"}


@pytest.mark.parametrize("height, width", [(1, 1), (1, 30), (30, 2), (3, 3)])
def test_tiny_pictures(height: int, width: int) -> None:
    rng = np.random.default_rng(0)
    photo_HWC = rng.integers(0, 255, (height, width, 3), dtype=np.uint8)
    for changed_HW in (np.ones((height, width), bool), rng.random((height, width)) < 0.5):
        failed(photo_HWC, Edited(255 - photo_HWC, changed_HW))


class Colors(Preference):
    """Margins by how red or green a picture is in its mean."""

    def __init__(self) -> None:
        super().__init__("colors")

    def margins(
        self, photo_HWC: np.ndarray, image_HWC: np.ndarray, caption: str, new_caption: str
    ) -> tuple[float, float]:
        assert (caption, new_caption) == (PROPOSAL.caption, PROPOSAL.new_caption)
        greens = [float(p[..., 1].mean() - p[..., 0].mean()) / 255 for p in (photo_HWC, image_HWC)]
        return greens[0], -greens[1]


def test_both_pictures_must_prefer_their_captions() -> None:
    green_HWC = np.full((32, 32, 3), (20, 200, 20), np.uint8)
    red_HWC, gray_HWC = green_HWC[..., [1, 0, 2]].copy(), np.full_like(green_HWC, 100)
    mask_HW = np.ones((32, 32), bool)
    check = Checks(CheckSettings(), Colors())

    def found(photo_HWC: np.ndarray, image_HWC: np.ndarray) -> tuple[float, bool]:
        task = Task(PROPOSAL, photo_HWC, mask_HW, 0)
        preference = check(task, Edited(image_HWC, mask_HW), [])["preference"]
        return preference.value, preference.passed

    assert found(green_HWC, red_HWC) == (180 / 255, True)
    assert found(green_HWC, gray_HWC) == (0, False)
    assert found(red_HWC, red_HWC) == (-180 / 255, False)
    assert found(green_HWC, green_HWC) == (-180 / 255, False)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An export of a small model with random weights."""
    import torch

    from hnpretrain.models import ModelSettings, build
    from hnpretrain.models.store import write_config, write_weights

    torch.manual_seed(0)
    config = {
        "embed_dim": 16,
        "vision_cfg": {
            "image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16,
        },
        "text_cfg": {
            "context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1,
        },
    }  # fmt: skip
    folder = tmp_path_factory.mktemp("model")
    loaded = build(ModelSettings(config=config))
    write_weights(loaded.model.state_dict(), folder)
    write_config(loaded, folder)
    return str(folder)


def test_margins_are_those_of_the_evaluation(
    model: str, photos: list[tuple[np.ndarray, np.ndarray]]
) -> None:
    from hnpretrain.eval.encode import Encoder
    from hnpretrain.eval.images import ImageSource
    from hnpretrain.models import load
    from tests.inpaint.test_export import png

    preference = Preference(model, "cpu")
    loaded = load(model)
    encoder = Encoder(loaded.model, loaded.preprocess_val, loaded.tokenizer, threads=1)
    captions = (PROPOSAL.caption, PROPOSAL.new_caption)
    texts_2D = encoder.encode_texts(captions)
    photo_HWC, mask_HW = photos[0]
    for edited in (recolored(photo_HWC, mask_HW), removed(photo_HWC, mask_HW)):
        sources = [ImageSource(f"{n}", png(p)) for n, p in enumerate((photo_HWC, edited.image_HWC))]
        encoder.store = type(encoder.store)()  # which knows pictures by their names' content
        cosine_22 = encoder.encode_images(sources) @ texts_2D.T
        margins = preference.margins(photo_HWC, edited.image_HWC, *captions)
        expected = (cosine_22[0, 0] - cosine_22[0, 1], cosine_22[1, 1] - cosine_22[1, 0])
        assert margins == pytest.approx([float(each) for each in expected], abs=1e-5)
    # Other photo, other captions: nothing of the ones before may stay.
    other_HWC = photos[1][0]
    fresh = Preference(model, "cpu").margins(other_HWC, photo_HWC, "a dog", "a cat")
    assert preference.margins(other_HWC, photo_HWC, "a dog", "a cat") == fresh
    # A process of its own loads the model of its own.
    again = pickle.loads(pickle.dumps(Checks(CheckSettings(), preference)))
    assert len(pickle.dumps(again)) < 10_000
    checks = again(Task(PROPOSAL, photo_HWC, mask_HW, 0), edited, [])
    assert checks["preference"].value == pytest.approx(min(margins), abs=1e-6)
    assert checks["preference"].passed == (min(margins) > 0)


def test_a_model_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nowhere"):
        Checks.of(CheckSettings(model=str(tmp_path / "nowhere"), device="cpu")).verify()
    Checks.of(CheckSettings()).verify()


def test_settings_that_decide_are_told() -> None:
    plain = Checks.of(CheckSettings())
    assert Checks.of(CheckSettings(device="cpu", preference=1.0)).settings == plain.settings
    others = ({"seam": 0.2}, {"model": "m"}, {"change_inside": 9.0})
    told = [json.dumps(Checks.of(CheckSettings(**other)).settings) for other in others]
    assert len({*told, json.dumps(plain.settings)}) == 4
    asked = [Checks.of(CheckSettings(model="m", preference=p)).settings for p in (0.0, 0.1)]
    assert asked[0] != asked[1]


def test_every_bound_is_set_in_yaml(tmp_path: Path) -> None:
    values = {
        "change_inside": 1.5, "outside": 20.0, "seam": 0.4, "not_black": 0.3, "not_saturated": 0.2,
        "not_flat": 0.05, "duplicate": 3.0, "preference": 0.01, "model": "ViT-B-32:openai",
        "device": "cpu",
    }  # fmt: skip
    assert set(values) == {field.name for field in fields(CheckSettings)}
    path = tmp_path / "checks.yaml"
    path.write_text(json.dumps(values))
    assert load_settings(CheckSettings, path) == CheckSettings(**values)


@pytest.mark.parametrize(
    "settings",
    [
        {"change_inside": -1.0},
        {"outside": 101.0},
        {"outside": float("nan")},
        {"seam": 1.1},
        {"not_black": -0.1},
        {"not_flat": -0.1},
        {"duplicate": float("inf")},
        {"preference": 3.0},
        {"device": "gpu"},
    ],
)
def test_wrong_bounds_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        CheckSettings(**settings)
