"""`hnpretrain bench step` on a tiny model: figures, exactness, and what is refused."""

import json

import open_clip
import pytest
import torch
from typer.testing import CliRunner

from hnpretrain.bench.contenders import clip_loss
from hnpretrain.bench.trainers import open_clip_optimizer, open_clip_trainer
from hnpretrain.cli import app
from hnpretrain.data.samples import Chunk
from hnpretrain.models import ModelSettings, build


def _run(*arguments):
    return CliRunner().invoke(app, ["bench", "step", *arguments, "--device", "cpu"])


def test_rows_hold_time_memory_and_exactness(tmp_path, tiny_model, captions):
    file = tmp_path / "rows.json"
    sizes = ("--batch", "8", "--negatives", "2", "--repeats", "2", "--check-steps", "3")
    result = _run(captions, "--arch", tiny_model, *sizes, "--json", str(file))
    assert result.exit_code == 0, result.output
    found = {row["case"]: row for row in json.loads(file.read_text())}
    assert list(found) == ["ours, K negatives", "open_clip, no negatives", "open_clip, K negatives"]
    for row in found.values():
        assert row["samples_per_second"] == pytest.approx(8 / row["seconds"])
        assert row["ratio"] == pytest.approx(row["ours"] / row["peer"])
        assert row["peak_bytes"] > 0
    tokens = [row["text_tokens"] for row in found.values()]
    assert tokens[1:] == [8 * 77, 8 * 3 * 77]
    assert tokens[0] < tokens[1]
    ours, *others = found.values()
    assert ours["check_steps"] == 3
    assert ours["loss_difference"] < 1e-4
    assert not any("loss_difference" in row for row in others)
    for shown in ("K=2", "training step", "3 steps, beside padded rows: losses differ by at most"):
        assert shown in result.output


def test_without_negatives_in_micro_batches(tmp_path, tiny_model, captions):
    file = tmp_path / "rows.json"
    sizes = ("--batch", "8", "--negatives", "0", "--repeats", "1", "--micro-batches", "2")
    result = _run(captions, "--arch", tiny_model, *sizes, "--dtype", "bf16", "--json", str(file))
    assert result.exit_code == 0, result.output
    rows = json.loads(file.read_text())
    assert [row["case"] for row in rows] == ["ours, no negatives", "open_clip, no negatives"]
    assert all("loss_difference" not in row for row in rows)


def test_dropout_is_no_difference(tmp_path, tiny_hugging_face_model, captions):
    file = tmp_path / "rows.json"
    sizes = ("--batch", "4", "--negatives", "1", "--repeats", "1", "--check-steps", "3")
    result = _run(captions, "--arch", tiny_hugging_face_model, *sizes, "--json", str(file))
    assert result.exit_code == 0, result.output
    assert json.loads(file.read_text())[0]["loss_difference"] < 1e-4


def test_open_clips_step_is_that_of_its_own_training(tiny_config):
    def model():
        torch.manual_seed(0)
        return build(ModelSettings(config=tiny_config)).model

    theirs = model()
    token_BCL = torch.randint(49000, (6, 3, 77))
    chunk = Chunk(
        tuple("abcdef"), torch.randn(6, 3, 32, 32), token_BCL, torch.ones(6, 3, dtype=torch.bool)
    )
    image, text, scale = theirs(chunk.image_BCHW, token_BCL[:, 0])
    loss = open_clip.ClipLoss()(image, text, scale)
    loss.backward()
    expected = {name: x.grad for name, x in theirs.named_parameters()}
    for micro_batches in (1, 3):
        ours = model()
        trainer = open_clip_trainer(ours, open_clip_optimizer(ours), clip_loss(), False, "fp32")
        total = trainer.step(trainer.lay_out(chunk, micro_batches), 1e-3)
        torch.testing.assert_close(total, loss.detach())
        for name, parameter in ours.named_parameters():
            # The scale is in the loss of each of open_clip's micro-batches.
            times = micro_batches if name == "logit_scale" else 1
            torch.testing.assert_close(parameter.grad, times * expected[name], rtol=1e-3, atol=1e-6)
            assert not torch.equal(parameter, theirs.get_parameter(name)), name


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("--batch", "9", "--micro-batches", "2"), "--batch 9 is no multiple of --micro-batches 2"),
        (("--dtype", "fp8"), "--dtype 'fp8' is not one of fp32, bf16"),
        (("--check-steps", "-1"), "should be greater than or equal to 0"),
    ],
)
def test_wrong_options(captions, arguments, message):
    result = _run(captions, *arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.output.replace("\u2502", " ").split())


def test_a_model_that_open_clip_cannot_build(tmp_path, tiny_config, captions):
    file = tmp_path / "model.json"
    file.write_text(json.dumps({**tiny_config, "vision_cfg": {"depth": 3}}))
    result = _run(captions, "--arch", str(file), "--batch", "2")
    assert isinstance(result.exception, ValueError)
    assert "open_clip cannot build" in str(result.exception)
