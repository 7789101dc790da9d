"""Sources of captioned images: COCO json, tables (jsonl, csv, tsv, parquet), and tars that others
wrote.

`plan_source` lists the shards of work that a source gives; see `base` for what a shard is.
"""

from shard_tools.sources.base import (
    BAD_CAPTION,
    BROKEN_TAR,
    SourceSample,
    SourceSettings,
    SourceShard,
)
from shard_tools.sources.coco import plan_coco
from shard_tools.sources.lines import plan_lines
from shard_tools.sources.manifest import has_appeared
from shard_tools.sources.parquet import plan_parquet
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
    if settings.kind == "parquet":
        return plan_parquet(settings, samples_per_shard)
    if settings.kind == "tar":
        return plan_tars(settings)
    return plan_lines(settings, samples_per_shard)
