"""Pairs as shards of format 1: two samples a pair, each other's negative, side by side."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from hnpretrain.inpaint.pictures import Pictures
from hnpretrain.inpaint.selection import Pair
from hnpretrain.shards import storage
from hnpretrain.shards.images import check_header
from hnpretrain.shards.index import INDEX_NAME, Index, write_index
from hnpretrain.shards.marker import Marker
from hnpretrain.shards.schema import Caption, Negative, Sample
from shard_tools.edits import locate
from shard_tools.writer import ShardWriter

STRATEGY = "inpaint"
# Raised by one whenever other bytes are written for the same pairs.
_VERSION = 1
_KEY_LENGTH = 78  # of at most 80, two of which say which sample of the pair it is


def write_shards(
    out: Path,
    pairs: Sequence[Pair],
    read: Callable[[Pair], Pictures],
    pairs_per_shard: int,
    max_pixels: int,
    source: str,
) -> Index:
    """Writes the pairs, in their order, and the index, last.

    Pair n has the keys `00000n-ID-a` (the photo) and `00000n-ID-b` (the picture made of it), which
    no other key can come between. Their `meta` is the source's, with `pair` (ID) and `side`.

    Args:
        out: folder; shards and index of an earlier export into it are removed.
        pairs: at least one.
        read: gives the pictures of one.
        pairs_per_shard: two samples each.
        max_pixels: largest width x height of a picture.
        source: what the markers name as it.
    """
    storage.remove(str(out / INDEX_NAME))
    for pattern in ("pairs-*.marker.json", "pairs-*.tar"):  # a marker goes first
        for path in out.glob(pattern):
            path.unlink()
    settings = f"hnpretrain inpaint export {_VERSION} pairs_per_shard={pairs_per_shard}"
    markers: list[Marker] = []
    for first in range(0, len(pairs), pairs_per_shard):
        digest = hashlib.sha256()
        with ShardWriter() as writer:
            for number, pair in enumerate(pairs[first : first + pairs_per_shard], first):
                for sample in _samples(number, pair, read(pair), max_pixels):
                    digest.update(sample.metadata_json() + sample.image)
                    writer.add(sample)
            marker = writer.finish(
                os.fspath(out),
                f"pairs-{len(markers):06d}.tar",
                hashlib.sha256(settings.encode()).hexdigest(),
                source,
                digest.hexdigest(),
            )
        markers.append(marker.without_samples())
    index = Index.of(markers)
    write_index(os.fspath(out), index)
    return index


def _samples(number: int, pair: Pair, pictures: Pictures, max_pixels: int) -> tuple[Sample, Sample]:
    key = f"{number:06d}-{pair.proposal.id}"[:_KEY_LENGTH]
    forth, back = edits(pair)
    sides = (
        ("a", "photo", pictures.photo, pair.caption, forth),
        ("b", "inpainted", pictures.image, pair.new_caption, back),
    )
    first, second = (
        Sample(
            f"{key}-{letter}",
            image,
            check_header(image, max_pixels),
            (Caption(caption, (negative,)),),
            {**pair.proposal.meta, "pair": pair.proposal.id, "side": side},
        )
        for letter, side, image, caption, negative in sides
    )
    return first, second


def edits(pair: Pair) -> tuple[Negative, Negative]:
    """Each caption as the other's negative: the photo's new one, and the picture's old one.

    The proposal's own words where they still fit; else all that lies between what the captions
    have in common at both ends, in whole words.
    """
    proposal = pair.proposal
    told = (proposal.source, proposal.target, proposal.span)
    forth = Negative(pair.new_caption, proposal.concept, STRATEGY, *told)
    try:
        edit = locate(pair.caption, forth)
    except ValueError:
        source, target = _difference(pair.caption, pair.new_caption)
        forth = replace(
            forth,
            source=pair.caption[slice(*source)],
            target=pair.new_caption[slice(*target)],
            span=source,
        )
    else:
        target = edit.target
    back = replace(forth, text=pair.caption, source=forth.target, target=forth.source, span=target)
    return forth, back


def _difference(first: str, second: str) -> tuple[tuple[int, int], tuple[int, int]]:
    """The ranges of two texts between their common words at both ends."""
    words, others = first.split(" "), second.split(" ")
    shorter = min(len(words), len(others))
    same = next((n for n in range(shorter) if words[n] != others[n]), shorter)
    left = shorter - same
    tail = next((n for n in range(left) if words[-1 - n] != others[-1 - n]), left)
    start = min(len("".join(f"{word} " for word in words[:same])), len(first), len(second))
    end = len("".join(f" {word}" for word in words[len(words) - tail :]))
    # Where one has no word in between, the space before and that behind are one.
    end = min(end, len(first) - start, len(second) - start)
    return (start, len(first) - end), (start, len(second) - end)
