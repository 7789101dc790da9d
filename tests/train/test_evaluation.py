"""Evaluation while a model trains: the scores of its checkpoints, and a training left alone."""

import json
import shutil
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from hnpretrain.eval import benchmarks
from hnpretrain.eval.encode import Encoder
from hnpretrain.eval.scorers import Cosine
from hnpretrain.models import load
from hnpretrain.train import loop
from hnpretrain.train.checkpoint import Checkpoints
from hnpretrain.train.evaluation import Evaluation, _statistics_of_main
from hnpretrain.train.log import read_log
from hnpretrain.train.report import Interval
from hnpretrain.train.stopping import Stopped
from tests.support.datasets import PHOTOS
from tests.support.training import loss_lines, train_here, write_recipe
from tests.train.many_runs import errors_of

# Draws in every step: patches that are dropped.
DRAWS = "model.config.vision_cfg.patch_dropout=0.5"


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Ten of the photos, as benchmarks read them."""
    folder = tmp_path_factory.mktemp("photos")
    lines = (PHOTOS / "data.jsonl").read_text().splitlines()[:10]
    (folder / "data.jsonl").write_text("\n".join(lines))
    for line in lines:
        image = json.loads(line)["image"]
        (folder / image).parent.mkdir(exist_ok=True, parents=True)
        shutil.copy(PHOTOS / image, folder / image)
    return folder / "data.jsonl"


@pytest.fixture
def recipe(tmp_path, shards):
    return write_recipe(
        tmp_path / "recipe.yaml",
        shards,
        batch_size=8,
        epochs=2,
        checkpoint="{every: 4, keep: 9}",
    )


def asked(photos, every):
    requests = f"[retrieval={photos},sugarcrepe={photos}]"
    return [f"evaluation={{benchmarks: {requests}, every: {every}, batch_size: 3}}"]


def events_at(run: Path, step: int) -> list[str]:
    events = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [event["event"] for event in events if event["global_step"] == step]


def scores_of(checkpoint: Path, photos: Path):
    """As `hnpretrain eval` finds them."""
    loaded = load(str(checkpoint))
    encoder = Encoder(loaded.model, loaded.preprocess_val, loaded.tokenizer)
    names = ("retrieval", "sugarcrepe")
    results = [benchmarks.load(name, photos).run(encoder, Cosine()) for name in names]
    return {
        result.dataset: {score.name: score.accuracy.value for score in result.scores}
        for result in results
    }


def test_scores_are_those_of_checkpoints_and_the_training_is_left_alone(
    tmp_path, recipe, photos, capsys
):
    plain, watched = tmp_path / "plain", tmp_path / "watched"
    train_here(recipe, f"output={plain}", DRAWS)
    train_here(recipe, f"output={watched}", DRAWS, *asked(photos, 4))
    assert loss_lines(watched) == loss_lines(plain)

    lines = read_log(watched, "evaluation")
    assert [line["global_step"] for line in lines] == [4, 8, 10]
    assert all(line["seconds"] > 0 for line in lines)
    for line in lines:
        checkpoint = watched / f"checkpoints/step_{line['global_step']:08d}"
        assert line["scores"] == scores_of(checkpoint, photos)
    assert lines[0]["scores"].keys() == {"retrieval/data", "sugarcrepe"}
    assert "evaluation at step 10 | sugarcrepe | " in capsys.readouterr().out


def test_after_each_epoch_if_no_number_is_set(tmp_path, recipe, photos):
    train_here(recipe, f"output={tmp_path}/run", *asked(photos, 0))
    lines = read_log(tmp_path / "run", "evaluation")
    assert [line["global_step"] for line in lines] == [5, 10]
    # Before the checkpoint, so that a run that goes on from here has it.
    assert events_at(tmp_path / "run", 10) == ["step", "evaluation", "checkpoint", "ledger"]


def test_a_stop_saves_at_once_and_the_evaluation_is_made_up(tmp_path, recipe, photos, monkeypatch):
    """Where the run goes on; in its last step it is left nothing to go on with."""
    options = (f"output={tmp_path}/run", *asked(photos, 4))
    take = loop.train_step

    def stopping_at(*steps):
        def stopped(run, batches, rate, wish):
            stop = run.progress.global_step + 1 in steps
            return take(run, batches, rate, wish._replace(stop=stop))

        monkeypatch.setattr(loop, "train_step", stopped)

    stopping_at(8, 10)
    with pytest.raises(Stopped):
        train_here(recipe, *options)
    assert events_at(tmp_path / "run", 8) == ["step", "checkpoint"]
    train_here(recipe, *options)
    assert events_at(tmp_path / "run", 4) == ["step", "evaluation", "checkpoint"]
    assert events_at(tmp_path / "run", 8) == ["step", "checkpoint", "evaluation"]
    assert events_at(tmp_path / "run", 10) == ["step", "checkpoint", "ledger", "evaluation"]
    for line in read_log(tmp_path / "run", "evaluation"):
        checkpoint = tmp_path / f"run/checkpoints/step_{line['global_step']:08d}"
        assert line["scores"] == scores_of(checkpoint, photos)


def test_speed_is_the_trainings_alone(tmp_path, recipe, photos, monkeypatch):
    """By a clock on which each evaluation and each checkpoint takes an hour more."""
    late = 0.0
    clock = time.perf_counter

    def slow(work):
        def slower(*arguments):
            nonlocal late
            late += 3600
            return work(*arguments)

        return slower

    monkeypatch.setattr(time, "perf_counter", lambda: clock() + late)
    monkeypatch.setattr(loop, "Interval", lambda: Interval(time.perf_counter()))
    monkeypatch.setattr(Evaluation, "_run", slow(Evaluation._run))
    monkeypatch.setattr(Checkpoints, "save", slow(Checkpoints.save))
    train_here(recipe, f"output={tmp_path}/run", "log_every=3", *asked(photos, 2))
    assert late == 8 * 3600  # after 2, 4, 6, 8 and 10 steps; after 4, 8 and 10 steps
    lines = read_log(tmp_path / "run", "step")
    assert [line["global_step"] for line in lines] == [3, 4, 6, 8, 9, 10]
    assert all(line["step_seconds"] < 600 for line in lines)


def test_none_is_made_up_twice(tmp_path, recipe, photos, monkeypatch):
    monkeypatch.setattr("hnpretrain.train.evaluation.Evaluation._run", lambda _: [])
    options = (f"output={tmp_path}/run", *asked(photos, 0))
    train_here(recipe, *options, "epochs=1")
    train_here(recipe, *options)
    assert events_at(tmp_path / "run", 5).count("evaluation") == 1


def test_ranks_share_the_work_and_what_one_cannot_read(tmp_path, recipe, photos):
    """Also where no rank has whole weights.

    An image that one rank cannot read leaves the training of all as it is.
    """
    shutil.copytree(photos.parent, tmp_path / "photos")
    broken = tmp_path / "photos/data.jsonl"
    image = json.loads(broken.read_text().splitlines()[4])["image"]  # of the second batch
    (tmp_path / "photos" / image).write_bytes(b"no image")
    runs = [tmp_path / "zero2", tmp_path / "zero3"]
    plain = tmp_path / "plain"
    errors = errors_of(
        recipe,
        [f"output={runs[0]}", "zero_stage=2", DRAWS, *asked(photos, 4)],
        [f"output={runs[1]}", "zero_stage=3", DRAWS, *asked(photos, 4)],
        [f"output={plain}", "zero_stage=3", DRAWS],
        [f"output={tmp_path}/broken", "zero_stage=3", DRAWS, *asked(broken, 4)],
    )
    assert not errors
    failures = read_log(tmp_path / "broken", "evaluation failed")
    assert [line["global_step"] for line in failures] == [4, 8, 10]
    assert all(image in line["error"] for line in failures)
    assert all("cannot be read" in line["error"] for line in failures)
    assert loss_lines(runs[1]) == loss_lines(plain) == loss_lines(tmp_path / "broken")
    for run in runs:
        lines = read_log(run, "evaluation")
        assert [line["global_step"] for line in lines] == [4, 8, 10]
        for line in lines:
            checkpoint = run / f"checkpoints/step_{line['global_step']:08d}"
            assert line["scores"] == scores_of(checkpoint, photos)


def test_batch_statistics_are_the_main_ranks(monkeypatch):
    """On a rank that has seen other batches, and has seen them still afterwards."""
    norms = [nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)) for _ in range(2)]
    for norm in norms:
        norm(torch.randn(8, 2))
    main, other = ({name: x.clone() for name, x in norm[1].named_buffers()} for norm in norms)
    sent = iter(main.values())
    monkeypatch.setattr(dist, "broadcast", lambda tensor, _: tensor.copy_(next(sent)))
    with _statistics_of_main(norms[1]):
        assert all(torch.equal(x, main[name]) for name, x in norms[1][1].named_buffers())
    assert not torch.equal(main["running_mean"], other["running_mean"])
    assert all(torch.equal(x, other[name]) for name, x in norms[1][1].named_buffers())


@pytest.mark.parametrize("what", [OSError(5, "Input/output error"), torch.OutOfMemoryError("full")])
def test_an_evaluation_that_fails_is_told(tmp_path, recipe, photos, monkeypatch, capsys, what):
    def failing(*_):
        raise what

    monkeypatch.setattr("hnpretrain.eval.encode.Encoder._encoded", failing)
    train_here(recipe, f"output={tmp_path}/run", *asked(photos, 0))
    assert events_at(tmp_path / "run", 10) == ["step", "evaluation failed", "checkpoint", "ledger"]
    failures = read_log(tmp_path / "run", "evaluation failed")
    assert all(str(what) in line["error"] for line in failures)
    assert f"{what}; the training goes on" in capsys.readouterr().out


@pytest.mark.parametrize("where", ["model", "benchmark"])
def test_a_whole_model_that_does_not_fit_is_told(tmp_path, recipe, photos, monkeypatch, where):
    """At stage 3 the whole model goes to the device for it; scores are computed there, too."""

    def failing(*_):
        raise torch.OutOfMemoryError("full")

    evaluate = Evaluation._evaluate

    def evaluating(self, *rest):
        back = self._copy.to
        self._copy.to = lambda place: back(place) if place == "cpu" else failing()
        evaluate(self, *rest)

    if where == "model":
        monkeypatch.setattr(Evaluation, "_evaluate", evaluating)
    else:
        monkeypatch.setattr("hnpretrain.eval.benchmarks.retrieval.Retrieval.run", failing)
    options = asked(photos, 0)
    train_here(recipe, f"output={tmp_path}/run", "zero_stage=3", "epochs=1", *options)
    (failure,) = read_log(tmp_path / "run", "evaluation failed")
    assert failure["error"] == "lower evaluation.batch_size: full"


@pytest.mark.parametrize(
    "value, message",
    [
        ("{benchmarks: [retrieval=/nowhere.jsonl]}", "/nowhere.jsonl"),
        ("{benchmarks: [sugercrepe=/nowhere]}", "did you mean 'sugarcrepe'"),
        ("{benchmarks: [retrieval]}", "evaluation.benchmarks 'retrieval': write NAME=DATA"),
        ("{every: -1}", "evaluation.every=-1 must not be negative"),
        ("{batch_size: 0}", "evaluation.batch_size=0 must be at least 1"),
    ],
)
def test_what_cannot_be_read_is_refused_before_anything(tmp_path, recipe, value, message):
    with pytest.raises(ValueError, match=message):
        train_here(recipe, f"output={tmp_path}/run", f"evaluation={value}")
    assert not (tmp_path / "run").exists()
