"""What one training run does, beside going on after a kill."""

import json

import pytest
import torch

from hnpretrain.models import export, load
from hnpretrain.train.log import read_log
from tests.support.datasets import tile, write_dataset
from tests.support.training import loss_lines, train_here, write_recipe


def recipe(folder, shards, **settings):
    return write_recipe(
        folder / "recipe.yaml", shards, **{"epochs": 2, "batch_size": 8, **settings}
    )


def test_the_loss_falls_and_the_log_tells_it(tmp_path, shards, capsys):
    train_here(recipe(tmp_path, shards, epochs=6), f"output={tmp_path}/run")
    lines = read_log(tmp_path / "run", "step")
    assert [line["global_step"] for line in lines] == list(range(1, 31))
    assert sum(line["loss"] for line in lines[-5:]) < sum(line["loss"] for line in lines[:5])
    assert lines[-1]["samples"] == 240
    assert lines[0]["negatives"] == 16
    console = capsys.readouterr().out
    assert "40 samples in 3 shards | 5 steps of 8 an epoch, 6 epochs" in console
    assert "step 30/30 | epoch 5 | loss " in console


def test_a_line_tells_what_the_step_made_of_the_device(tmp_path, shards, capsys):
    path = recipe(tmp_path, shards, epochs=1)
    train_here(path, f"output={tmp_path}/run", "log.peak_tflops=0.001", "loss.objective=ceclip")
    lines = read_log(tmp_path / "run", "step")
    for line in lines:
        assert line["mfu"] == pytest.approx(line["tflops"] / 0.001)
        assert line["samples_per_second"] == pytest.approx(8 / line["step_seconds"])
        assert line["memory"] > 1e8
    # The same work each step, but for its texts.
    work = [line["tflops"] * line["step_seconds"] for line in lines]
    assert max(work) < 1.2 * min(work)
    last, _ledger = capsys.readouterr().out.splitlines()[-2:]
    shown = lines[-1]
    terms = ("contrastive", "rank", "intra_modal")
    assert f"({' '.join(f'{name} {shown[name]:.4f}' for name in terms)})" in last
    assert f" | MFU {shown['mfu']:.1%} | {shown['memory'] / 1e9:.2f} GB | grad " in last

    # DeepSpeed cuts the weights, and puts a linear function of its own into the towers.
    train_here(path, f"output={tmp_path}/zero3", "log.peak_tflops=0.001", "zero_stage=3")
    cut = read_log(tmp_path / "zero3", "step")
    assert [x["tflops"] * x["step_seconds"] for x in cut] == pytest.approx(work)

    train_here(path, f"output={tmp_path}/other", "loss.objective=clip")
    last, _ledger = capsys.readouterr().out.splitlines()[-2:]
    assert "MFU" not in last  # of a device whose peak is not known
    assert "(" not in last


def test_no_zero_and_zero_agree(tmp_path, shards):
    runs = [tmp_path / f"zero{stage}" for stage in (0, 1, 2, 3)]
    path = recipe(tmp_path, shards)
    for stage, run in enumerate(runs):
        train_here(path, f"output={run}", f"zero_stage={stage}", "optimizer.max_grad_norm=0.5")
    first, *others = [loss_lines(run) for run in runs]
    for other in others:
        for a, b in zip(first, other, strict=True):
            assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
            assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-4)


def test_bf16_stays_close_to_fp32(tmp_path, shards):
    for precision in ("fp32", "bf16"):
        train_here(
            recipe(tmp_path, shards, epochs=1),
            f"output={tmp_path / precision}",
            f"precision={precision}",
        )
    fp32, bf16 = loss_lines(tmp_path / "fp32"), loss_lines(tmp_path / "bf16")
    assert fp32 != bf16
    for a, b in zip(fp32, bf16, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=2e-2)
    weights = load(str(tmp_path / "bf16")).model.state_dict()
    assert {tensor.dtype for tensor in weights.values() if tensor.is_floating_point()} == {
        torch.float32
    }


@pytest.mark.parametrize("zero_stage", [0, 1, 3])
def test_the_logit_scale_is_brought_back_to_100(tmp_path, shards, zero_stage):
    """Also in the copy of the weights that ZeRO steps on, else the next step would undo it."""
    train_here(
        recipe(tmp_path, shards),
        f"output={tmp_path}/run",
        f"zero_stage={zero_stage}",
        "model.config.init_logit_scale=6",
        "optimizer.lr=1e-4",
    )
    first, *others = [line["logit_scale"] for line in loss_lines(tmp_path / "run")]
    assert first > 400
    assert all(90 < scale < 100.01 for scale in others)
    assert others[-1] < 100  # and it can move down from there


def test_a_checkpoint_in_parts_is_a_model(tmp_path, shards):
    """The weights that ZeRO 3 has cut are in it in one piece, and in what is exported from it."""
    path = recipe(tmp_path, shards, epochs=1)
    runs = [tmp_path / f"zero{stage}" for stage in (0, 3)]
    for stage, run in zip((0, 3), runs, strict=True):
        train_here(path, f"output={run}", f"zero_stage={stage}", "optimizer.max_grad_norm=0.5")
    export(str(runs[1]), str(tmp_path / "out"))
    whole, cut, exported = (
        load(str(folder)).model.state_dict() for folder in (*runs, tmp_path / "out")
    )
    assert exported.keys() == cut.keys() == whole.keys()
    for name, tensor in whole.items():
        torch.testing.assert_close(cut[name], tensor, rtol=1e-4, atol=1e-5)
        assert torch.equal(exported[name], cut[name])
    mode = (tmp_path / "out/open_clip_model.safetensors").stat().st_mode
    assert mode == (tmp_path / "out/open_clip_config.json").stat().st_mode


def test_locked_towers_do_not_move(tmp_path, shards):
    path = recipe(tmp_path, shards, epochs=1)
    train_here(
        path,
        f"output={tmp_path}/run",
        "model.lock_image=true",
        "checkpoint.every=1",
        "checkpoint.keep=9",
    )
    first, last = (
        load(str(tmp_path / "run/checkpoints" / name)).model.state_dict()
        for name in ("step_00000001", "step_00000005")
    )
    moved = {name for name in first if not torch.equal(first[name], last[name])}
    assert not any(name.startswith("visual.") for name in moved)
    assert "token_embedding.weight" in moved


def test_more_negatives_than_stored_is_said_once(tmp_path, shards, capsys):
    train_here(recipe(tmp_path, shards), f"output={tmp_path}/run", "data.negatives=5")
    console = capsys.readouterr().out
    assert console.count("data.negatives=5, but these shards hold at most 2 a caption") == 1
    assert loss_lines(tmp_path / "run")[0]["negatives"] == 16


def test_broken_samples_are_named_in_the_log_and_stop_the_run(tmp_path):
    from dataclasses import replace

    samples = [tile(i) for i in range(40)]
    samples[3] = replace(samples[3], image=b"no image")
    write_dataset(tmp_path / "shards", samples, per_shard=20)
    path = recipe(tmp_path, tmp_path / "shards", epochs=3)
    train_here(path, f"output={tmp_path}/run")  # too few samples to judge the share
    (reject, *_) = read_log(tmp_path / "run", "rejected")
    assert (reject["key"], reject["reason"]) == ("000003", "not_an_image")
    assert loss_lines(tmp_path / "run")[-1]["ledger"]["rejected"] == {"not_an_image": 3}

    with pytest.raises(ValueError, match=r"of 1000 samples were rejected, more than"):
        train_here(path, f"output={tmp_path}/long", "epochs=30", "data.max_reject_share=0.02")


@pytest.mark.parametrize(
    "override, message",
    [
        ("data.shards=''", "set data.shards"),
        ("data.shards=/nowhere", "index.json does not exist: finish"),
        ("batch_size=64", "40 samples of an epoch do not fill one global batch of 64"),
        ("data.streams=3", "streams=3 must divide the global batch_size=8"),
        ("precision=fp8", "precision='fp8' is not one of fp32, bf16, fp16"),
        ("zero_stage=4", "zero_stage=4 is not one of 0, 1, 2, 3"),
        ("ema=1", "ema=1.0 must be a decay from 0"),
        ("max_skipped=-1", "max_skipped=-1 must not be negative"),
        ("collective_timeout=1e-9", r"collective_timeout=1e-09 must be a number .* from 0.01 to"),
        (
            "collective_timeout=1e13",
            r"collective_timeout=10000000000000\.0 must be a number .* to 43200",
        ),
        ("collective_timeout=nan", "collective_timeout=nan must be a number of minutes"),
        (f"seed={2**70}", f"seed={2**70} must be from 0 to {2**63 - 1}"),
        ("seed=-1", "seed=-1 must be from 0 to"),
        ("loss.scope=globl", "did you mean 'global'"),
        ("loss.objective=ce-clip", "did you mean 'ceclip'"),
        ("loss.weights.rnk=0.2", "did you mean 'rank'"),
        ("model.arch=ViT-B-33", "set either model.arch"),
        ("optimiser.lr=1", "unknown key optimiser; did you mean 'optimizer'"),
    ],
)
def test_wrong_settings(tmp_path, shards, override, message):
    with pytest.raises(ValueError, match=message):
        train_here(recipe(tmp_path, shards), f"output={tmp_path}/run", override)
    assert not (tmp_path / "run").exists()


def test_the_resolved_config_is_kept(tmp_path, shards):
    path = recipe(tmp_path, shards, epochs=1, micro_batches=0)
    largest = (f"seed={2**63 - 1}", "collective_timeout=43200")
    train_here(path, f"output={tmp_path}/run", *largest)
    text = (tmp_path / "run/config.yaml").read_text()
    assert "seed: 9223372036854775807\n" in text
    assert "streams: 8\n" in text  # chosen, since the recipe gives none
    assert "micro_batches: 1\n" in text  # likewise
    *_, last, ledger = map(json.loads, (tmp_path / "run/log.jsonl").read_text().splitlines())
    assert last == {"event": "checkpoint", "global_step": 5}
    assert (ledger["event"], ledger["read"], ledger["decoded"]) == ("ledger", 40, 40)


def test_more_processes_than_gpus_are_refused(monkeypatch):
    from hnpretrain.train import distributed

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setenv("LOCAL_RANK", "4")
    with pytest.raises(ValueError, match="local rank 4 has no GPU, since this process sees 4"):
        distributed._device()
