"""The rows of benchmarks on the screen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from rich.console import Console
from rich.table import Table

_CASE = ("B", "D", "K", "dtype", "ranks", "device")


def print_loss(rows: Sequence[Mapping[str, Any]]) -> None:
    """One table a case; the ratio is the fastest of ours to the row's own time."""
    console = Console()
    for case, group in groupby(rows, key=lambda row: tuple(row[name] for name in _CASE)):
        title = ", ".join(f"{name}={value}" for name, value in zip(_CASE, case, strict=True))
        table = Table(title=title, padding=0)
        table.add_column("loss", min_width=max(len(row["case"]) for row in rows))
        for name in ("ms", "ours/it", "MiB", "matmul", "loss err", "grad err"):
            table.add_column(name, justify="right")
        for row in group:
            if row["seconds"] is None:
                table.add_row(row["case"], "memory")
                continue
            table.add_row(
                row["case"],
                f"{1e3 * row['seconds']:,.1f}",
                f"{row['ratio']:.2f}",
                f"{row['peak_bytes'] / 2**20:,.0f}",
                f"{row['share_of_matmul']:.0%}",
                f"{row['loss_error']:.0e}",
                f"{row['gradient_error']:.0e}",
            )
        console.print(table)
    console.print(rows[0]["machine"], style="dim")
