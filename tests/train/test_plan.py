"""`hnpretrain plan`: what it tells is what a training then does."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hnpretrain import config
from hnpretrain.train import plan
from hnpretrain.train.plan import foresee
from hnpretrain.train.settings import TrainSettings
from launch import settings as launch_settings
from launch.settings import TrainingLaunch
from tests.support.datasets import tile, write_dataset
from tests.support.training import clean_environment, loss_lines, train_here, write_recipe

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture
def recipe(tmp_path, shards):
    path = tmp_path / "recipe.yaml"
    return write_recipe(path, shards, batch_size=8, epochs=2, micro_batches=0)


def foreseen(recipe, *overrides, ranks=1):
    return foresee(config.load(TrainSettings, recipe, overrides), ranks)


def test_it_tells_what_the_training_does(tmp_path, recipe):
    train_here(recipe, f"output={tmp_path}/run")
    told = foreseen(recipe, f"output={tmp_path}/run")
    assert told["data"]["total_steps"] == len(loss_lines(tmp_path / "run")) == 10
    resolved = config.load(TrainSettings, tmp_path / "run/config.yaml")
    assert told["settings"] == config.to_dict(resolved)
    assert told["changed"]["epochs"] == 2
    assert "seed" not in told["changed"]
    assert told["output_holds_a_run"]
    assert not foreseen(recipe, f"output={tmp_path}/another")["output_holds_a_run"]


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("vit-*.yaml")), ids=lambda path: path.stem)
def test_recipes(path, tmp_path):
    """Those of `configs`, with the number of ranks that they are launched with."""
    shards = tmp_path / "shards"
    write_dataset(shards, (tile(i) for i in range(64)), per_shard=20)
    ranks = launch_settings.read(TrainingLaunch, str(path), []).ranks
    told = foreseen(path, f"data.shards={shards}", "batch_size=64", ranks=ranks)
    assert told["data"]["steps_per_epoch"] == 1
    assert told["data"]["batch_size_of_a_rank"] == 64 // ranks
    assert told["model"]["parameters"] > 5e7


def test_brackets_in_paths_are_shown(tmp_path, recipe, shards, capsys):
    copied = shutil.copytree(shards, tmp_path / "[old]" / "[/x]")
    plan.show(foreseen(recipe, f"data.shards={copied}"))
    assert "".join(capsys.readouterr().out.split()).count(str(copied)) >= 2


def test_what_a_mixture_leaves_out_is_told_of_each_data_set(tmp_path, recipe, shards, capsys):
    write_dataset(tmp_path / "few", (tile(i) for i in range(6)), per_shard=3)
    mixture = ("data.shards=", f"data.mixture={{{shards}: 1, {tmp_path}/few: 1}}", "epochs=1")
    recipe_here = (*mixture, "data.streams=4", "batch_size=4")
    told = foreseen(recipe, *recipe_here)
    assert told["data"]["samples_left_out_of"] == {str(shards): 0, f"{tmp_path}/few": 2}
    plan.show(told)
    line = "".join(capsys.readouterr().out.split())
    assert "anepochleaves2out(" in line
    assert all(part in line for part in (f"0of{shards}", f"2of{tmp_path}/few"))
    train_here(recipe, f"output={tmp_path}/run", *recipe_here)
    lines = capsys.readouterr().out.splitlines()
    assert {f"  0 of {shards}", f"  2 of {tmp_path}/few"} <= set(lines)


def test_what_is_read_ahead(recipe, shards):
    """Two blocks of each of the eight streams, which have five samples: less than a block."""
    size = sum(path.stat().st_size for path in shards.glob("*.tar")) / 40
    assert foreseen(recipe)["data"]["read_ahead"] == pytest.approx(2 * 5 * 8 * size, rel=0.01)


def test_texts_and_parameters(recipe):
    told = foreseen(recipe, "model.lock_image=true")
    texts = told["texts"]
    assert texts["layout"] == "trees"
    assert texts["texts_a_sample"] == 3
    assert texts["tokens_a_sample"] < texts["padded_tokens_a_sample"] / 2
    assert texts["padded_tokens_a_sample"] == 3 * 16
    padded = foreseen(recipe, "model.text_layout=padded")["texts"]
    assert padded["tokens_a_sample"] == padded["padded_tokens_a_sample"]
    assert padded["reason"].startswith("it is asked for, where auto would take trees")
    model = told["model"]
    assert model["parameters"] - model["trained"] == model["image_tower"] > 0


def test_ranks_share_the_batch(recipe):
    told = foreseen(recipe, "zero_stage=2", ranks=4)
    assert told["data"]["batch_size_of_a_rank"] == 2
    alone = foreseen(recipe, "zero_stage=2")
    assert told["data"]["read_ahead"] == pytest.approx(alone["data"]["read_ahead"] / 4, abs=1)
    assert told["memory"]["parts"]["optimizer"] < alone["memory"]["parts"]["optimizer"] / 3
    with pytest.raises(ValueError, match="must be a multiple of the 3 ranks"):
        foreseen(recipe, ranks=3)


@pytest.mark.parametrize(
    "zero_stage, lock, ema",
    [(0, False, 0), (0, True, 0.9), (1, False, 0), (2, True, 0), (3, True, 0), (3, True, 0.9)],
)
def test_a_checkpoint_takes_what_is_foretold(tmp_path, recipe, zero_stage, lock, ema):
    overrides = [f"zero_stage={zero_stage}", f"model.lock_image={lock}", f"ema={ema}", "epochs=1"]
    overrides.append("checkpoint.keep=1")
    told = foreseen(recipe, *overrides)["checkpoint"]
    assert told["kept"] == 1
    train_here(recipe, f"output={tmp_path}/run", *overrides)
    (checkpoint,) = (tmp_path / "run/checkpoints").glob("step_*")
    size = sum(path.stat().st_size for path in checkpoint.iterdir())
    assert size == pytest.approx(told["bytes"], rel=0.05)


def test_compute_and_time(recipe):
    told = foreseen(recipe, "log.peak_tflops=2", ranks=2)
    texts, compute = told["texts"], told["compute"]
    assert texts["tokens_a_step"] == round(8 * texts["tokens_a_sample"])
    assert texts["total_tokens"] == 10 * texts["tokens_a_step"]
    assert told["data"]["total_samples"] == 80
    expected = (
        8 * compute["flops_an_image"] + texts["tokens_a_step"] * compute["flops_a_text_token"]
    )
    assert compute["flops_a_step"] == pytest.approx(expected)
    assert compute["total_flops"] == 10 * compute["flops_a_step"]
    seconds = compute["flops_a_step"] / (2 * 2e12 * 0.4)
    assert compute["seconds_a_step"] == pytest.approx(seconds)
    assert compute["total_seconds"] == pytest.approx(10 * seconds)
    slower = foresee(config.load(TrainSettings, recipe, ["log.peak_tflops=2"]), 2, mfu=0.1)
    assert slower["compute"]["total_seconds"] == pytest.approx(40 * seconds)


@pytest.mark.skipif(torch.cuda.is_available(), reason="the peak of a GPU may be known")
def test_no_time_is_made_up(recipe, capsys):
    told = foreseen(recipe)
    assert told["compute"]["total_seconds"] is None
    plan.show(told)
    shown = capsys.readouterr().out
    assert "compute" in shown
    assert "MFU" not in shown


def test_what_is_shown_fits_on_a_screen(recipe, capsys):
    plan.show(foreseen(recipe, "log.peak_tflops=2"))
    _, _, shown = capsys.readouterr().out.partition("Those that are no defaults")
    assert "at 40% (MFU) of 1 x 2 TFLOP/s" in " ".join(shown.split())
    assert len(shown.splitlines()) < 50


def test_all_settings_are_shown_first_and_can_be_trained_with(tmp_path, recipe, shards, capsys):
    signed = shutil.copytree(shards, tmp_path / "shards?sig=my-secret")
    mixture = f"data.mixture={{'file://{signed}': 1.0}}"
    told = foreseen(recipe, "data.shards=''", mixture)
    assert told["settings"]["data"]["mixture"] == {f"file://{tmp_path}/shards": 1.0}
    plan.show(told)
    shown = capsys.readouterr().out
    assert "my-secret" not in shown
    assert "my-secret" not in json.dumps(told)
    title, _, rest = shown.partition("\n")
    assert title == "Settings"
    (tmp_path / "shown.yaml").write_text(rest.partition("Those that are no defaults")[0])
    resolved = config.load(TrainSettings, tmp_path / "shown.yaml")
    assert config.to_dict(resolved) == told["settings"]


def test_a_warm_up_as_long_as_the_run_is_told(tmp_path, recipe, capsys):
    message = "optimizer.warmup_steps=10 is not shorter than the run, which has 10 steps"
    plan.show(foreseen(recipe, "optimizer.warmup_steps=10"))
    assert message in " ".join(capsys.readouterr().out.split())
    assert foreseen(recipe, "optimizer.warmup_steps=9")["warnings"] == []
    train_here(recipe, f"output={tmp_path}/run", "optimizer.warmup_steps=10")
    assert message in capsys.readouterr().out


def test_an_mfu_above_1_is_refused(recipe):
    with pytest.raises(ValueError, match=r"--mfu=40\.0 must be a share above 0 and up to 1"):
        foresee(config.load(TrainSettings, recipe), 1, mfu=40.0)


@pytest.mark.parametrize(
    "override, message",
    [
        ("data.shards=''", "set data.shards"),
        ("evaluation={benchmarks: [retrieval=/nowhere.jsonl]}", "/nowhere.jsonl"),
        ("profile={steps: 1, rank: 1}", "profile.rank=1 is none of the 1 processes"),
        ("micro_batches=3", "micro_batches=3 must divide the 8 samples"),
        ("batch_size=64", "40 samples of an epoch do not fill one global batch of 64"),
        ("loss.objective=siglip", "loss.objective=siglip needs a model with a logit bias"),
        ("loss.objective=fscclip model.config.vision_cfg.layers=[1,1,1,1]", "need a ViT"),
        ("loss.objective=fscclip model.text_layout=padded", "set it to auto or trees"),
    ],
)
def test_it_refuses_what_the_training_would(tmp_path, recipe, override, message):
    overrides = [override] if "{" in override else override.split()
    with pytest.raises(ValueError, match=message):
        foreseen(recipe, *overrides)
    with pytest.raises(ValueError, match=message):
        train_here(recipe, f"output={tmp_path}/run", *overrides)


def test_it_says_what_does_not_fit(recipe, monkeypatch, capsys):
    monkeypatch.setattr("hnpretrain.train.machine.budget", lambda *_: 10**6)
    plan.show(foreseen(recipe))
    shown = " ".join(capsys.readouterr().out.split())
    assert "micro-batches 8, of 1 samples" in shown
    assert "is estimated to take" in shown


def test_the_command_needs_neither_deepspeed_nor_a_group(tmp_path, recipe):
    arguments = ["hnpretrain", "plan", str(recipe), "seed=3", "--json", f"{tmp_path}/plan.json"]
    code = (
        f"import sys; sys.argv = {arguments}\n"
        "from hnpretrain import cli\n"
        "cli.app(standalone_mode=False)\n"
        "import torch.distributed\n"
        "assert 'deepspeed' not in sys.modules\n"
        "assert not torch.distributed.is_initialized()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        env=clean_environment(),
    )
    assert done.returncode == 0, done.stderr
    assert "10: 2 epochs of 5, of 8 samples" in done.stdout
    assert json.loads((tmp_path / "plan.json").read_text())["settings"]["seed"] == 3
