"""Steps that are not finite are skipped, counted, named and bounded; fp16 scales its loss."""

import json
import math
import shutil

import pytest
import torch
from safetensors.torch import load_file

from hnpretrain.losses import HardNegativeContrastiveLoss
from hnpretrain.train import finite, loop
from hnpretrain.train.convert import convert
from hnpretrain.train.edge import Wish
from hnpretrain.train.finite import LossScale, Skips, is_overflow
from hnpretrain.train.log import read_log
from tests.support.training import loss_lines, train_here

CLIPPED = "optimizer.max_grad_norm=0.5"  # see test_caching.py
EACH_STEP = ("checkpoint.every=1", "checkpoint.keep=99")


@pytest.fixture
def poison(monkeypatch):
    """Makes the loss or the gradients not finite at given forward passes of the loss, from 0."""
    forward = HardNegativeContrastiveLoss.forward

    def at(steps, what):
        calls = iter(range(10**6))

        def poisoned(self, image, *rest):
            if next(calls) in steps:
                if what == "loss":
                    image = image * torch.nan
                else:
                    image.register_hook(lambda gradient: gradient * torch.inf)
            return forward(self, image, *rest)

        monkeypatch.setattr(HardNegativeContrastiveLoss, "forward", poisoned)

    return at


def state_of(run, step):
    return json.loads((run / f"checkpoints/step_{step:08d}/state.json").read_text())


@pytest.mark.parametrize(
    "zero_stage, what",
    [*((n, "loss") for n in range(4)), *((n, "norm of the gradients") for n in (0, 3))],
)
def test_a_skipped_step_changes_nothing(tmp_path, recipe, poison, zero_stage, what):
    """Neither weights, moments and averages, nor what the loss remembers."""
    poison({2}, what)
    run = tmp_path / "run"
    options = (f"zero_stage={zero_stage}", "ema=0.9", "loss.objective=ceclip", *EACH_STEP)
    train_here(recipe, f"output={run}", "micro_batches=2", *options)
    states = {}
    for step in (2, 3, 4):
        checkpoint = convert(run / f"checkpoints/step_{step:08d}")
        whole = load_file(checkpoint / "whole_state.safetensors")
        averages = load_file(checkpoint / "open_clip_model_ema.safetensors")
        states[step] = whole | {f"average.{name}": x for name, x in averages.items()}
    for name, tensor in states[2].items():
        assert torch.equal(tensor, states[3][name]), name
    moved = {n for n, x in states[3].items() if not torch.equal(x, states[4][n])}
    for kind in ("weight", "exp_avg", "exp_avg_sq", "average"):
        assert f"{kind}.visual.proj" in moved
    assert all(x.isfinite().all() for x in states[4].values())
    assert state_of(run, 2)["loss"] == state_of(run, 3)["loss"] != state_of(run, 4)["loss"]

    (skip,) = read_log(run, "skipped")
    assert skip["global_step"] == 3
    assert skip["reason"].startswith(f"step 2, the {what} is nan, of the batch that begins with 00")
    assert [line["skipped"] for line in read_log(run, "step")] == [0, 0, 1, 1, 1]
    skips = state_of(run, 3)["progress"]["skips"]
    assert (skips["total"], len(skips["in_a_row"])) == (1, 1)
    assert state_of(run, 4)["progress"]["skips"] == {"total": 1, "in_a_row": [], "overflows": 0}


@pytest.mark.parametrize("before, after", [(0, 3), (2, 0), (3, 2)])
def test_a_run_that_has_only_skipped_goes_on(tmp_path, recipe, poison, before, after):
    """At its stage and at another one; the optimizer has no moments to save yet."""
    poison({0}, "loss")
    run, stage = tmp_path / "run", f"zero_stage={before}"
    train_here(recipe, f"output={run}", stage, CLIPPED, *EACH_STEP)
    (run / "checkpoints/latest").write_text("step_00000001")
    for name, now in (("same", before), ("other", after)):
        shutil.copytree(run, tmp_path / name)
        if name == "other":
            whole = load_file(convert(tmp_path / name) / "whole_state.safetensors")
            assert not whole["exp_avg.visual.proj"].any()
        train_here(recipe, f"output={tmp_path / name}", f"zero_stage={now}", CLIPPED)
        pairs = zip(loss_lines(run), loss_lines(tmp_path / name), strict=True)
        for one, two in list(pairs)[1:]:
            assert two["loss"] == pytest.approx(one["loss"], rel=1e-5)


def test_a_log_line_of_a_skipped_step_is_json(tmp_path, recipe, poison):
    poison({1}, "loss")
    train_here(recipe, f"output={tmp_path}/run")
    text = (tmp_path / "run/log.jsonl").read_text()
    lines = [json.loads(line, parse_constant=pytest.fail) for line in text.splitlines()]
    assert [line["loss"] is None for line in lines if line["event"] == "step"][:3] == [
        False, True, False,
    ]  # fmt: skip


@pytest.mark.parametrize("zero_stage", [0, 2])
def test_too_many_in_a_row_stop_the_run_and_are_named(tmp_path, recipe, poison, zero_stage):
    poison({0, 2, 3, 4}, "gradients")
    options = (f"zero_stage={zero_stage}", "max_skipped=2", *EACH_STEP)
    with pytest.raises(ValueError, match=r"3 steps in a row .* max_skipped=2: step 2, .*; step 3"):
        train_here(recipe, f"output={tmp_path}/run", *options)
    assert (tmp_path / "run/checkpoints/latest").read_text() == "step_00000004"
    assert len(read_log(tmp_path / "run", "skipped")) == 4


def test_batch_norm_forgets_a_batch_that_is_not_finite():
    norm = torch.nn.BatchNorm1d(2)
    norm(torch.randn(8, 2))
    before = {name: x.clone() for name, x in norm.state_dict().items()}
    remembered = finite.Remembered(torch.nn.Identity(), norm)
    norm(torch.full((8, 2), torch.nan))
    assert not norm.running_mean.isfinite().any()
    remembered.put_back()
    assert all(torch.equal(x, before[name]) for name, x in norm.state_dict().items())


def test_the_scale_moves_as_grad_scalers_does():
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    scale = LossScale.first_of("fp16")
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], lr=0.0)
    overflows = {3, 4, 1500, 3501, 3502}
    for step in range(6000):
        assert scale.value == scaler.get_scale(), step
        scaler.scale(weight.sum()).backward()
        if step in overflows:
            weight.grad.fill_(torch.inf)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        scale = scale.after(step in overflows)
    assert scale.value == 2.0**13
    assert LossScale.first_of("bf16") == LossScale.first_of("fp32") == LossScale(1.0)


def test_what_counts_as_an_overflow():
    assert is_overflow(1.0, math.inf, LossScale(2.0))
    assert is_overflow(1.0, math.nan, LossScale(2.0))
    assert not is_overflow(1.0, math.inf, LossScale(1.0))  # a smaller scale would not help
    assert not is_overflow(math.nan, math.nan, LossScale(2.0))
    assert not is_overflow(1.0, 1.0, LossScale(2.0))
    skips = Skips().skipped("a").overflowed().skipped("b")
    skips.check(2)
    with pytest.raises(ValueError, match=r"2 steps in a row .* max_skipped=1: a; b"):
        skips.check(1)
    skips.taken().check(0)


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_fp16_stays_close_to_fp32(tmp_path, recipe, monkeypatch, zero_stage):
    monkeypatch.setattr(finite, "_FIRST_SCALE", 2.0**8)  # these gradients are large
    options = (f"zero_stage={zero_stage}", "micro_batches=2", "optimizer.max_grad_norm=0.5")
    for precision in ("fp32", "fp16"):
        train_here(recipe, f"output={tmp_path / precision}", f"precision={precision}", *options)
    fp32, fp16 = loss_lines(tmp_path / "fp32"), loss_lines(tmp_path / "fp16")
    for a, b in zip(fp32, fp16, strict=True):
        assert 0 < abs(a["loss"] - b["loss"]) < 2e-3
        assert b["grad_norm"] == pytest.approx(a["grad_norm"], rel=2e-2)  # without the scale
        assert (b["loss_scale"], b["overflows"], b["skipped"]) == (2.0**8, 0, 0)
    assert "loss_scale" not in fp32[0]


@pytest.mark.parametrize("zero_stage", [0, 3])
def test_overflows_lower_the_scale_and_are_counted_apart(tmp_path, recipe, monkeypatch, zero_stage):
    """And a run that goes on goes on with scale and counts."""
    monkeypatch.setattr(finite, "_FIRST_SCALE", 2.0**22)
    options = (f"zero_stage={zero_stage}", "precision=fp16", "max_skipped=0", "checkpoint.every=3")
    train_here(recipe, f"output={tmp_path}/alone", "epochs=2", *options)
    alone = loss_lines(tmp_path / "alone")
    counts = [line["overflows"] for line in alone]
    assert counts[0] == 1
    assert counts[-1] < len(counts)  # it found a scale that fits
    assert [line["loss_scale"] for line in alone] == [2.0 ** (22 - n) for n in counts]
    assert {line["skipped"] for line in alone} == {0}
    assert len(read_log(tmp_path / "alone", "overflow")) == counts[-1]

    take = loop.train_step

    def cut_off(run, batches, rate, _):
        return take(run, batches, rate, Wish(stop=run.progress.global_step == 3))

    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", cut_off)
        with pytest.raises(SystemExit):
            train_here(recipe, f"output={tmp_path}/cut", "epochs=2", *options)
    train_here(recipe, f"output={tmp_path}/cut", "epochs=2", *options)
    assert loss_lines(tmp_path / "cut") == alone
