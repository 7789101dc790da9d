"""What two ranks do when one of them differs, or meets something alone."""

import json
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from hnpretrain.train.convert import convert
from hnpretrain.train.distributed import set_timeouts
from hnpretrain.train.log import read_log
from tests.support.datasets import tile, write_dataset
from tests.support.training import loss_lines, write_recipe
from tests.train.many_runs import OTHER, POISON, errors_of


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """The folder of all the runs, and what their ranks raised by the name of the run."""
    folder = tmp_path_factory.mktemp("ranks")
    for name, first in (("shards", 0), ("copy", 0), ("older", 1)):
        write_dataset(folder / name, (tile(first + i) for i in range(40)), per_shard=17)
    recipe = write_recipe(folder / "recipe.yaml", folder / "shards", batch_size=8)
    zero = ("zero_stage=2", "micro_batches=2", "checkpoint.every=1", "checkpoint.keep=99")
    runs = {
        "alike": (
            f"{OTHER}data.shards={folder}/copy",
            f"{OTHER}data.workers=0",
            "checkpoint.keep=1",
        ),
        "seeds": (f"{OTHER}seed=3",),
        "indexes": (f"{OTHER}data.shards={folder}/older",),
        "weights": (
            "data.shards=''",
            f"data.mixture={{{folder}/copy: 1, {folder}/older: 1}}",
            f"{OTHER}data.mixture={{{folder}/copy: 1, {folder}/older: 0.5}}",
        ),
        "no index": (f"{OTHER}data.shards={folder}/nowhere",),
        "poisoned": (f"{POISON}2", *zero),
        "too often": (f"{POISON}1", "max_skipped=0", *zero),
    }
    errors = errors_of(recipe, *((f"output={folder}/{name}", *runs[name]) for name in runs))
    return folder, errors


def test_settings_and_indexes_must_be_alike(ran):
    """But not where the data lies and how it is read; and no rank waits for one that refuses."""
    folder, errors = ran
    assert len(loss_lines(folder / "alike")) == 5
    expected = [
        "rank 1 has seed=3, rank 0 has 0: give all ranks the same config",
        f"rank 1 finds another index or weight at {folder}/older than rank 0 at {folder}/shards",
        f"rank 1 finds another index or weight at {folder}/older than rank 0 at {folder}/older",
        "(on rank 1, not on all)",
    ]
    for number, message in enumerate(expected):
        one, other = errors[2 * number : 2 * number + 2]
        assert one == other
        assert message in one
    assert f"{folder}/nowhere" in errors[6]


def test_all_ranks_skip_what_one_meets(ran):
    """And their weights and moments, which ZeRO has cut, stay as they were."""
    folder, errors = ran
    run = folder / "poisoned"
    states = {}
    for step in (2, 3, 4):
        checkpoint = convert(run / f"checkpoints/step_{step:08d}")
        states[step] = load_file(checkpoint / "whole_state.safetensors")
        progress = json.loads((checkpoint / "state.json").read_text())["progress"]
        assert progress["skips"]["total"] == (0 if step == 2 else 1)
    for name, tensor in states[2].items():
        assert tensor.equal(states[3][name]), name
    moved = {name for name, x in states[3].items() if not x.equal(states[4][name])}
    assert {f"{kind}.visual.proj" for kind in ("weight", "exp_avg", "exp_avg_sq")} <= moved
    assert all(x.isfinite().all() for x in states[4].values())
    assert [line["skipped"] for line in read_log(run, "step")] == [0, 0, 1, 1, 1]
    (skip,) = read_log(run, "skipped")
    assert "(rank 1)" in skip["reason"]
    assert "(rank 0)" not in skip["reason"]

    assert len(errors) == 10
    one, other = errors[8:]
    assert one == other
    assert "1 steps in a row" in one


@pytest.mark.parametrize("torch_is_new", [True, False])
def test_the_time_to_wait_is_set_in_all_groups(monkeypatch, torch_is_new):
    """torch 2.11 to 2.13 have a private function for it alone."""
    if not torch_is_new:
        monkeypatch.delattr(dist, "set_timeout")
    groups = list(dist.distributed_c10d._world.pg_map)
    backends = [group._get_backend(torch.device("cpu")) for group in groups]
    before = backends[0].options._timeout
    minutes = 7.5 if torch_is_new else 8.5
    try:
        set_timeouts(minutes)
        assert {x.options._timeout for x in backends} == {timedelta(minutes=minutes)}
    finally:
        set_timeouts(before / timedelta(minutes=1))
