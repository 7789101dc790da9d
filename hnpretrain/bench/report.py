"""The rows of benchmarks on the screen."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

Row = Mapping[str, Any]
Columns = Mapping[str, Callable[[Row], str]]
"""Heading of a column to its cell of a row."""


def print_loss(rows: Sequence[Row]) -> None:
    """One table a case; the ratio is the fastest of ours to the row's own time."""
    columns: Columns = {
        "ms": lambda row: f"{1e3 * row['seconds']:,.1f}",
        "ours/it": _ratio,
        "MiB": _mebibytes,
        "matmul": lambda row: f"{row['share_of_matmul']:.0%}",
        "loss err": lambda row: f"{row['loss_error']:.0e}",
        "grad err": lambda row: f"{row['gradient_error']:.0e}",
    }
    console = Console()
    for title, group in _by_case(rows, ("B", "D", "K", "dtype", "ranks", "device")):
        console.print(_table(title, "loss", columns, group))
    console.print(rows[0]["machine"], style="dim")


def print_text(rows: Sequence[Row]) -> None:
    """One table a case, and how long its texts took to lay out; the ratio is as above."""
    columns: Columns = {
        "tokens": lambda row: f"{row['tokens']:,}",
        "ms": lambda row: f"{1e3 * row['seconds']:,.0f}",
        "ours/it": _ratio,
        "samples/s": lambda row: f"{row['samples_per_second']:,.1f}",
        "MiB": _mebibytes,
        "feat err": lambda row: f"{row['feature_error']:.0e}",
        "grad err": lambda row: f"{row['gradient_error']:.0e}",
    }
    console = Console()
    for title, group in _by_case(rows, ("arch", "B", "K", "dtype", "device")):
        console.print(_table(title, "text tower", columns, group))
        seconds = {row["layout"]: row["layout_seconds"] for row in group}
        times = [f"{kind} {1e3 * x:.1f} ms" for kind, x in seconds.items() if x is not None]
        console.print(f"laying texts out: {', '.join(times)}")
    console.print(rows[0]["machine"], style="dim")


def print_step(rows: Sequence[Row]) -> None:
    """One table a case, and how far the losses of its trainings are apart, where that was asked."""
    columns: Columns = {
        "text tokens": lambda row: f"{row['text_tokens']:,}",
        "ms": lambda row: f"{1e3 * row['seconds']:,.0f}",
        "ours/it": _ratio,
        "samples/s": lambda row: f"{row['samples_per_second']:,.1f}",
        "MiB": _mebibytes,
    }
    console = Console()
    for title, group in _by_case(rows, ("arch", "B", "K", "dtype", "device", "micro_batches")):
        console.print(_table(title, "training step", columns, group))
        for row in group:
            if "check_steps" in row:
                console.print(
                    f"{row['check_steps']} steps, beside padded rows: losses differ by at most "
                    f"{row['loss_difference']:.0e} of their value"
                )
    console.print(rows[0]["machine"], style="dim")


def _by_case(rows: Sequence[Row], fields: Sequence[str]) -> Iterator[tuple[str, list[Row]]]:
    """(title, rows) of each case, in order."""
    for case, group in groupby(rows, key=lambda row: [row[field] for field in fields]):
        named = zip(fields, case, strict=True)
        yield ", ".join(f"{field}={_short(value)}" for field, value in named), list(group)


def _short(value: Any) -> Any:
    is_file = isinstance(value, str) and value.endswith(".json")
    return Path(value).name if is_file else value


def _table(title: str, heading: str, columns: Columns, rows: Sequence[Row]) -> Table:
    table = Table(title=title, padding=0)
    table.add_column(heading, min_width=max(len(row["case"]) for row in rows))
    for name in columns:
        table.add_column(name, justify="right")
    for row in rows:
        if row["seconds"] is None:
            table.add_row(row["case"], "memory")
        else:
            table.add_row(row["case"], *(cell(row) for cell in columns.values()))
    return table


def _ratio(row: Row) -> str:
    return f"{row['ratio']:.2f}"


def _mebibytes(row: Row) -> str:
    return f"{row['peak_bytes'] / 2**20:,.0f}"
