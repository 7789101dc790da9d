"""Shows samples of a built data set: captions, and negatives with the changed words marked."""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate

from rich.console import Console
from rich.text import Text

from hnpretrain.shards import storage
from hnpretrain.shards.schema import Caption, Negative, Sample
from hnpretrain.shards.tar import decode_sample
from shard_tools.summary import read_markers


def draw_samples(folder: str, count: int, seed: int) -> Iterator[tuple[str, Sample]]:
    """Samples drawn evenly, without repeats, from all finished shards of a folder.

    Yields:
        (shard name, sample), in the order of shards and keys; all samples if there are fewer.

    Raises:
        ValueError: no finished shard, or a sample that is not of format 1.
    """
    markers = read_markers(folder)
    ends = list(accumulate(marker.samples for marker in markers))
    drawn = random.Random(seed).sample(range(ends[-1]), min(count, ends[-1]))
    for place in sorted(drawn):
        number = bisect_right(ends, place)
        marker = markers[number]
        inside = place - (ends[number] - marker.samples)
        data = storage.read_range(
            storage.join(folder, marker.name), marker.offsets[inside], marker.offsets[inside + 1]
        )
        yield marker.name, decode_sample(data).sample()


def print_sample(console: Console, shard: str, sample: Sample) -> None:
    """Prints one sample; words of the positive in green, what stands for them in red."""
    size = f"{len(sample.image) / 1e3:.0f} kB {sample.extension}"
    console.print(Text(f"{sample.key}", style="bold").append(f"  {shard}, {size}", style="dim"))
    for caption in sample.captions:
        console.print(Text("  + ").append_text(_positive(caption)))
        for negative in caption.negatives:
            line = Text("    - ").append_text(_changed(caption, negative))
            console.print(line.append(f"  {negative.concept}/{negative.strategy}", style="dim"))
    console.print()


def _positive(caption: Caption) -> Text:
    text = Text(caption.text)
    for negative in caption.negatives:
        text.stylize("green", *negative.span)
    return text


def _changed(caption: Caption, negative: Negative) -> Text:
    """The negative; what differs from the positive stands in brackets, and in red."""
    start = _common(caption.text, negative.text)
    rest = min(len(caption.text), len(negative.text)) - start
    end = len(negative.text) - min(rest, _common(caption.text[::-1], negative.text[::-1]))
    # Whole words: "red" and "green" share letters that are no part of what stayed.
    while start > 0 and negative.text[start - 1].isalnum():
        start -= 1
    while end < len(negative.text) and negative.text[end].isalnum():
        end += 1
    text = Text(negative.text[:start])
    text.append("[" + negative.text[start:end] + "]", style="red")
    return text.append(negative.text[end:])


def _common(first: str, second: str) -> int:
    """Length of the longest common prefix."""
    pairs = zip(first, second, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))
