"""The negatives of the 73 real photos, and docs/photo-negatives.jsonl, the list that was judged.

    python -m tests.negatives.photo_list    # writes the list anew

The list is read and judged by hand (docs/negatives.md). A test holds it to what is made, so that no
change of rules slips by unread.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from shard_tools.bench.negatives import read_samples
from shard_tools.negatives import (
    CaptionedSample,
    FrequencyTable,
    MadeNegatives,
    NegativeMaker,
    NegativeSettings,
    frequency_counter,
)

_ROOT = Path(__file__).parents[2]
_PHOTOS = _ROOT / "tests/assets/coco_ccby/data.jsonl"
COCO_CAPTIONS = _ROOT / "tests/assets/coco_captions_val2017.json.gz"
LIST = _ROOT / "docs/photo-negatives.jsonl"
CONCEPTS = ("object", "color", "size", "location", "attribute", "action", "count")
SETTINGS = NegativeSettings(
    preset="hn", per_caption=4, mix={f"replace.{concept}": 1 for concept in CONCEPTS}
)


def photos() -> list[CaptionedSample]:
    """The photos' captions, with the objects that are annotated in them."""
    samples = []
    for line in _PHOTOS.read_text("utf-8").splitlines():
        record = json.loads(line)
        categories = tuple(sorted({one["category"] for one in record["instances"]}))
        key = f"{record['coco_id']:012d}"
        samples.append(CaptionedSample(key, tuple(record["captions"]), categories))
    return samples


def count(samples: Sequence[CaptionedSample]) -> FrequencyTable:
    """The frequencies of the words that the settings replace."""
    counter = frequency_counter(SETTINGS)
    for sample in samples:
        counter.add(sample.captions, sample.objects)
    return counter.table()


def make(table: FrequencyTable) -> list[tuple[CaptionedSample, MadeNegatives]]:
    """Every photo with its negatives."""
    samples = photos()
    return list(zip(samples, NegativeMaker(SETTINGS, 0, table).make(samples), strict=True))


def records(made: Sequence[tuple[CaptionedSample, MadeNegatives]]) -> Iterator[dict[str, str]]:
    """The list's lines."""
    for sample, result in made:
        for caption in result.captions:
            for negative in caption.negatives:
                yield {
                    "image": f"images/{sample.key}.jpg",
                    "caption": caption.text,
                    "negative": negative.text,
                    "concept": negative.concept,
                    "from": negative.source,
                    "to": negative.target,
                }


if __name__ == "__main__":
    lines = [
        json.dumps(record) for record in records(make(count(read_samples(str(COCO_CAPTIONS)))))
    ]
    LIST.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{len(lines)} negatives in {LIST}")
