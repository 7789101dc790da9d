"""Hard-negative captions: true captions made false by one small edit. See docs/negatives.md."""

from shard_tools.negatives.maker import (
    CaptionedSample,
    MadeNegatives,
    NegativeMaker,
    NegativeSettings,
)

__all__ = ["CaptionedSample", "MadeNegatives", "NegativeMaker", "NegativeSettings"]
