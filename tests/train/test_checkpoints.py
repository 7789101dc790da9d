"""What a checkpoint holds and when it is there; which stages and numbers of ranks go on from it."""

import os
import shutil

import pytest
import torch
from safetensors.torch import load_file

from hnpretrain.models import export, load
from hnpretrain.runs import latest_checkpoint
from hnpretrain.train import checkpoint, durable, loop
from hnpretrain.train.checkpoint import CheckpointSettings
from hnpretrain.train.convert import convert
from hnpretrain.train.edge import Wish
from hnpretrain.train.log import read_log
from tests.support.training import loss_lines, train_here, write_recipe
from tests.train.many_runs import FULL_DISK, train_all

STAGES = (0, 1, 2, 3)
CLIPPED = "optimizer.max_grad_norm=0.5"  # see test_caching.py


def averages_of(run):
    return load_file(latest_checkpoint(run) / "open_clip_model_ema.safetensors")


def steps_of(run):
    return [line["global_step"] for line in read_log(run, "checkpoint")]


def test_by_minutes(tmp_path, recipe):
    """Any time is up by the next step, and the last step is always saved."""
    train_here(recipe, f"output={tmp_path}/run", "checkpoint.minutes=1e-9", "checkpoint.keep=9")
    assert steps_of(tmp_path / "run") == [1, 2, 3, 4, 5]
    train_here(recipe, f"output={tmp_path}/other", "checkpoint.minutes=60", "checkpoint.every=2")
    assert steps_of(tmp_path / "other") == [2, 4, 5]
    for minutes in (-1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"checkpoint\.minutes="):
            CheckpointSettings(minutes=minutes)


@pytest.mark.parametrize("zero_stage", [0, 3])
def test_all_files_are_on_the_disk_before_latest_names_them(
    tmp_path, recipe, monkeypatch, zero_stage
):
    synced, write = set(), checkpoint.storage.write_bytes
    sync = durable.sync

    def recorded(path):
        sync(path)
        synced.add(path)

    def written(path, data):
        if path.endswith("latest"):
            folder = tmp_path / "run/checkpoints" / data.decode()
            files = {file for file in folder.iterdir() if file.name != "state.json"}
            assert len(files) >= 3
            assert files <= synced
            assert folder in synced
        write(path, data)

    monkeypatch.setattr(durable, "sync", recorded)
    monkeypatch.setattr(checkpoint, "sync", recorded)
    monkeypatch.setattr(checkpoint.storage, "write_bytes", written)
    train_here(recipe, f"output={tmp_path}/run", f"zero_stage={zero_stage}", "ema=0.9")
    assert latest_checkpoint(tmp_path / "run").name == "step_00000005"


NO_ROOM = OSError(28, "No space left on device")


@pytest.fixture
def full_disk(monkeypatch):
    """Refuses what torch saves for given checkpoints."""
    save = torch.save

    def at(*steps):
        def refusing(state, path, **options):
            if any(f"step_{step:08d}" in str(path) for step in steps):
                save(state, path, **options)
                os.truncate(path, 100)
                raise NO_ROOM
            save(state, path, **options)

        monkeypatch.setattr(torch, "save", refusing)

    return at


def test_a_full_disk_leaves_the_run_going(tmp_path, recipe, full_disk, capsys):
    full_disk(2, 3)
    run = tmp_path / "run"
    train_here(recipe, f"output={run}", "checkpoint.every=1", "checkpoint.keep=9")
    assert steps_of(run) == [1, 4, 5]
    assert sorted(p.name for p in (run / "checkpoints").glob("step*")) == [
        f"step_{n:08d}" for n in (1, 4, 5)
    ]
    assert "step_00000002 could not be saved (rank 0): [Errno 28] No space" in (
        capsys.readouterr().out
    )
    failed = [line["global_step"] for line in read_log(run, "checkpoint failed")]
    assert failed == [2, 3]


def test_a_last_checkpoint_that_fails_is_an_error(tmp_path, recipe, full_disk):
    full_disk(5)
    run = tmp_path / "run"
    with pytest.raises(OSError, match=r"step_00000005 could not be saved .* No space"):
        train_here(recipe, f"output={run}", "checkpoint.every=2")
    assert latest_checkpoint(run).name == "step_00000004"
    assert not (run / "checkpoints/step_00000005").exists()


def test_a_file_of_the_main_rank_alone_that_fails(tmp_path, recipe, monkeypatch):
    def refuse(*_):
        raise RuntimeError("no room")

    monkeypatch.setattr(checkpoint, "write_config", refuse)
    with pytest.raises(OSError, match=r"step_00000005 could not be saved \(rank 0\): no room"):
        train_here(recipe, f"output={tmp_path}/run")
    assert not list((tmp_path / "run/checkpoints").iterdir())


@pytest.fixture(scope="module")
def of_two_ranks(tmp_path_factory, shards):
    """Runs of two ranks, 20 steps long, at each stage; and shorter ones to go on from."""
    folder = tmp_path_factory.mktemp("two")
    path = write_recipe(folder / "recipe.yaml", shards, batch_size=8)
    long = [(f"output={folder}/long{n}", f"zero_stage={n}", "epochs=4") for n in STAGES]
    short = [(f"output={folder}/short{n}", f"zero_stage={n}", "epochs=2") for n in STAGES]
    full = FULL_DISK + "step_00000002"
    refused = [(f"output={folder}/refused", "zero_stage=2", "checkpoint.every=2", full)]
    train_all(path, [(*options, CLIPPED, "ema=0.9") for options in (*long, *short, *refused)])
    return folder


def copy(run, to):
    """Without what a test may have made of it."""
    shutil.copytree(run, to, ignore=shutil.ignore_patterns("whole_state.safetensors"))


@pytest.fixture(scope="module")
def not_converted(tmp_path_factory, shards, of_two_ranks):
    """Gone on with at stage 0, with one rank."""
    folder = tmp_path_factory.mktemp("plain")
    shutil.copytree(of_two_ranks / "short0", folder / "run")
    path = write_recipe(folder / "recipe.yaml", shards, batch_size=8)
    train_here(path, f"output={folder}/run", "epochs=4", CLIPPED, "ema=0.9")
    return folder / "run"


def agree(one, other):
    assert len(loss_lines(one)) == len(loss_lines(other))
    for a, b in zip(loss_lines(one), loss_lines(other), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)


@pytest.mark.parametrize("zero_stage", [1, 2, 3])
def test_stages_give_the_same_losses_over_20_steps(of_two_ranks, zero_stage):
    agree(of_two_ranks / "long0", of_two_ranks / f"long{zero_stage}")
    assert len(loss_lines(of_two_ranks / "long0")) == 20


def test_one_rank_that_cannot_write_leaves_all_going(of_two_ranks):
    run = of_two_ranks / "refused"
    (failed,) = read_log(run, "checkpoint failed")
    assert failed["global_step"] == 2
    assert "step_00000002 could not be saved (rank 1)" in failed["error"]
    assert steps_of(run) == [4, 5]
    assert not (run / "checkpoints/step_00000002").exists()


@pytest.mark.parametrize("before, after", [(0, 3), (1, 0), (2, 2), (3, 1)])
def test_a_converted_run_goes_on_at_another_stage_with_one_rank(
    tmp_path, recipe, of_two_ranks, not_converted, before, after
):
    run = tmp_path / "run"
    copy(of_two_ranks / f"short{before}", run)
    options = (f"output={run}", f"zero_stage={after}", "epochs=4", CLIPPED, "ema=0.9")
    with pytest.raises(ValueError, match=rf"zero_stage={before} by 2 .* checkpoint convert {run}"):
        train_here(recipe, *options)
    convert(run)
    train_here(recipe, *options)
    agree(run, not_converted)
    one, two = (averages_of(each) for each in (run, not_converted))
    for name, average in one.items():
        torch.testing.assert_close(average, two[name], rtol=1e-4, atol=1e-5)


def test_what_is_converted_holds_all(of_two_ranks):
    """Each stage's state, put together, is that of stage 0, which is in one piece."""
    folders = [convert(of_two_ranks / f"short{stage}") for stage in STAGES]
    files = [folder / "whole_state.safetensors" for folder in folders]
    wholes = [load_file(file) for file in files]
    assert files[0].stat().st_mode == (folders[0] / "state.json").stat().st_mode
    for whole in wholes[1:]:
        assert whole.keys() == wholes[0].keys()
        for name, tensor in whole.items():
            assert tensor.shape == wholes[0][name].shape
            torch.testing.assert_close(tensor, wholes[0][name], rtol=1e-3, atol=1e-6)


def test_what_is_no_checkpoint_or_damaged_is_not_converted(tmp_path, of_two_ranks):
    with pytest.raises(ValueError, match="is neither a checkpoint nor a run with one"):
        convert(tmp_path)
    run = tmp_path / "run"
    copy(of_two_ranks / "short2", run)
    (latest_checkpoint(run) / "zero_pp_rank_1_mp_rank_00_optim_states.pt").unlink()
    with pytest.raises(ValueError, match=r"cannot be read: .*zero_pp_rank_1"):
        convert(run)
    assert not (latest_checkpoint(run) / "whole_state.safetensors").exists()


@pytest.mark.parametrize("zero_stage", [0, 3])
def test_averages_are_what_the_formula_says(tmp_path, recipe, zero_stage):
    run, decay = tmp_path / "run", 0.75
    options = (f"zero_stage={zero_stage}", "checkpoint.every=1", "checkpoint.keep=9")
    train_here(recipe, f"output={run}", f"ema={decay}", "model.lock_image=true", *options)
    folders = sorted((run / "checkpoints").glob("step_*"))
    weights = [load(str(folder)).model.state_dict() for folder in folders]
    averages = [load(str(folder), ema=True).model.state_dict() for folder in folders]
    for before, weight, after in zip(averages, weights[1:], averages[1:], strict=False):
        for name, tensor in after.items():
            expected = decay * before[name] + (1 - decay) * weight[name]
            torch.testing.assert_close(tensor, expected, rtol=1e-5, atol=1e-7)
    moved = {name for name, x in averages[-1].items() if not torch.equal(x, weights[-1][name])}
    assert "token_embedding.weight" in moved
    assert not any(name.startswith("visual.") for name in moved)


@pytest.mark.parametrize("zero_stage", [0, 3])
def test_averages_go_on_exactly_and_begin_late(tmp_path, recipe, monkeypatch, zero_stage):
    options = (f"zero_stage={zero_stage}", "epochs=2", "checkpoint.every=3")
    train_here(recipe, f"output={tmp_path}/alone", "ema=0.9", *options)
    take = loop.train_step

    def cut_off(run, batches, rate, _):
        return take(run, batches, rate, Wish(stop=run.progress.global_step == 4))

    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", cut_off)
        for run, ema in (("cut", 0.9), ("late", 0)):
            with pytest.raises(SystemExit):
                train_here(recipe, f"output={tmp_path}/{run}", f"ema={ema}", *options)
    for run in ("cut", "late"):
        train_here(recipe, f"output={tmp_path}/{run}", "ema=0.9", *options)
    alone, cut, late = (averages_of(tmp_path / run) for run in ("alone", "cut", "late"))
    assert all(torch.equal(alone[name], cut[name]) for name in alone)
    assert alone.keys() == late.keys()
    assert any(not torch.equal(alone[name], late[name]) for name in alone)


def test_averages_are_exported_when_asked_for(tmp_path, recipe):
    run = tmp_path / "run"
    train_here(recipe, f"output={run}", "ema=0.5")
    export(str(run), str(tmp_path / "last"))
    export(str(run), str(tmp_path / "averaged"), ema=True)
    last, averaged = (
        load(str(tmp_path / name)).model.state_dict() for name in ("last", "averaged")
    )
    assert not torch.equal(last["visual.proj"], averaged["visual.proj"])
    expected = averages_of(run)
    assert torch.equal(averaged["visual.proj"], expected["visual.proj"])
    train_here(recipe, f"output={tmp_path}/plain")
    with pytest.raises(ValueError, match="it was trained without `ema`"):
        load(str(tmp_path / "plain"), ema=True)
    with pytest.raises(ValueError, match="is no checkpoint"):
        load("ViT-B-32:openai", ema=True)
