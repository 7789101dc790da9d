"""A data set's counts as tables: what `hnpretrain shard stats` and the end of a build show."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from hnpretrain.shards import storage
from hnpretrain.shards.index import INDEX_NAME, Index, read_index
from hnpretrain.shards.marker import Marker, read_marker
from shard_tools.text_stats import NEGATIVES, SEEN, TextStats, lengths

# Rows of the tables of words.
_WORDS_SHOWN = 8


def read_counts(folder: str) -> tuple[Index, bool]:
    """A data set's index, and whether it is finished; else the sum of the markers so far.

    Raises:
        ValueError: there is no such folder, no marker in it, or a broken one.
    """
    if storage.exists(storage.join(folder, INDEX_NAME)):
        return read_index(folder), True
    return sum_markers(folder), False


def require_built(index: Index, what: str) -> None:
    """Raises ValueError if the index is one of tars that others wrote."""
    if index.tars:
        raise ValueError(
            f"{what} is for what `shard build` made; this index, of `shard index`, is of tars that "
            "others wrote"
        )


def sum_markers(folder: str) -> Index:
    """The index that the markers in a folder add up to.

    Raises:
        ValueError: there is no such folder, no marker in it, or a broken one.
    """
    try:
        names = storage.list_files(folder, ".marker.json")
    except FileNotFoundError as error:
        raise ValueError(f"{folder!r} is not a folder") from error
    if not names:
        raise ValueError(f"{folder!r} holds no finished shard (no .marker.json)")
    return Index.of(_essentials(folder, names))


def _essentials(folder: str, names: list[str]) -> Iterator[Marker]:
    """Markers without the lists that make them large: there may be 40,000 of 10,000 samples."""
    for name in names:
        marker = read_marker(folder, name.removesuffix(".marker.json") + ".tar")
        yield marker.without_samples()


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
        table.add_row(escape(name), f"{count:,}", f"{count / max(total, 1):.1%}")
    console.print(table)


def _share(part: int, whole: int) -> str:
    return f"{part:,} ({part / max(whole, 1):.1%})"


def print_text_stats(console: Console, stats: TextStats) -> None:
    """Prints what `TextStats` holds: concepts, coverage, lengths, repeats, then words."""
    read = f"read: {stats.shards:,} shards, {stats.samples:,} samples"
    if stats.unreadable:
        read += f"; {stats.unreadable:,} samples cannot be read, `shard verify` names all"
    _say(console, read)
    for line in stats.unreadable_named:
        _say(console, f"  {line}")

    strategies = sorted({strategy for _, strategy in stats.pairs})
    concepts = sorted({concept for concept, _ in stats.pairs})
    table = Table("negatives", *map(escape, strategies))
    for concept in concepts:
        table.add_row(escape(concept), *(f"{stats.pairs[concept, name]:,}" for name in strategies))
    console.print(table)

    table = Table("captions with this many negatives", *NEGATIVES)
    for name, row in stats.coverage_rows():
        table.add_row(escape(name), *(f"{count / max(stats.captions, 1):.1%}" for count in row))
    console.print(table)

    table = Table("length in words", "mean", "50%", "90%", "99%")
    for name, counts in (("captions", stats.caption_words), ("negatives", stats.negative_words)):
        mean, *percentiles = lengths(counts).values()
        table.add_row(name, f"{mean:.1f}", *(f"{length:.0f}" for length in percentiles))
    console.print(table)

    shares = stats.repeats.shares()
    looked_at = shares.pop("share_of_texts_looked_at")
    exact = "exact" if looked_at == 1 else f"estimated from {looked_at:.3%} of the texts"
    table = Table(f"repeats ({exact})", "share")
    for name, share in shares.items():
        table.add_row(name.replace("_", " "), f"{share:.2%}")
    console.print(table)
    for concept in concepts:
        _print_words(console, stats, concept)


def _print_words(console: Console, stats: TextStats, concept: str) -> None:
    words = stats.words(concept)
    if not words:
        return
    guess = stats.guess(concept)
    title = f"{escape(concept)}: "
    if guess is None:
        title += f"no word was exchanged {SEEN} times"
    else:
        title += f"the changed word alone tells a negative from its caption in {guess:.1%}"
    table = Table("word", "left", "entered", "entered of both", "most frequent exchanges from it")
    table.title, table.title_justify = title, "left"
    to: dict[str, list[tuple[int, str]]] = {}
    for (of, left, entered), count in stats.exchanges.items():
        if of == concept:
            to.setdefault(left, []).append((-count, entered))
    for word, (times_left, times_entered) in list(words.items())[:_WORDS_SHOWN]:
        most = ", ".join(
            f"{_word(name)} {-count:,}" for count, name in sorted(to.get(word, []))[:3]
        )
        share = f"{times_entered / (times_left + times_entered):.0%}"
        table.add_row(_word(word), f"{times_left:,}", f"{times_entered:,}", share, most)
    console.print(table)


def _word(word: str) -> str:
    return escape(word) if word else "(nothing)"


def _say(console: Console, line: str) -> None:
    console.print(line, soft_wrap=True, highlight=False, markup=False)
