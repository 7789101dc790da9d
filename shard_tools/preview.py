"""Draws samples of a built data set, and shows them on the terminal: the changed words marked."""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate

from rich.console import Console
from rich.text import Text

from hnpretrain.shards import storage
from hnpretrain.shards.index import Index
from hnpretrain.shards.marker import read_marker
from hnpretrain.shards.schema import Caption, Negative, Sample
from hnpretrain.shards.tar import decode_sample
from shard_tools.edits import changed_pieces


def draw_samples(folder: str, index: Index, count: int, seed: int) -> Iterator[tuple[str, Sample]]:
    """Samples drawn evenly, without repeats, from all finished shards of a folder.

    Args:
        folder: a folder or URL of shards.
        index: its index, or the sum of its markers.
        count: how many; all, if there are fewer.
        seed: of the draw.

    Yields:
        (shard name, sample), in the order of shards and keys.

    Raises:
        ValueError: a sample that is not of format 1.
    """
    ends = list(accumulate(shard.samples for shard in index.shards))
    drawn = random.Random(seed).sample(range(index.samples), min(count, index.samples))
    marker = None
    for place in sorted(drawn):
        number = bisect_right(ends, place)
        shard = index.shards[number]
        if marker is None or marker.name != shard.name:
            marker = read_marker(folder, shard.name)
        inside = place - (ends[number] - shard.samples)
        data = storage.read_range(
            storage.join(folder, shard.name), marker.offsets[inside], marker.offsets[inside + 1]
        )
        yield shard.name, decode_sample(data).sample()


def print_sample(console: Console, shard: str, sample: Sample) -> None:
    """Prints one sample; words of the positive in green, what stands for them in red."""
    size = f"{len(sample.image) / 1e3:.0f} kB {sample.extension}"
    console.print(Text(f"{sample.key}", style="bold").append(f"  {shard}, {size}", style="dim"))
    for caption in sample.captions:
        console.print(Text("  + ").append_text(_positive(caption)))
        for negative in caption.negatives:
            line = Text("    - ").append_text(_changed(caption, negative))
            kind = _printable(f"{negative.concept}/{negative.strategy}")
            console.print(line.append(f"  {kind}", style="dim"))
    console.print()


def _positive(caption: Caption) -> Text:
    text = Text(_printable(caption.text))
    for negative in caption.negatives:
        for start, end in changed_pieces(caption.text, negative)[0]:
            text.stylize("green", start, end)
    return text


def _changed(caption: Caption, negative: Negative) -> Text:
    """The negative; what is new in it stands in brackets, and in red."""
    words = _printable(negative.text)
    text, place = Text(), 0
    for start, end in changed_pieces(caption.text, negative)[1]:
        text.append(words[place:start]).append(f"[{words[start:end]}]", style="red")
        place = end
    return text.append(words[place:])


def _printable(text: str) -> str:
    """Every character in its place, but for those that would command the terminal."""
    return "".join(c if c.isprintable() else "\ufffd" for c in text)
