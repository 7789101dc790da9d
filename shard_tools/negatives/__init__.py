"""Hard-negative captions: true captions made false by one small edit. See docs/negatives.md."""

from shard_tools.negatives.captions import CaptionedSample
from shard_tools.negatives.frequencies import FrequencyCounter, FrequencyTable
from shard_tools.negatives.maker import (
    MadeNegatives,
    NegativeMaker,
    frequency_counter,
    needs_frequencies,
)
from shard_tools.negatives.settings import NegativeSettings

__all__ = [
    "CaptionedSample",
    "FrequencyCounter",
    "FrequencyTable",
    "MadeNegatives",
    "NegativeMaker",
    "NegativeSettings",
    "frequency_counter",
    "needs_frequencies",
]
