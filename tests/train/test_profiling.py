"""Traces by torch.profiler: of the steps that are asked for, and of no others."""

import gzip
import json

import pytest

from tests.support.training import loss_lines, train_here, write_recipe


@pytest.fixture
def recipe(tmp_path, shards):
    return write_recipe(tmp_path / "recipe.yaml", shards, batch_size=8, checkpoint="{every: 2}")


def steps_in(path):
    """Which of the profiler's steps a trace holds, as Perfetto reads it."""
    with gzip.open(path) as file:
        trace = json.load(file)
    names = [event.get("name", "") for event in trace["traceEvents"]]
    assert any("addmm" in name for name in names)
    return sorted({name for name in names if name.startswith("ProfilerStep#")})


def test_the_steps_that_are_asked_for(tmp_path, recipe, capsys):
    train_here(recipe, f"output={tmp_path}/run", "profile={steps: 2, first: 3}")
    (path,) = (tmp_path / "run/profile").iterdir()
    assert path.name == "steps_3-4_rank_0.json.gz"
    assert len(steps_in(path)) == 2
    assert f"profile: {path}" in capsys.readouterr().out
    train_here(recipe, f"output={tmp_path}/plain")
    assert loss_lines(tmp_path / "run") == loss_lines(tmp_path / "plain")
    assert not (tmp_path / "plain/profile").exists()


def test_a_run_that_goes_on_past_them_traces_nothing(tmp_path, recipe):
    train_here(recipe, f"output={tmp_path}/run")
    overrides = ["epochs=2", "profile={steps: 3, first: 5}"]
    train_here(recipe, f"output={tmp_path}/run", *overrides)
    assert not (tmp_path / "run/profile").exists()


def test_a_run_that_ends_before_them_keeps_what_there_is(tmp_path, recipe):
    train_here(recipe, f"output={tmp_path}/run", "profile={steps: 9, first: 4}")
    (path,) = (tmp_path / "run/profile").iterdir()
    assert len(steps_in(path)) == 3  # two, and the wait for a third
    train_here(recipe, f"output={tmp_path}/other", "profile={steps: 9, first: 7}")
    assert not (tmp_path / "other/profile").exists()


@pytest.mark.parametrize(
    "override, message",
    [
        ("profile={steps: 1, rank: 1}", "profile.rank=1 is none of the 1 processes: set 0 to 0"),
        ("profile.first=1", "profile.first=1 must be at least 2"),
        ("profile.steps=-1", "profile.steps=-1 must be at least 0"),
    ],
)
def test_wrong_settings(tmp_path, recipe, override, message):
    with pytest.raises(ValueError, match=message):
        train_here(recipe, f"output={tmp_path}/run", override)
