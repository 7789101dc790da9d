"""What most trainings of these tests begin with; files with other needs have fixtures of their own.

One process group for all trainings that run inside the test process.
"""

import pytest

from hnpretrain.train.distributed import process_group
from tests.support.datasets import tile, write_dataset
from tests.support.training import write_recipe


@pytest.fixture(scope="session", autouse=True)
def world_of_one():
    with process_group() as place:
        yield place


@pytest.fixture(scope="session")
def shards(tmp_path_factory):
    """40 samples, to be read only."""
    folder = tmp_path_factory.mktemp("shards")
    write_dataset(folder, (tile(i) for i in range(40)), per_shard=17)
    return folder


@pytest.fixture
def recipe(tmp_path, shards):
    """Five steps an epoch."""
    return write_recipe(tmp_path / "recipe.yaml", shards, batch_size=8)
