"""Small data sets that are written as they stand, without the job: their negatives are known."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hnpretrain.shards.index import Index, write_index
from hnpretrain.shards.schema import Caption, Negative, Sample
from shard_tools.writer import ShardWriter

PHOTOS = Path(__file__).parents[1] / "assets" / "coco_ccby"

# What is made of the photos' captions: concept, strategy, word, what stands for it.
_EXCHANGES = (
    ("object", "replace", "table", "bench"),
    ("object", "replace", "bathroom", "kitchen"),
    ("object", "fill", "bowl", "basket"),
    ("location", "replace", "on", "under"),
    ("location", "replace", "in", "behind"),
    ("color", "replace", "white", "black"),
    ("color", "wordnet", "green", "red"),
    ("color", "replace", "red", "green"),
    ("size", "replace", "large", "small"),
    ("size", "replace", "small", "large"),
)


def exchange(
    caption: str,
    source: str,
    target: str,
    concept: str = "object",
    strategy: str = "replace",
    **changes: Any,
) -> Negative:
    """The negative that puts `target` in the place of the word or words `source`.

    Args:
        changes: fields that the negative gets instead.
    """
    found = re.search(rf"\b{re.escape(source)}\b", caption)
    assert found is not None
    text = caption[: found.start()] + target + caption[found.end() :]
    negative = Negative(text, concept, strategy, source, target, found.span())
    return dataclasses.replace(negative, **changes)


def photo_samples(count: int) -> list[Sample]:
    """The first real photos with their captions, and with negatives by a fixed list of words."""
    lines = (PHOTOS / "data.jsonl").read_text().splitlines()[:count]
    return [
        Sample(
            Path(record["image"]).stem,
            (PHOTOS / record["image"]).read_bytes(),
            "jpg",
            tuple(Caption(text, _negatives(text)) for text in record["captions"]),
        )
        for record in map(json.loads, lines)
    ]


def _negatives(text: str) -> tuple[Negative, ...]:
    return tuple(
        exchange(text, word, other, concept, strategy)
        for concept, strategy, word, other in _EXCHANGES
        if word in re.findall(r"\w+", text)
    )


def write_shards(folder: Path, *shards: Sequence[Sample]) -> Path:
    """Writes a finished data set: 0.tar, 1.tar, ...; returns its folder."""
    markers = []
    for number, samples in enumerate(shards):
        with ShardWriter() as writer:
            for sample in samples:
                writer.add(sample)
            markers.append(writer.finish(str(folder), f"{number}.tar", "", "", ""))
    write_index(str(folder), Index.of(markers))
    return folder
