"""Small data sets in shard format 1, from the real photos or from plain tiles."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable
from pathlib import Path

from PIL import Image

from hnpretrain.shards.index import Index, write_index
from hnpretrain.shards.schema import Caption, Negative, Sample
from shard_tools.writer import ShardWriter

PHOTOS = Path(__file__).parents[1] / "assets" / "coco_ccby"


def write_dataset(folder: Path | str, samples: Iterable[Sample], per_shard: int) -> Index:
    """Writes samples as shards with markers and an index, to a folder or URL."""
    samples = list(samples)
    markers = []
    for start in range(0, len(samples), per_shard):
        with ShardWriter() as writer:
            for sample in samples[start : start + per_shard]:
                writer.add(sample)
            markers.append(writer.finish(str(folder), f"{start:06d}.tar", "test", "test", "test"))
    index = Index.of(markers)
    write_index(str(folder), index)
    return index


def tile(number: int, negatives: int = 2) -> Sample:
    """A tiny image of one color with two captions; key and color tell the number."""
    buffer = io.BytesIO()
    color = (number % 256, number // 256 % 256, 90)
    Image.new("RGB", (16, 16), color).save(buffer, "PNG")
    captions = tuple(
        Caption(
            f"tile {number} {name}",
            tuple(
                Negative(f"tile {number} {name} not {k}", "object", "replace", "a", "b", (0, 1))
                for k in range(negatives)
            ),
        )
        for name in ("one", "two")
    )
    return Sample(f"{number:06d}", buffer.getvalue(), "png", captions)


def photo_samples() -> list[Sample]:
    """The 73 photos; each caption has one made-up negative."""
    samples = []
    for line in (PHOTOS / "data.jsonl").read_text().splitlines():
        record = json.loads(line)
        path = PHOTOS / record["image"]
        captions = tuple(
            Caption(text, (Negative(f"no {text}", "negation", "negate", "", "no", (0, 0)),))
            for text in record["captions"]
        )
        samples.append(Sample(path.stem, path.read_bytes(), "jpg", captions))
    return samples
