"""Results as a table for people."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hnpretrain.eval import compare
from hnpretrain.eval.benchmarks.base import About
from hnpretrain.eval.results import ModelName, Result, Score, Withheld

_COLUMNS = ("score", "n", "%", "+- se", "chance %", "ties", "average")


def print_result(result: Result, name: ModelName, console: Console) -> None:
    """The result as a table on a terminal, as aligned plain lines elsewhere."""
    title = f"{result.dataset}, {name}, {result.data}"
    _print_table(title, _COLUMNS, [_cells(score) for score in result.scores], console)
    for note in result.notes:
        print_plain(f"note: {note}", console)
    print_plain("", console)


def print_comparisons(comparisons: Sequence[compare.Comparison], console: Console) -> None:
    """Every run against the first, benchmark by benchmark, and how to read it."""
    for number, comparison in enumerate(comparisons, start=1):
        runs = {"A": comparison.first, compare.letter(number): comparison.second}
        for letter, run in runs.items():
            print_plain(f"{letter}: {run.title}, {run.path}", console)
            for each in run.withheld:
                print_plain(f"{letter}: scores of {each['dataset']} are withheld", console)
        a, b = runs
        columns = ("score", "n", f"{a} %", f"{b} %", f"{b} - {a}", "+- se", "p", "p (Holm)", "test")
        for benchmark in comparison.benchmarks:
            rows = [_paired_cells(each) for each in benchmark.differences]
            _print_table(compare.title(benchmark.key), columns, rows, console)
            for letter, run in runs.items():
                for note in run.by_key()[benchmark.key]["notes"]:
                    print_plain(f"note on {letter}: {note}", console)
            for note in benchmark.notes():
                print_plain(f"note: {note}", console)
        for reason in comparison.skipped:
            print_plain(f"not compared: {reason}", console)
        print_plain("", console)
    print_plain(compare.rules(comparisons), console)


def _paired_cells(difference: compare.Difference) -> tuple[str, ...]:
    return (
        difference.name,
        f"{difference.count}",
        f"{100 * difference.first:.2f}",
        f"{100 * difference.second:.2f}",
        f"{100 * difference.difference:+.2f}" + ("*" if difference.is_significant else " "),
        f"{100 * difference.standard_error:.2f}",
        compare.told_p(difference.p),
        compare.told_p(difference.corrected),
        difference.test,
    )


def _print_table(
    title: str, columns: tuple[str, ...], rows: Sequence[tuple[str, ...]], console: Console
) -> None:
    """The first and the last column hold words, the others numbers."""
    if console.is_terminal:
        # Text, not str: names may hold brackets, which a str takes for markup.
        table = Table(title=Text(title), title_justify="left", box=box.SIMPLE_HEAD)
        for column in columns:
            words = column in (columns[0], columns[-1])
            table.add_column(column, justify="left" if words else "right")
        for row in rows:
            table.add_row(*map(Text, row))
        console.print(table)
    else:
        print_plain(title, console)
        widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
        for row in (columns, *rows):
            first, *numbers, last = row
            cells = [first.ljust(widths[0])]
            cells += [cell.rjust(width) for cell, width in zip(numbers, widths[1:], strict=False)]
            print_plain("  ".join([*cells, last]), console)


_REASONS_SHOWN = 20


def print_withheld(withheld: Withheld, console: Console) -> None:
    """Why a score was withheld, with the images that are to blame."""
    print_plain(f"error: {withheld}", console)
    for reason in withheld.reasons[:_REASONS_SHOWN]:
        print_plain(f"  {reason}", console)
    more = len(withheld.reasons) - _REASONS_SHOWN
    if more > 0:
        print_plain(f"  and {more} more: --json FILE has all", console)


def print_kinds(kinds: Sequence[About], console: Console) -> None:
    """Each benchmark: what it is, what to give, where to get it and its licence."""
    for about in kinds:
        print_plain(f"{about.name}: {about.title}", console)
        place = f"{about.name}=DATA,IMAGES" if about.images else f"{about.name}=DATA"
        print_plain(f"  --benchmark {place}", console)
        print_plain(f"  DATA: {about.data}", console)
        if about.images:
            print_plain(f"  IMAGES: {about.images}", console)
        hub = f" (or {about.name}=hub: huggingface.co/datasets/{about.hub})" if about.hub else ""
        print_plain(f"  get it from {about.source}{hub}", console)
        print_plain(f"  licence: {about.licence}", console)


def _cells(score: Score) -> tuple[str, ...]:
    return (
        score.name,
        f"{score.accuracy.count}",
        f"{100 * score.accuracy.value:.2f}",
        f"{100 * score.accuracy.standard_error:.2f}",
        f"{100 * score.chance:.2f}",
        f"{score.ties}",
        score.average,
    )


def print_plain(line: str, console: Console) -> None:
    """Prints a line as it is: no markup, no colors, no breaks at the width that rich guesses."""
    console.print(Text(line), soft_wrap=True)
