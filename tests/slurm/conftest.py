"""One cluster for all tests of this folder."""

import tempfile
from pathlib import Path

import pytest

from tests.slurm.cluster import missing, running_cluster
from tests.support.datasets import tile, write_dataset


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
