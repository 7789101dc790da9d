"""The rows of `bench negatives` on the screen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table


def print_rows(rows: Sequence[Mapping[str, Any]]) -> None:
    """Prints speed and coverage, then the text-only test by concept."""
    console = Console()
    speed = Table("one core", "captions/s", "ratio", "first pass", "1+", "2+", "3+ negatives")
    for row in rows:
        first = f"{row['first_pass']:,.0f}/s" if row["first_pass"] else ""
        shares = [f"{share:.1%}" for share in row["coverage"].values()]
        speed.add_row(row["case"], f"{row['ours']:,.0f}", f"{row['ratio']:.2f}", first, *shares)
    console.print(speed)
    test = Table("text-only AUC (0.5: can't be told)", "concept", "negatives", "AUC")
    for row in rows:
        counts = row["negatives"]
        for concept, value in row["auc"].items():
            number = counts.get(concept, 0) if concept else sum(counts.values())
            case = row["case"] if not concept else ""
            shown = "too few" if value is None else f"{value:.3f}"
            test.add_row(case, concept or "all", f"{number:,}", shown)
    console.print(test)
    console.print(rows[0]["machine"], style="dim")
