"""One maker for all tests of negatives: loading spaCy takes seconds."""

import pytest

from shard_tools.negatives import NegativeMaker, NegativeSettings

# More than any caption here has: every proposal is stored.
ALL = 1000


@pytest.fixture(scope="session")
def maker() -> NegativeMaker:
    """The defaults: at most four negatives a caption."""
    return NegativeMaker(NegativeSettings(), seed=0)


@pytest.fixture(scope="session")
def maker_of_all() -> NegativeMaker:
    """Stores every negative that it can make."""
    return NegativeMaker(NegativeSettings(per_caption=ALL), seed=0)
