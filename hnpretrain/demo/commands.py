"""`hnpretrain demo`."""

from __future__ import annotations

from pathlib import Path

import typer


def demo(
    output: Path = typer.Argument(Path("demo"), help="Folder for everything that it makes."),
    seed: int = typer.Option(0, min=0, help="Of the scenes, the weights and the training."),
) -> None:
    """The whole path on rendered scenes: shards, two trainings, evaluation, a report.

    Compares the standard loss with K = 3 hard negatives, on scenes and pairs never trained on.
    """
    from hnpretrain.demo.path import run

    run(output, seed)
