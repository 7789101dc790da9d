import pytest

from tests.support.datasets import tile, write_dataset


@pytest.fixture(scope="session")
def shards(tmp_path_factory):
    """128 samples, to be read only."""
    folder = tmp_path_factory.mktemp("shards")
    write_dataset(folder, (tile(i) for i in range(128)), per_shard=50)
    return folder
