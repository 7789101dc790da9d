"""A data set's counts as tables: what `hnpretrain shard stats` and the end of a build show."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console
from rich.table import Table

from hnpretrain.shards import storage
from hnpretrain.shards.index import INDEX_NAME, Index, read_index
from hnpretrain.shards.marker import Marker, read_marker


def read_markers(folder: str) -> list[Marker]:
    """The markers in a folder, in the order of the shards' names.

    Raises:
        ValueError: there is no such folder, no marker in it, or a broken one.
    """
    try:
        names = storage.list_files(folder, ".marker.json")
    except FileNotFoundError as error:
        raise ValueError(f"{folder!r} is not a folder") from error
    if not names:
        raise ValueError(f"{folder!r} holds no finished shard (no .marker.json)")
    return [read_marker(folder, name.removesuffix(".marker.json") + ".tar") for name in names]


def read_counts(folder: str) -> tuple[Index, bool]:
    """A data set's index, and whether it is finished; else the sum of the markers so far."""
    if storage.exists(storage.join(folder, INDEX_NAME)):
        return read_index(folder), True
    return Index.of(read_markers(folder)), False


def print_summary(console: Console, index: Index) -> None:
    """Prints the totals, then negatives by concept and by strategy, then rejects by reason."""
    totals = Table("total", "")
    for name, value in (
        ("shards", f"{len(index.shards):,}"),
        ("size", f"{sum(shard.bytes for shard in index.shards) / 1e6:,.1f} MB"),
        ("samples", f"{index.samples:,}"),
        ("captions", f"{index.captions:,}"),
        ("captions with negatives", _share(index.captions_with_negatives, index.captions)),
        ("negatives", f"{index.negatives:,}"),
        ("negatives a caption", f"{index.negatives / max(index.captions, 1):.2f}"),
        ("the most of one caption", f"{index.max_negatives}"),
    ):
        totals.add_row(name, value)
    console.print(totals)
    left_out = sum(index.rejects.values())
    candidates = index.negatives + sum(index.candidates_rejected.values())
    _print_counts(console, "negatives by concept", index.concepts, index.negatives)
    _print_counts(console, "negatives by strategy", index.strategies, index.negatives)
    _print_counts(console, "candidates refused", index.candidates_rejected, candidates)
    _print_counts(console, "samples and captions left out", index.rejects, index.samples + left_out)


def _print_counts(console: Console, title: str, counts: Mapping[str, int], total: int) -> None:
    if not counts:
        return
    table = Table(title, "count", "share")
    for name, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        table.add_row(name, f"{count:,}", f"{count / max(total, 1):.1%}")
    console.print(table)


def _share(part: int, whole: int) -> str:
    return f"{part:,} ({part / max(whole, 1):.1%})"
