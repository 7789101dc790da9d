"""One process group for all trainings that run inside the test process."""

import pytest

from hnpretrain.train.distributed import process_group


@pytest.fixture(scope="session", autouse=True)
def world_of_one():
    with process_group() as place:
        yield place
