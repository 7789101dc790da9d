"""The editor `diffusion`, over pipelines of random weights: what it paints, keeps and refuses."""

import json
import pickle
import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from hnpretrain.config import load
from hnpretrain.inpaint import candidates
from hnpretrain.inpaint.editors import pipelines, window
from hnpretrain.inpaint.editors.base import CannotEdit
from hnpretrain.inpaint.editors.diffusion import DiffusionEditor, DiffusionSettings
from hnpretrain.inpaint.editors.window import Window
from hnpretrain.inpaint.records import EDITS
from tests.support.inpainting import write_pipeline, write_proposals


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_pipeline(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    folder = write_proposals(tmp_path_factory.mktemp("proposals"), 3)
    return [
        replace(candidates.read_task(folder, proposal, 10**7), seed=number)
        for number, proposal in enumerate(folder.proposals())
    ]


def small(model, **changes):
    changes = {"size": 64, "steps": 2, "grow_mask": 6, "soft_edge": 4} | changes
    return DiffusionSettings(model=str(model), **changes)


def test_a_picture_is_the_photo_but_for_the_mask(model, tasks):
    editor = DiffusionEditor(small(model))
    assert editor.edits == EDITS
    for task, edited in zip(tasks, editor.edit(tasks), strict=True):
        outside_HW = ~window.grown(task.mask_HW, 6)
        assert np.array_equal(edited.changed_HW, ~outside_HW)
        assert np.array_equal(edited.image_HWC[outside_HW], task.photo_HWC[outside_HW])
        # Random weights paint something, and it is not the photo.
        inside = edited.image_HWC[task.mask_HW].astype(int) - task.photo_HWC[task.mask_HW]
        assert np.abs(inside).mean() > 10
        assert edited.details["prompt"] == task.proposal.new_caption


def test_behind_the_soft_edge_all_pixels_are_the_model_s(model, tasks):
    (whole,) = DiffusionEditor(small(model, put_back=False)).edit(tasks[:1])
    (put_back,) = DiffusionEditor(small(model)).edit(tasks[:1])
    task = tasks[0]
    edge_HW = window.grown(task.mask_HW, 6) & ~window.grown(task.mask_HW, 0)
    assert np.array_equal(put_back.image_HWC[task.mask_HW], whole.image_HWC[task.mask_HW])
    # The autoencoder changes what is not put back; in the edge, pixels lie between the two.
    left, top, right, bottom = whole.details["window"]
    outside_HW = np.zeros_like(task.mask_HW)
    outside_HW[top:bottom, left:right] = True
    outside_HW &= ~put_back.changed_HW
    assert (whole.image_HWC[outside_HW] != task.photo_HWC[outside_HW]).any()
    low = np.minimum(task.photo_HWC, whole.image_HWC)[edge_HW]
    high = np.maximum(task.photo_HWC, whole.image_HWC)[edge_HW]
    mixed = put_back.image_HWC[edge_HW]
    assert ((low <= mixed) & (mixed <= high)).all()
    assert ((low < mixed) & (mixed < high)).any()


def test_seeds_decide_and_the_batch_does_not(model, tasks):
    """On one core (tests/conftest.py) at least, where all batches use the same kernels."""
    same = [replace(tasks[0], seed=seed) for seed in (5, 6, 5)]
    first, other, again = DiffusionEditor(small(model, batch_size=3)).edit(same)
    assert np.array_equal(first.image_HWC, again.image_HWC)
    assert not np.array_equal(first.image_HWC, other.image_HWC)
    alone = DiffusionEditor(small(model, batch_size=1)).edit(same)
    padded = DiffusionEditor(small(model, batch_size=2)).edit(same)
    for expected, *found in zip((first, other, again), alone, padded, strict=True):
        for each in found:
            assert np.array_equal(each.image_HWC, expected.image_HWC)


def test_other_weights_are_told_apart(model, tasks, tmp_path):
    other = write_pipeline(tmp_path / "tiny", seed=1)
    moved = shutil.copytree(model, tmp_path / "moved")
    one, two, three = (DiffusionEditor(small(path)) for path in (model, other, moved))
    assert one.settings == three.settings
    assert one.settings["weights"] != two.settings["weights"]
    assert {**one.settings, "weights": ""} == {**two.settings, "weights": ""}
    assert not np.array_equal(one.edit(tasks)[0].image_HWC, two.edit(tasks)[0].image_HWC)
    json.dumps(one.settings)


def test_what_is_not_loaded_does_not_count(model, tasks, tmp_path):
    """The hub's cache holds what was once downloaded: other variants, single files of all."""
    path = shutil.copytree(model, tmp_path / "tiny")
    before = DiffusionEditor(small(path)).settings
    weights = "diffusion_pytorch_model.safetensors"
    half = {name: each.half() for name, each in load_file(path / "unet" / weights).items()}
    save_file(half, path / "unet/diffusion_pytorch_model.fp16.safetensors", {"format": "pt"})
    (path / "unet/diffusion_pytorch_model.safetensors.index.fp16.json").write_text("{}")
    save_file(half, path / "unet/diffusion_pytorch_model.bf16-00001-of-00001.safetensors")
    save_file(half, path / "unet/diffusion_pytorch_model-00001-of-00001.old.safetensors")
    save_file(half, path / "all.safetensors")
    assert DiffusionEditor(small(path)).settings == before
    (path / "unet/diffusion_pytorch_model.safetensors.index.fp16.json").unlink()
    fp16 = DiffusionEditor(small(path, variant="fp16"))
    assert fp16.settings["weights"] != before["weights"]
    assert fp16.edit(tasks[:1])[0].image_HWC.shape == tasks[0].photo_HWC.shape
    # Parts that have no such variant are loaded from the plain ones.
    vae = load_file(path / "vae" / weights)
    save_file({name: each + 1 for name, each in vae.items()}, path / "vae" / weights)
    changed = [DiffusionEditor(small(path, variant=each)).settings for each in ("", "fp16")]
    assert changed[0] != before
    assert changed[1] != fp16.settings
    # What is read beside weights counts.
    (path / "scheduler/scheduler_config.json").write_text("{}")
    assert DiffusionEditor(small(path)).settings != changed[0]


def test_prompts_reach_the_model(model, tasks):
    plain = DiffusionEditor(small(model)).edit(tasks[:1])[0]
    changes = {"prompt": "{noun} of {target}"}, {"negative_prompt": "{source}"}, {"guidance": 1.5}
    changes += ({"strength": 0.5},)
    for change in changes:
        other = DiffusionEditor(small(model, **change)).edit(tasks[:1])[0]
        assert not np.array_equal(plain.image_HWC, other.image_HWC), change
    assert (
        DiffusionEditor(small(model, **changes[0])).edit(tasks[:1])[0].details["prompt"]
        == f"{tasks[0].proposal.noun} of blue"
    )


def test_before_it_has_loaded_it_may_be_sent_to_another_process(model, tasks):
    editor = DiffusionEditor(small(model))
    sent = pickle.loads(pickle.dumps(editor))
    assert np.array_equal(sent.edit(tasks)[0].image_HWC, editor.edit(tasks)[0].image_HWC)


class Filling:
    """A pipeline whose device has memory for so many rows."""

    def __init__(self, pipeline, rows):
        self._pipeline, self._rows = pipeline, rows
        self.calls = []
        self.vae_scale_factor = pipeline.vae_scale_factor

    def __call__(self, **told):
        self.calls.append(len(told["prompt"]))
        if self.calls[-1] > self._rows:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return self._pipeline(**told)


def test_where_memory_runs_out_the_batch_is_halved(model, tasks, monkeypatch):
    expected = DiffusionEditor(small(model, batch_size=3)).edit(tasks)
    load_pipeline = pipelines.load
    filling = []

    def load_filling(*arguments):
        filling.append(Filling(load_pipeline(*arguments), 2))
        return filling[0]

    monkeypatch.setattr(pipelines, "load", load_filling)
    editor = DiffusionEditor(small(model, batch_size=5))
    for _ in range(2):
        for found, each in zip(editor.edit(tasks), expected, strict=True):
            assert np.array_equal(found.image_HWC, each.image_HWC)
    # Remembered: only the first batch was too large.
    assert filling[0].calls == [5, 2, 2, 2, 2]


def test_no_memory_for_one_picture_is_said_in_a_line(model, tasks, monkeypatch):
    load_pipeline = pipelines.load
    monkeypatch.setattr(pipelines, "load", lambda *told: Filling(load_pipeline(*told), 0))
    message = "cpu has no memory for one picture: diffusion.size=64, dtype=float32; lower size"
    with pytest.raises(ValueError, match=message):
        DiffusionEditor(small(model, batch_size=4)).edit(tasks)

    def full(*_):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(pipelines, "load", full)
    with pytest.raises(ValueError, match="cpu has no memory for the weights"):
        DiffusionEditor(small(model)).edit(tasks)


def test_a_safety_checker_s_pictures_are_not_kept(tasks, tmp_path):
    path = write_pipeline(tmp_path / "checked", checker=True)
    refused = DiffusionEditor(small(path)).edit(tasks[:2])
    assert all(isinstance(each, CannotEdit) for each in refused)
    assert "safety checker" in str(refused[0])
    (edited,) = DiffusionEditor(small(path, safety_checker=False)).edit(tasks[:1])
    assert edited.image_HWC.shape == tasks[0].photo_HWC.shape


def test_pictures_that_are_no_numbers_are_not_kept(model, tasks, monkeypatch):
    load_pipeline = pipelines.load

    def load_broken(*arguments):
        pipeline = load_pipeline(*arguments)
        torch.nn.init.constant_(pipeline.vae.decoder.conv_out.bias, float("nan"))
        return pipeline

    monkeypatch.setattr(pipelines, "load", load_broken)
    (refused,) = DiffusionEditor(small(model)).edit(tasks[:1])
    assert isinstance(refused, CannotEdit)
    assert str(refused) == "the model overflowed in float32"


# Pipelines that are refused


def test_a_text_to_image_pipeline_needs_to_be_asked_for(tasks, tmp_path):
    path = write_pipeline(tmp_path / "text", "StableDiffusionPipeline", channels=4)
    with pytest.raises(ValueError, match=r"is a StableDiffusionPipeline, made for text to image:"):
        DiffusionEditor(small(path))
    editor = DiffusionEditor(small(path, from_text_to_image=True))
    assert editor.settings["pipeline"] == "StableDiffusionInpaintPipeline"
    (edited,) = editor.edit(tasks[:1])
    assert np.array_equal(
        edited.image_HWC[~edited.changed_HW], tasks[0].photo_HWC[~edited.changed_HW]
    )


def _index(path, name):
    index = path / "model_index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "_class_name": name}))


@pytest.mark.parametrize(
    "name, message",
    [
        ("DDPMPipeline", "is a DDPMPipeline, which does not inpaint"),
        ("StableDiffusionControlNetInpaintPipeline", "which also needs control_image"),
        ("Nothing", "is a Nothing, which this diffusers does not know"),
        (["pipeline", "Mine"], "which this diffusers does not know"),
        ("AutoPipelineForInpainting", "which this diffusers does not know"),
    ],
)
def test_a_pipeline_of_another_kind_is_refused(model, tmp_path, name, message):
    path = shutil.copytree(model, tmp_path / "model")
    (path / "pipeline.py").write_text("raise SystemExit('this code has run')\n")
    _index(path, name)
    with pytest.raises(ValueError, match=message) as caught:
        DiffusionEditor(small(path))
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def _pickled(path):
    """Its U-Net's weights as a .bin alone."""
    (path / "unet/diffusion_pytorch_model.safetensors").unlink()
    torch.save({}, path / "unet/diffusion_pytorch_model.bin")


def _pickled_text_encoder(path):
    (path / "text_encoder/model.safetensors").unlink()
    torch.save({}, path / "text_encoder/pytorch_model.bin")


def _cut(path):
    weights = path / "unet/diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])


def _own_code(path):
    """A part whose class lies in the repository."""
    (path / "unet/mine.py").write_text("raise SystemExit('this code has run')\n")
    index = path / "model_index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "unet": ["mine", "Mine"]}))


def _other_library(path):
    index = path / "model_index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "unet": ["antigravity", "fly"]}))


def _lacking(part, name):
    """One of its tensors is not there: random ones would take its place, in silence."""

    def damage(path):
        weights = load_file(path / part / name)
        del weights[sorted(weights)[-1]]
        save_file(weights, path / part / name, metadata={"format": "pt"})

    return damage


@pytest.mark.parametrize(
    "damage",
    [
        _lacking("unet", "diffusion_pytorch_model.safetensors"),
        _lacking("text_encoder", "model.safetensors"),
    ],
)
def test_absent_weights_are_named(model, tasks, tmp_path, damage):
    path = shutil.copytree(model, tmp_path / "model")
    damage(path)
    with pytest.raises(ValueError, match=r"diffusers cannot load .* weights are not there: "):
        DiffusionEditor(small(path)).edit(tasks[:1])


@pytest.mark.parametrize(
    "damage", [_pickled, _pickled_text_encoder, _cut, _own_code, _other_library]
)
def test_what_cannot_be_loaded_is_named_in_a_line(model, tasks, tmp_path, damage):
    path = shutil.copytree(model, tmp_path / "model")
    damage(path)
    with pytest.raises(ValueError, match="diffusers cannot load ") as caught:
        DiffusionEditor(small(path)).edit(tasks[:1])
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    assert "antigravity" not in sys.modules


def test_a_pipeline_that_is_not_there(tmp_path, monkeypatch):
    for model in (str(tmp_path / "nowhere"), "./models/mine"):
        with pytest.raises(ValueError, match=r"diffusion\.model=.* is no folder, and no name on"):
            DiffusionEditor(small(model))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"is no pipeline of diffusers: its model_index\.json"):
        DiffusionEditor(small(tmp_path / "empty"))
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ValueError, match=r"pip install 'hnpretrain\[inpaint\]'"):
        DiffusionEditor(small(tmp_path / "empty"))


def test_a_name_of_the_hub(model, tasks, monkeypatch):
    """It is diffusers that finds it; here, in a folder beside us."""
    import diffusers

    asked = []

    def download(name, **options):
        asked.append((name, options["use_safetensors"], options["trust_remote_code"]))
        if name == "some/other":
            raise OSError("some/other is not\n a name")
        return str(model)

    monkeypatch.setattr(diffusers.DiffusionPipeline, "download", download)
    editor = DiffusionEditor(small("some/tiny"))
    assert asked == [("some/tiny", True, False)]
    (edited,) = editor.edit(tasks[:1])
    assert edited.details["model"] == "some/tiny"
    assert editor.settings == DiffusionEditor(small(model)).settings
    with pytest.raises(ValueError, match="diffusers cannot load some/other: some/other is not a n"):
        DiffusionEditor(small("some/other"))


@pytest.mark.parametrize(
    "change, message",
    [
        ("prompt={new_caption.__class__}", "in braces, one of caption, new_caption"),
        ("prompt={noun:>9}", "in braces"),
        ("negative_prompt={", "negative_prompt='{'"),
        ("size=100", "size=100: a multiple of 64"),
        ("steps=0", "steps=0"),
        ("strength=0", "strength=0"),
        ("strength=0.01", r"strength=0\.01 leaves none of steps=50"),
        ("soft_edge=13", "soft_edge=13: between 0 and grow_mask=12"),
        ("dtype=half", "dtype='half' is not one of"),
        ("context=0.5", r"context=0\.5"),
        ("batch_size=0", "batch_size=0"),
        ("guidance=nan", "guidance=nan"),
        ("model=''", "a folder or a name on the hub"),
    ],
)
def test_wrong_settings_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        load(DiffusionSettings, overrides=[change])


# Windows


@pytest.mark.parametrize("shape", [(100, 300), (300, 100), (40, 40), (500, 480), (64, 64)])
@pytest.mark.parametrize("context", [1.0, 2.5, 1000.0])
def test_a_window_holds_the_mask_and_lies_in_the_photo(shape, context):
    mask_HW = np.zeros(shape, bool)
    mask_HW[5:20, 10:34] = True
    seen = Window.around(mask_HW, context, 64)
    assert 0 <= seen.top <= 5
    assert 20 <= seen.bottom <= shape[0]
    assert 0 <= seen.left <= 10
    assert 34 <= seen.right <= shape[1]
    photo_HWC = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    assert seen.of_photo(photo_HWC).shape == (64, 64, 3)
    mask_SS = seen.of_mask(mask_HW, 8)
    assert mask_SS.shape == (64, 64)
    # Whole blocks: a latent model that looks at any pixel of one sees the same.
    assert np.array_equal(mask_SS, mask_SS[::8, ::8].repeat(8, 0).repeat(8, 1))
    assert mask_SS.any()
    back_HWC = seen.back(np.full((64, 64, 3), 7, np.uint8), photo_HWC)
    assert (back_HWC[seen.top : seen.bottom, seen.left : seen.right] == 7).all()
    back_HWC[seen.top : seen.bottom, seen.left : seen.right] = 0
    photo_HWC[seen.top : seen.bottom, seen.left : seen.right] = 0
    assert np.array_equal(back_HWC, photo_HWC)


def test_what_is_not_scaled_comes_back_exactly():
    photo_HWC = np.random.default_rng(0).integers(0, 256, (90, 64, 3), dtype=np.uint8)
    mask_HW = np.zeros((90, 64), bool)
    mask_HW[40:60, 10:42] = True
    seen = Window.around(mask_HW, 2.0, 64)
    assert (seen.bottom - seen.top, seen.right - seen.left) == (64, 64)
    assert np.array_equal(seen.back(seen.of_photo(photo_HWC), photo_HWC), photo_HWC)


def test_a_thin_thing_stays_in_the_mask():
    """A pole of one pixel, in a photo that is scaled down eightfold."""
    mask_HW = np.zeros((512, 512), bool)
    mask_HW[20:500, 101] = True
    mask_SS = Window.around(mask_HW, 1000.0, 64).of_mask(mask_HW, 8)
    assert mask_SS.any(1).sum() >= 60


def test_growing_and_the_soft_edge_by_hand():
    mask_HW = np.zeros((11, 11), bool)
    mask_HW[5, 5] = True
    grown_HW = window.grown(mask_HW, 3)
    rows, columns = np.mgrid[:11, :11] - 5
    assert np.array_equal(grown_HW, rows**2 + columns**2 <= 9)
    photo_HWC, made_HWC = np.zeros((11, 11, 3), np.uint8), np.full((11, 11, 3), 240, np.uint8)
    half_HW = np.zeros((11, 11), bool)
    half_HW[:, 4:] = True
    row = window.put_into(photo_HWC, made_HWC, half_HW, 3)[5, :, 0]
    # The photo's right border is no edge.
    assert row.tolist() == [0, 0, 0, 0, 60, 120, 180, 240, 240, 240, 240]
    assert window.put_into(photo_HWC, made_HWC, half_HW, 0)[5, 4, 0] == 240
    assert np.array_equal(window.put_into(photo_HWC, made_HWC, half_HW | True, 3), made_HWC)
