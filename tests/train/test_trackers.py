"""TensorBoard, with its own reader, and Weights & Biases, by a stand-in for its module."""

import importlib.util
import json
import math
import sys
import types

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from hnpretrain.train import loop
from hnpretrain.train.log import RunLog, read_log
from hnpretrain.train.stopping import Stopped
from hnpretrain.train.trackers import LogSettings, open_trackers
from tests.support.datasets import tile, write_dataset
from tests.support.training import train_here, write_recipe


@pytest.fixture
def shards(tmp_path):
    write_dataset(tmp_path / "shards", (tile(i) for i in range(16)), per_shard=16)
    return tmp_path / "shards"


def curves(run):
    """By tag: the steps and values that TensorBoard shows."""
    reader = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0})
    reader.Reload()
    return {
        tag: [(event.step, event.value) for event in reader.Scalars(tag)]
        for tag in reader.Tags()["scalars"]
    }


class FakeWandb(types.ModuleType):
    """What of wandb is used; remembers what it is told."""

    class Error(Exception):
        pass

    def __init__(self):
        super().__init__("wandb")
        self.__spec__ = importlib.util.spec_from_loader("wandb", None)
        self.inits, self.points, self.settings, self.finished = [], [], [], 0
        self.failure = None
        self.step = 0  # after what a server has

    def Settings(self, **settings):
        self.settings.append(settings)
        return settings

    def init(self, **arguments):
        if self.failure:
            raise self.failure
        self.inits.append(arguments)
        return self

    def log(self, numbers, step):
        if self.failure:
            raise self.failure
        self.points += [(name, step, value) for name, value in numbers.items()]

    def finish(self):
        self.finished += 1


@pytest.fixture
def wandb(monkeypatch):
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


def write_steps(run, settings, first, last, value, config=None):
    """A process that goes on after `first` steps, and tells those up to the last."""
    run.mkdir(exist_ok=True)
    log = RunLog(run, first, open_trackers(settings, run, first, config or {}))
    for step in range(first + 1, last + 1):
        log.write("step", step, loss=value + step, negatives=3, name="no number", ok=True)
        log.write("checkpoint", step)
        if step % 2 == 0:
            log.write("evaluation", step, scores={"retrieval/a": {"recall@1": value}})
    log.close()


def test_tensorboard_shows_a_step_once(tmp_path):
    """Of the steps that a killed run told, those after its checkpoint are told again."""
    settings = LogSettings(tensorboard=True)
    write_steps(tmp_path, settings, 0, 5, value=100)
    write_steps(tmp_path, settings, 3, 6, value=200)
    shown = curves(tmp_path)
    assert shown == {
        "train/loss": [(1, 101), (2, 102), (3, 103), (4, 204), (5, 205), (6, 206)],
        "train/negatives": [(step, 3) for step in range(1, 7)],
        "evaluation/scores/retrieval/a/recall@1": [(2, 100), (4, 200), (6, 200)],
    }


def test_trackers_that_come_later_get_what_the_log_holds(tmp_path, wandb):
    write_steps(tmp_path, LogSettings(), 0, 5, value=100)
    write_steps(tmp_path, LogSettings(tensorboard=True, wandb="clip"), 3, 4, value=200)
    expected = [(1, 101), (2, 102), (3, 103), (4, 204)]
    assert curves(tmp_path)["train/loss"] == expected
    assert losses(wandb) == expected


def losses(wandb):
    return [(step, value) for name, step, value in wandb.points if name == "train/loss"]


def test_wandb_is_told_a_step_once(tmp_path, wandb):
    """Its server had three of the five steps that the first process told before it was killed."""
    settings = LogSettings(wandb="clip")
    write_steps(tmp_path, settings, 0, 5, value=100)
    wandb.points, wandb.step = [], 4
    write_steps(tmp_path, settings, 4, 6, value=200)
    assert losses(wandb) == [(4, 104), (5, 205), (6, 206)]
    wandb.points, wandb.step = [], 7
    write_steps(tmp_path, settings, 4, 8, value=300)  # killed before the next checkpoint
    assert losses(wandb) == [(7, 307), (8, 308)]
    assert len({init["id"] for init in wandb.inits}) == 1
    assert {(init["project"], init["resume"]) for init in wandb.inits} == {("clip", "allow")}
    assert wandb.finished == 3


def test_wandb_learns_no_secrets(tmp_path, wandb, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "my-secret")
    url = "https://me:my-secret@store/shards?X-Amz-Signature=my-secret"
    config = {"data": {"shards": url, "mixture": {url: 0.5}}}
    write_steps(tmp_path, LogSettings(wandb="clip"), 0, 1, value=0, config=config)
    (init,) = wandb.inits
    clean = "https://store/shards"
    assert init["config"] == {"data": {"shards": clean, "mixture": {clean: 0.5}}}
    assert "my-secret" not in repr(wandb.__dict__)
    (settings,) = wandb.settings
    assert settings["console"] == "off"
    assert settings["disable_git"]
    assert settings["x_disable_meta"]


def test_wandb_that_fails_on_the_way_does_not_stop_the_run(tmp_path, wandb, capsys):
    log = RunLog(tmp_path, 0, open_trackers(LogSettings(wandb="clip"), tmp_path, 0, {}))
    wandb.failure = BrokenPipeError("its process is gone")
    for step in (1, 2, 3):
        log.write("step", step, loss=0.0)
    log.close()
    assert capsys.readouterr().out.count("Weights & Biases has failed, and is told no more") == 1
    assert len(read_log(tmp_path, "step")) == 3


@pytest.mark.parametrize("when", ["add_scalar", "flush", "close"])
def test_tensorboard_that_fails_on_the_way_does_not_either(tmp_path, monkeypatch, capsys, when):
    log = RunLog(tmp_path, 0, open_trackers(LogSettings(tensorboard=True), tmp_path, 0, {}))
    full = OSError(28, "No space left on device")

    def failing(*_):
        raise full

    monkeypatch.setattr(f"torch.utils.tensorboard.SummaryWriter.{when}", failing)
    for step in (1, 2, 3):
        log.write("step", step, loss=0.0)
    log.close()
    assert capsys.readouterr().out == f"TensorBoard has failed, and is told no more: {full}\n"
    assert len(read_log(tmp_path, "step")) == 3


def test_a_stop_keeps_its_status_when_what_is_closed_fails(
    tmp_path, shards, wandb, monkeypatch, capsys
):
    """A run's trackers and its trace; and it is told that they have failed.

    No rank leaves before they are closed: torchrun would then end the main rank in the middle.
    """
    path = write_recipe(tmp_path / "recipe.yaml", shards, batch_size=8, epochs=9)
    take = loop.train_step

    def stopped(run, batches, rate, wish):
        return take(run, batches, rate, wish._replace(stop=run.progress.global_step == 2))

    def failing(*_):
        order.append("close")
        raise OSError(28, "No space left on device")

    order = []
    monkeypatch.setattr(loop, "on_all", lambda _: order.append("all ranks"))
    monkeypatch.setattr(loop, "train_step", stopped)
    monkeypatch.setattr(wandb, "finish", failing)
    monkeypatch.setattr("torch.profiler.profile.export_chrome_trace", failing)
    with pytest.raises(Stopped):
        train_here(path, f"output={tmp_path}/run", "log.wandb=clip", "profile={steps: 5, first: 2}")
    assert order == ["close", "close", "all ranks"]
    told = capsys.readouterr().out
    assert "Weights & Biases has failed" in told
    assert "rank_0.json.gz could not be written: [Errno 28]" in told


def test_a_run_goes_on_where_wandb_cannot(tmp_path, wandb, capsys):
    """A run that is preempted while wandb's server is away must not end with that."""
    settings = LogSettings(wandb="clip", tensorboard=True)
    write_steps(tmp_path, settings, 0, 2, value=100)
    wandb.failure = RuntimeError("its server is away")
    write_steps(tmp_path, settings, 2, 4, value=100)
    assert "Weights & Biases cannot go on" in capsys.readouterr().out
    assert curves(tmp_path)["train/loss"] == [(1, 101), (2, 102), (3, 103), (4, 104)]
    wandb.failure, wandb.step = None, 3
    write_steps(tmp_path, settings, 4, 5, value=100)
    assert losses(wandb) == [(1, 101), (2, 102), (3, 103), (4, 104), (5, 105)]
    assert len({init["id"] for init in wandb.inits}) == 1


def test_wandb_that_cannot_begin_is_refused(tmp_path, shards, wandb):
    """Also the second time: it has not begun."""
    wandb.failure = wandb.Error("no API key configured")
    path = write_recipe(tmp_path / "recipe.yaml", shards, batch_size=8)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"log.wandb=clip: .*no API key.*wandb login"):
            train_here(path, f"output={tmp_path}/run", "log.wandb=clip")


@pytest.mark.parametrize("override", ["log.wandb=clip", "log.tensorboard=true"])
def test_a_missing_package_is_named(tmp_path, shards, monkeypatch, override):
    name = override.partition("=")[0].partition(".")[2]
    find = importlib.util.find_spec

    def without_it(wanted, *rest):
        return None if wanted == name else find(wanted, *rest)

    monkeypatch.setattr(importlib.util, "find_spec", without_it)
    path = write_recipe(tmp_path / "recipe.yaml", shards, batch_size=8)
    with pytest.raises(ValueError, match=rf"pip install 'hnpretrain\[{name}\]'"):
        train_here(path, f"output={tmp_path}/run", override)
    assert not (tmp_path / "run").exists()


def test_a_full_disk_delays_the_log(tmp_path, capsys):
    log = RunLog(tmp_path, 0)
    log.write("step", 1, loss=0.0)

    class Full:
        def write(self, data):
            if len(data) < 9:
                raise OSError(28, "No space left on device")
            return file.write(data[:9])  # what there was room for

    file, log._file = log._file, Full()
    log.write("step", 2, loss=math.inf, ledger={"a": math.nan, "b": [1, -math.inf]})
    log.write("step", 3, loss=0.0, shard="s3://me:my-secret@bucket/1.tar")
    assert capsys.readouterr().out.count("log.jsonl cannot be written") == 1
    log._file = file
    log.close()
    text = (tmp_path / "log.jsonl").read_text()
    assert [json.loads(line, parse_constant=pytest.fail) for line in text.splitlines()] == [
        {"event": "step", "global_step": 1, "loss": 0.0},
        {
            "event": "step",
            "global_step": 2,
            "loss": None,
            "ledger": {"a": None, "b": [1, None]},
        },
        {"event": "step", "global_step": 3, "loss": 0.0, "shard": "s3://bucket/1.tar"},
    ]


def test_a_training_tells_what_its_log_tells(tmp_path, shards, wandb):
    path = write_recipe(tmp_path / "recipe.yaml", shards, batch_size=8, epochs=2)
    train_here(path, f"output={tmp_path}/run", "log.tensorboard=true", "log.wandb=clip")
    lines = read_log(tmp_path / "run", "step")
    shown = curves(tmp_path / "run")
    told = {}
    for name, step, value in wandb.points:
        told.setdefault(name, []).append((step, value))
    assert told.keys() == shown.keys()
    assert told["train/ledger/read"] == [(line["global_step"], line["samples"]) for line in lines]
    for key in lines[0].keys() - {"event", "global_step", "ledger", "interval"}:
        expected = [(line["global_step"], line[key]) for line in lines]
        assert told[f"train/{key}"] == expected
        assert shown[f"train/{key}"] == [(step, pytest.approx(x, rel=1e-6)) for step, x in expected]
    assert wandb.inits[0]["config"]["batch_size"] == 8
    assert json.loads((tmp_path / "run/wandb.json").read_text())["id"] == wandb.inits[0]["id"]


def test_a_run_with_nothing_left_to_train_tells_nothing(tmp_path, shards, wandb):
    path = write_recipe(tmp_path / "recipe.yaml", shards, batch_size=8)
    train_here(path, f"output={tmp_path}/run")
    train_here(path, f"output={tmp_path}/run", "log.tensorboard=true", "log.wandb=clip")
    assert not wandb.inits
    assert not (tmp_path / "run/tensorboard").exists()
