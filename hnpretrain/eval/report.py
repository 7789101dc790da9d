"""What an evaluation found: as JSON for programs, as a table for people.

The JSON file is `{"format": 1, "results": [...]}`. Each result has CLIP_benchmark's fields
(dataset, model, pretrained, task, metrics, language; github.com/LAION-AI/CLIP_benchmark), so that
it can stand in a table beside theirs, and our own: every score with its count, standard error,
chance level and averaging rule, the data's path, notes, and how many items were left out.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hnpretrain.eval.scorers import Accuracy
from hnpretrain.shards import storage

FORMAT = 1


@dataclass(frozen=True)
class Score:
    """One number of a benchmark.

    Attributes:
        name: unique in its result; the key in `metrics`.
        accuracy: value in [0, 1], count and standard error.
        chance: what independent random scores get on average, in [0, 1].
        average: the averaging rule, in words.
    """

    name: str
    accuracy: Accuracy
    chance: float
    average: str


@dataclass(frozen=True)
class Result:
    """A benchmark's scores for one model.

    Attributes:
        dataset: the benchmark's name.
        task: CLIP_benchmark's word for the kind of task.
        data: where the items were read.
        scores: in the order in which they are shown.
        notes: what a reader of the numbers must know, one sentence each.
        left_out: items without their image, which the scores do not cover.
    """

    dataset: str
    task: str
    data: str
    scores: tuple[Score, ...]
    notes: tuple[str, ...] = ()
    left_out: int = 0

    def __getitem__(self, name: str) -> Accuracy:
        """The accuracy of the score of that name."""
        for score in self.scores:
            if score.name == name:
                return score.accuracy
        raise KeyError(f"{self.dataset} has no score {name!r}")


@dataclass(frozen=True)
class ModelName:
    """What was evaluated, in open_clip's two parts: architecture or folder, and weights."""

    model: str
    pretrained: str

    def __str__(self) -> str:
        return f"{self.model}:{self.pretrained}" if self.pretrained else self.model


def to_json(result: Result, name: ModelName) -> dict[str, Any]:
    """One result as a JSON object; see the module's docstring."""
    return {
        "dataset": result.dataset,
        "model": name.model,
        "pretrained": name.pretrained,
        "task": result.task,
        "metrics": {score.name: score.accuracy.value for score in result.scores},
        "language": "en",
        "data": result.data,
        "scores": [
            {
                "name": score.name,
                "value": score.accuracy.value,
                "standard_error": score.accuracy.standard_error,
                "count": score.accuracy.count,
                "chance": score.chance,
                "average": score.average,
            }
            for score in result.scores
        ],
        "notes": list(result.notes),
        "left_out": result.left_out,
    }


def write_json(path: Path, results: Sequence[Result], name: ModelName) -> None:
    """Writes all results to one file, which appears whole or not at all."""
    value = {"format": FORMAT, "results": [to_json(result, name) for result in results]}
    text = json.dumps(value, indent=2, allow_nan=False) + "\n"
    storage.write_bytes(str(path), text.encode())


_COLUMNS = ("score", "n", "%", "+- se", "chance %", "average")


def print_result(result: Result, name: ModelName, console: Console) -> None:
    """The result as a table on a terminal, as aligned plain lines elsewhere."""
    title = f"{result.dataset}, {name}, {result.data}"
    rows = [_cells(score) for score in result.scores]
    if console.is_terminal:
        # Text, not str: names may hold brackets, which a str takes for markup.
        table = Table(title=Text(title), title_justify="left", box=box.SIMPLE_HEAD)
        for column in _COLUMNS:
            table.add_column(column, justify="left" if column in ("score", "average") else "right")
        for row in rows:
            table.add_row(*map(Text, row))
        console.print(table)
    else:
        print_plain(title, console)
        widths = [max(map(len, column)) for column in zip(_COLUMNS, *rows, strict=True)]
        for row in (_COLUMNS, *rows):
            first, *numbers, last = row
            cells = [first.ljust(widths[0])]
            cells += [cell.rjust(width) for cell, width in zip(numbers, widths[1:], strict=False)]
            print_plain("  ".join([*cells, last]), console)
    for note in result.notes:
        print_plain(f"note: {note}", console)
    print_plain("", console)


def _cells(score: Score) -> tuple[str, ...]:
    return (
        score.name,
        f"{score.accuracy.count}",
        f"{100 * score.accuracy.value:.2f}",
        f"{100 * score.accuracy.standard_error:.2f}",
        f"{100 * score.chance:.2f}",
        score.average,
    )


def print_plain(line: str, console: Console) -> None:
    """Prints a line as it is: no markup, no colors, no breaks at the width that rich guesses."""
    console.print(Text(line), soft_wrap=True)
