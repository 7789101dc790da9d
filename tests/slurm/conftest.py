"""One cluster for all tests of this folder, and one training that they disturb."""

import tempfile
from pathlib import Path

import pytest

from launch import queue
from launch.training import submit
from tests.slurm.cluster import missing, running_cluster
from tests.slurm.jobs import EPOCHS, STEPS
from tests.support.datasets import tile, write_dataset
from tests.support.training import loss_lines, train, write_recipe


@pytest.fixture(scope="session")
def cluster():
    why = missing()
    if why:
        pytest.skip(why)
    # Not pytest's own folder: the paths of sockets must be short.
    with (
        tempfile.TemporaryDirectory(prefix="slurm-") as folder,
        running_cluster(Path(folder)) as running,
    ):
        yield running


@pytest.fixture(scope="session")
def shards(tmp_path_factory):
    """40 samples, to be read only."""
    folder = tmp_path_factory.mktemp("shards")
    write_dataset(folder, (tile(i) for i in range(40)), per_shard=17)
    return folder


@pytest.fixture(scope="session")
def recipe(tmp_path_factory, shards):
    return write_recipe(
        tmp_path_factory.mktemp("recipe") / "recipe.yaml", shards, batch_size=8, epochs=EPOCHS,
        checkpoint="{every: 10}",
        # As many threads as torchrun gives: sums depend on them.
        launch="{nodes: 2, gpus_per_node: 0, minutes: 10, environment: {OMP_NUM_THREADS: '1'}}",
    )  # fmt: skip


@pytest.fixture(scope="session")
def undisturbed(recipe, tmp_path_factory):
    """The losses of two ranks that nobody disturbs, without Slurm."""
    run = tmp_path_factory.mktemp("undisturbed")
    train(recipe, f"output={run}")
    lines = loss_lines(run)
    assert len(lines) == STEPS
    return lines


@pytest.fixture
def launched(request, recipe, tmp_path):
    """Submits the training; whatever becomes of it, it is gone at the end."""
    request.getfixturevalue("cluster")
    records = []

    def launch(*overrides):
        records.append(submit(str(recipe), [f"output={tmp_path / 'run'}", *overrides]))
        return records[-1]

    yield launch
    for record in records:
        queue.run("scancel", "--quiet", *record.jobs)
