"""Sources of captioned images: COCO json, jsonl, and WebDataset or img2dataset tars.

`plan_source` lists the shards of work that a source gives; see `base` for what a shard is.
"""

from shard_tools.sources.base import (
    BAD_CAPTION,
    BROKEN_TAR,
    SourceSample,
    SourceSettings,
    SourceShard,
    has_appeared,
)
from shard_tools.sources.coco import plan_coco
from shard_tools.sources.jsonl import plan_jsonl
from shard_tools.sources.tars import plan_tars

__all__ = [
    "BAD_CAPTION",
    "BROKEN_TAR",
    "SourceSample",
    "SourceSettings",
    "SourceShard",
    "has_appeared",
    "plan_source",
]


def plan_source(settings: SourceSettings, samples_per_shard: int) -> list[SourceShard]:
    """The source's shards, in the order of their names; see the kinds' own functions for errors.

    Args:
        samples_per_shard: for the manifests; tars stay as they are.
    """
    if settings.kind == "coco":
        return plan_coco(settings, samples_per_shard)
    if settings.kind == "jsonl":
        return plan_jsonl(settings, samples_per_shard)
    return plan_tars(settings)
