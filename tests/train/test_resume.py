"""A run that is killed anywhere and started again must tell the same story as one left alone."""

import json
import os
import random
import shutil
from pathlib import Path

import open_clip
import pytest
import torch
from torch.distributed import DistBackendError

from hnpretrain import config
from hnpretrain.models import build, load
from hnpretrain.runs import latest_checkpoint
from hnpretrain.train import checkpoint, loop
from hnpretrain.train.edge import Wish
from hnpretrain.train.log import read_log
from hnpretrain.train.settings import TrainSettings
from tests.support.datasets import tile, write_dataset
from tests.support.training import (
    TINY_MODEL,
    kill_after,
    loss_lines,
    start,
    train,
    train_here,
    write_recipe,
)
from tests.train.many_runs import train_all

STEPS = 24


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    write_dataset(folder, (tile(i) for i in range(100)), per_shard=17)
    return folder


def recipe(folder, shards, **settings):
    fields = {"epochs": 2, "batch_size": 8, "checkpoint": "{every: 5}", **settings}
    return write_recipe(folder / "recipe.yaml", shards, **fields)


def test_killed_at_a_random_step_and_resumed(tmp_path, shards):
    """At each stage; `make prove` kills one run many times."""
    path = recipe(tmp_path, shards)
    stages = {stage: f"zero_stage={stage}" for stage in (0, 2, 3)}
    train_all(path, [(f"output={tmp_path}/alone{stage}", zero) for stage, zero in stages.items()])
    for stage, zero in stages.items():
        killed = tmp_path / f"killed{stage}"
        step = random.randrange(6, STEPS - 1)  # after the first checkpoint
        print(f"stage {stage} killed at step {step}")  # shown if the test fails
        kill_after(start(path, f"output={killed}", zero), killed, step)
        assert loss_lines_of_crash(killed) < STEPS
    again = [(f"output={tmp_path}/killed{stage}", zero) for stage, zero in stages.items()]
    assert train_all(path, again).count("going on at") == len(stages)
    for stage in stages:
        assert len(loss_lines(tmp_path / f"alone{stage}")) == STEPS
        assert loss_lines(tmp_path / f"killed{stage}") == loss_lines(tmp_path / f"alone{stage}")


def loss_lines_of_crash(run):
    """Whole lines in a log whose last one may be cut off."""
    return (run / "log.jsonl").read_bytes().count(b'"event": "step"')


@pytest.mark.parametrize("zero_stage", [0, 3])
def test_a_run_goes_on_without_the_weights_that_it_began_with(
    tmp_path, shards, monkeypatch, zero_stage
):
    """Also with those of a locked tower."""
    settings = config.load(TrainSettings, recipe(tmp_path, shards)).model
    (tmp_path / "tiny-resumed.json").write_text(json.dumps(settings.config))
    open_clip.add_model_config(tmp_path)
    weights = build(settings).model.state_dict()
    weights["logit_scale"] = weights["logit_scale"].squeeze()
    path = recipe(tmp_path, shards)
    named = (
        f"\nmodel: {{arch: tiny-resumed, pretrained: {tmp_path}/weights.pt, lock_image: true}}\n"
    )
    path.write_text(path.read_text().replace(TINY_MODEL, named))
    torch.save(weights, tmp_path / "weights.pt")
    options = (f"zero_stage={zero_stage}", "epochs=1")
    train_here(path, f"output={tmp_path}/alone", *options)
    with monkeypatch.context() as patch:
        stop_after(5, patch)
        with pytest.raises(SystemExit):
            train_here(path, f"output={tmp_path}/cut", *options)
    (tmp_path / "weights.pt").unlink()
    train_here(path, f"output={tmp_path}/cut", *options)
    assert loss_lines(tmp_path / "alone") == loss_lines(tmp_path / "cut")
    alone, cut = (load(str(tmp_path / name)).model.state_dict() for name in ("alone", "cut"))
    assert all(tensor.equal(cut[name]) for name, tensor in alone.items())
    assert cut["visual.proj"].equal(weights["visual.proj"])
    assert not cut["text_projection"].equal(weights["text_projection"])


def stop_after(steps, patch):
    """Trainings are asked to stop in the step with this number."""
    take = loop.train_step

    def stopped(run, batches, rate, _):
        return take(run, batches, rate, Wish(stop=run.progress.global_step + 1 == steps))

    patch.setattr(loop, "train_step", stopped)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, shards):
    """A run of one rank, one epoch long."""
    folder = tmp_path_factory.mktemp("finished")
    train_here(recipe(folder, shards, epochs=1), f"output={folder / 'run'}")
    return folder / "run"


@pytest.fixture
def run(tmp_path, finished):
    """A copy of it to go on with."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def test_a_finished_run_has_nothing_left_to_do(tmp_path, shards, run, finished, capsys):
    """Nor does its config come to tell of settings that trained nothing."""
    before = (run / "config.yaml").read_bytes()
    train_here(recipe(tmp_path, shards, epochs=1), f"output={run}", "optimizer.lr=1e-5")
    assert f"nothing is left to train: {run} is at epoch 1 of epochs=1" in capsys.readouterr().out
    assert loss_lines(run) == loss_lines(finished)
    assert (run / "config.yaml").read_bytes() == before


def test_what_changed_on_the_way_is_said_and_kept(tmp_path, shards, run, capsys):
    train_here(recipe(tmp_path, shards, epochs=2), f"output={run}", "optimizer.lr=1e-5")
    console = capsys.readouterr().out
    assert "going on at epoch 1, step 0" in console
    assert "with optimizer.lr=1e-05, it was 0.001" in console
    assert "with epochs=2, it was 1" in console
    for folder in (run, latest_checkpoint(run)):
        assert "lr: 1.0e-05" in (folder / "config.yaml").read_text()


@pytest.mark.parametrize("zero_stage", [0, 1, 2])
def test_another_number_of_ranks_gives_the_same_losses(tmp_path, shards, finished, zero_stage):
    """The plan gives the same global batches, and neither loss nor gradients depend on W."""
    path = recipe(tmp_path, shards, epochs=1, zero_stage=zero_stage, micro_batches=0)
    train(path, f"output={tmp_path / 'two'}")
    pairs = list(zip(loss_lines(finished), loss_lines(tmp_path / "two"), strict=True))
    assert len(pairs) == STEPS // 2
    for one, two in pairs:
        assert one["loss"] == pytest.approx(two["loss"], rel=1e-4)
        assert one["grad_norm"] == pytest.approx(two["grad_norm"], rel=1e-3)


def test_a_run_goes_on_with_another_number_of_ranks(tmp_path, shards, run):
    other = Path(shutil.copytree(run, tmp_path / "other"))
    path = recipe(tmp_path, shards, epochs=2)
    train_here(path, f"output={run}")
    train(path, f"output={other}")
    for one, two in zip(loss_lines(run), loss_lines(other), strict=True):
        assert one["loss"] == pytest.approx(two["loss"], rel=1e-4)


@pytest.mark.parametrize(
    "override, message",
    [
        ("data.shards={other}", "the shards' index has changed since"),
        ("batch_size=16", "was trained with batch_size=8, now it is 16"),
        ("seed=4", "was trained with seed=0, now it is 4"),
        ("data.block_size=9", "was trained with data.block_size=8, now it is 9"),
        ("data.decode=fast", "was trained with data.decode=exact, now it is fast"),
        ("data.max_pixels=999", "was trained with data.max_pixels=64000000, now it is 999"),
        ("data.negatives=1", "was trained with data.negatives=2, now it is 1"),
        ("optimizer.eps=1e-8", "was trained with optimizer.eps=1e-06, now it is 1e-08"),
        ("zero_stage=1", "was saved at zero_stage=0 by 1 processes, now it is zero_stage=1 and 1"),
        ("loss.scope=global", "was trained with loss.scope=own, now it is global"),
        ("precision=bf16", "was trained with precision=fp32, now it is bf16"),
        ("model.lock_image=true", "was trained with model.lock_image=False, now it is True"),
        ("model.augmentation.scale=[0.5,1]", "was trained with model.augmentation={}"),
        ("model.config.embed_dim=8", "the model has changed since"),
    ],
)
def test_a_run_is_not_continued_on_other_batches(tmp_path, shards, run, override, message):
    other = tmp_path / "other"
    write_dataset(other, (tile(i + 1) for i in range(100)), per_shard=17)
    path = recipe(tmp_path, shards, epochs=1)
    before = {p: p.read_bytes() for p in (run / "log.jsonl", run / "config.yaml")}
    with pytest.raises(ValueError, match=message):
        train_here(path, f"output={run}", override.format(other=other))
    assert all(p.read_bytes() == data for p, data in before.items())


STATES = "mp_rank_00_model_states.pt"


def cut(checkpoint):
    with (checkpoint / STATES).open("r+b") as file:
        file.truncate(1000)


def name_another(checkpoint):
    (checkpoint.parent / "latest").write_text("step_00000007")


@pytest.mark.parametrize(
    "damage",
    [
        cut,
        name_another,
        lambda checkpoint: (checkpoint / STATES).unlink(),
        lambda checkpoint: (checkpoint / "state.json").write_text("{"),
        lambda checkpoint: (checkpoint / "state.json").write_text("{}"),
    ],
    ids=["cut", "latest", "no states", "broken json", "another json"],
)
def test_a_damaged_checkpoint_is_named_with_what_to_do(tmp_path, shards, run, damage):
    damage(latest_checkpoint(run))
    with pytest.raises(ValueError, match=r"checkpoint .*step_000000\d\d .*step_00000010") as raised:
        train_here(recipe(tmp_path, shards, epochs=2), f"output={run}")
    assert f"into {run}/checkpoints/latest" in str(raised.value)


def test_a_rank_that_is_lost_while_restoring_is_no_damaged_file(run):
    """What gloo and NCCL raise then, and a device that is full."""
    told = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer"
    for error in (RuntimeError(told), DistBackendError("NCCL"), torch.OutOfMemoryError("full")):
        with pytest.raises(type(error)) as raised, checkpoint.readable(latest_checkpoint(run)):
            raise error
        assert raised.value is error


def test_a_save_that_is_cut_off_leaves_the_checkpoint_before(tmp_path, shards, run, monkeypatch):
    """After DeepSpeed's files, before `latest`: the place where a kill could do harm."""
    before = latest_checkpoint(run)
    path = recipe(tmp_path, shards, epochs=2)

    def cut_off(*_):
        raise KeyboardInterrupt  # as a kill: nothing tidies up

    with monkeypatch.context() as patch:
        patch.setattr("hnpretrain.train.checkpoint.write_config", cut_off)
        with pytest.raises(KeyboardInterrupt):
            train_here(path, f"output={run}")
    assert latest_checkpoint(run) == before
    assert (run / "checkpoints/step_00000015" / STATES).is_file()
    train_here(path, f"output={run}")
    assert [line["global_step"] for line in loss_lines(run)] == list(range(1, STEPS + 1))


def names_of(run):
    return sorted(path.name for path in (run / "checkpoints").glob("step_*"))


def test_half_written_checkpoints_are_not_found_and_make_room(tmp_path, shards, run, monkeypatch):
    """They are removed before the next one is written: a disk could be full of them."""
    newest = latest_checkpoint(run)
    assert newest.name == "step_00000012"
    half, own = (run / "checkpoints" / name for name in ("step_00000099", "step_00000005.mine"))
    for folder in (half, own):
        folder.mkdir()
        (folder / STATES).write_bytes(b"half")
    assert latest_checkpoint(run) == newest
    there = []
    write = checkpoint.write_config

    def looked(*arguments):
        there.append(half.exists())
        write(*arguments)

    monkeypatch.setattr(checkpoint, "write_config", looked)
    train_here(recipe(tmp_path, shards, epochs=2), f"output={run}")
    assert there == [False, False, False]
    assert names_of(run) == ["step_00000005.mine", "step_00000020", "step_00000024"]


def test_a_run_that_is_set_back_keeps_what_it_can_go_on_from(tmp_path, shards, run, monkeypatch):
    """The later checkpoint is not one of its own any more, and may be damaged."""
    cut(latest_checkpoint(run))
    (run / "checkpoints/latest").write_text("step_00000010")
    stop_after(11, monkeypatch)
    with pytest.raises(SystemExit):
        train_here(recipe(tmp_path, shards, epochs=2), f"output={run}")
    assert names_of(run) == ["step_00000010", "step_00000011"]


def test_an_old_checkpoint_that_cannot_be_removed(tmp_path, shards, run, monkeypatch, capsys):
    """On NFS a file that another process has open cannot be; the new checkpoint is good."""
    old = run / "checkpoints/step_00000010"
    (old / ".nfs0001").touch()
    unlink, tries = os.unlink, iter(range(99))

    def busy(path, **options):
        if ".nfs" in os.fspath(path) and next(tries) < 2:
            raise OSError(16, "Device or resource busy")
        unlink(path, **options)

    monkeypatch.setattr(os, "unlink", busy)
    train_here(recipe(tmp_path, shards, epochs=2), f"output={run}")
    told = capsys.readouterr().out
    assert told.count(f"{old} could not be removed ([Errno 16] Device or resource busy)") == 2
    assert not read_log(run, "checkpoint failed")
    assert names_of(run) == ["step_00000020", "step_00000024"]
