"""The rows of benchmarks on the screen."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

Row = Mapping[str, Any]
Columns = Mapping[str, Callable[[Row], str]]
"""Heading of a column to its cell of a row."""


def print_loss(rows: Sequence[Row]) -> None:
    """The table of a case; the ratio is the first of ours to the row's own time."""
    columns: Columns = {
        "ms": lambda row: f"{1e3 * row['seconds']:,.1f}",
        "ours/it": _ratio,
        "MiB": _mebibytes,
        "matmul": lambda row: f"{row['share_of_matmul']:.0%}",
        "loss err": lambda row: f"{row['loss_error']:.0e}",
        "grad err": lambda row: f"{row['gradient_error']:.0e}",
    }
    notes = [f"{row['case']} failed: {row['failure']}" for row in rows if row["failure"]]
    _print("loss", ("B", "D", "K", "dtype", "ranks", "device"), columns, rows, notes)


def print_text(rows: Sequence[Row]) -> None:
    """The table of a case, and how long its texts took to lay out; the ratio is as above."""
    columns: Columns = {
        "tokens": lambda row: f"{row['tokens']:,}",
        **_TIMES,
        "feat err": lambda row: f"{row['feature_error']:.0e}",
        "grad err": lambda row: f"{row['gradient_error']:.0e}",
    }
    seconds = {row["layout"]: row["layout_seconds"] for row in rows}
    times = [f"{kind} {1e3 * x:.1f} ms" for kind, x in seconds.items() if x is not None]
    notes = [f"laying texts out: {', '.join(times)}"]
    _print("text tower", ("arch", "B", "K", "dtype", "device"), columns, rows, notes)


def print_step(rows: Sequence[Row]) -> None:
    """The table of a case, and how far the losses of trainings are apart, where that was asked."""
    columns: Columns = {"text tokens": lambda row: f"{row['text_tokens']:,}", **_TIMES}
    notes = [
        f"{row['check_steps']} steps, beside padded rows: losses differ by at most "
        f"{row['loss_difference']:.0e} of their value"
        for row in rows
        if "check_steps" in row
    ]
    fields = ("arch", "B", "K", "dtype", "device", "micro_batches")
    _print("training step", fields, columns, rows, notes)


def print_loader(rows: Sequence[Row]) -> None:
    """The table of a case, what was checked, and the time to resume, where that was measured."""
    peer = next(row for row in rows if row["case"] == "open_clip")
    columns: Columns = {
        "images/s per core": lambda row: f"{row['images_per_second_per_core']:,.0f}",
        "to open_clip": lambda row: f"{peer['seconds'] / row['seconds']:.2f}",
        "images/CPU s": lambda row: f"{row['images_per_cpu_second']:,.0f}",
        "to its": lambda row: (
            f"{row['images_per_cpu_second'] / peer['images_per_cpu_second']:.2f}"
        ),
        "images": lambda row: f"{row['images']:,}",
    }
    notes = [
        f"{row['case']}: {row['keys']:,} different keys; {row['checked']} images differ from "
        f"decoding and transforming by hand by {row['mean_difference']:.2g} of 255 on average, "
        f"{row['largest_difference']:.2g} at most; normalizing adds "
        f"{1e3 * row['normalizing_seconds']:.2f} ms an image where the model is on a CPU"
        for row in rows
        if "checked" in row
    ]
    notes += [
        f"{row['case']}: the first batch from the middle of {row['resume_samples']:,} samples "
        f"comes after {row['resume_seconds']:.2f} s, {row['resume_cpu_seconds']:.2f} s of processor"
        for row in rows
        if row.get("resume_seconds") is not None
    ]
    _print("loader", ("shards", "workers", "cores", "B", "size"), columns, rows, notes)


def _print(
    heading: str,
    fields: Sequence[str],
    columns: Columns,
    rows: Sequence[Row],
    notes: Sequence[str] = (),
) -> None:
    """A table with notes, and the machine below.

    Args:
        fields: what tells the case from others.
    """
    case = ", ".join(f"{field}={_short(rows[0][field])}" for field in fields)
    table = Table(title=case, padding=0)
    table.add_column(heading, min_width=max(len(row["case"]) for row in rows))
    for name in columns:
        table.add_column(name, justify="right")
    for row in rows:
        if row["seconds"] is None:
            table.add_row(row["case"], "failed" if row.get("failure") else "memory")
        else:
            table.add_row(row["case"], *(cell(row) for cell in columns.values()))
    console = Console()
    console.print(table)
    for note in notes:
        console.print(note)
    console.print(rows[0]["machine"], style="dim")


def _short(value: Any) -> Any:
    is_file = isinstance(value, str) and value.endswith(".json")
    return Path(value).name if is_file else value


def _ratio(row: Row) -> str:
    return f"{row['ratio']:.2f}"


def _mebibytes(row: Row) -> str:
    return f"{row['peak_bytes'] / 2**20:,.0f}"


_TIMES: Columns = {
    "ms": lambda row: f"{1e3 * row['seconds']:,.0f}",
    "ours/it": _ratio,
    "samples/s": lambda row: f"{row['samples_per_second']:,.1f}",
    "MiB": _mebibytes,
}
