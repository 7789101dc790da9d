"""Runs the demo: the same commands that a user would type, one after the other.

    world -> shards with negatives -> two trainings under torchrun (standard loss; K = 3 negatives)
    -> evaluation on pairs of unseen scenes -> a table and demo/report.html

Both runs see the same images and captions in the same order, from the same weights; K is the only
difference. Every step is skipped by what it left behind if the demo is started again: shards by
their markers, trainings by their checkpoints.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from hnpretrain.demo.report import Comparison, Run, write_report
from hnpretrain.worlds.pairs import CONCEPTS

SCENES = 5000
CAPTIONS = 4
PAIRS_PER_CONCEPT = 250
IMAGE_SIZE = 48
PROCESSES = 2
_LEXICONS = ("object", "size")
_ASSETS = Path(__file__).parent
RUNS = (Run("standard", "standard loss", 0), Run("negatives", "K = 3 negatives", 3))


def run(output: Path, seed: int) -> None:
    """Runs the whole demo in a folder.

    Raises:
        ValueError: the folder holds the demo of another seed.
        OSError: a command failed; its own message stands above.
    """
    started = time.perf_counter()
    output.mkdir(parents=True, exist_ok=True)
    world, pairs, shards = output / "world", output / "pairs.parquet", output / "shards"
    _keep_seed(output / "seed", seed)
    recipe = output / "recipe.yaml"
    recipe.write_text((_ASSETS / "recipe.yaml").read_text())

    common = ("--size", IMAGE_SIZE, "--seed", seed)
    _command("world", "scenes", world, "--count", SCENES, "--captions", CAPTIONS, *common)
    _command("world", "pairs", pairs, "--per-concept", PAIRS_PER_CONCEPT, *common)
    _command(
        "shard",
        "build",
        "source.kind=jsonl",
        f"source.path={world / 'captions.jsonl'}",
        f"source.images={world}",
        f"output={shards}",
        f"seed={seed}",
        # A negative that names what no scene shows could be told without looking.
        *(f"negatives.lexicons.{name}={_ASSETS / 'lexicons' / name}.yaml" for name in _LEXICONS),
    )
    for each in RUNS:
        _command(
            "launch",
            "local",
            recipe,
            f"output={output / each.name}",
            f"data.shards={shards}",
            f"data.negatives={each.negatives}",
            f"seed={seed}",
            "--nproc",
            PROCESSES,
        )
    for each in RUNS:
        _command(
            "eval",
            output / each.name,
            "--benchmark",
            f"inpaintcoco={pairs}",
            "--json",
            output / f"{each.name}.json",
        )
    comparison = Comparison.read(output, RUNS, CONCEPTS)
    (output / "results.json").write_text(json.dumps(comparison.to_json(seed), indent=2) + "\n")
    minutes = (time.perf_counter() - started) / 60
    report = write_report(output, shards, comparison, minutes)
    _print_table(comparison)
    print(f"{minutes:.1f} minutes; pictures and curves: {report}")


def _keep_seed(path: Path, seed: int) -> None:
    """Refuses to mix two seeds in one folder."""
    if path.is_file() and path.read_text() != str(seed):
        raise ValueError(
            f"{path.parent} holds the demo of seed {path.read_text()}: give another folder for "
            f"--seed {seed}, or remove it"
        )
    path.write_text(str(seed))


def _command(*arguments: object) -> None:
    words = [str(argument) for argument in arguments]
    print(f"\n$ hnpretrain {shlex.join(words)}", flush=True)
    done = subprocess.run([sys.executable, "-m", "hnpretrain.cli", *words], check=False)
    if done.returncode:
        raise OSError(f"hnpretrain {words[0]} ended with status {done.returncode}")


def _print_table(comparison: Comparison) -> None:
    table = Table(
        title=f"Pairs of unseen scenes that differ in one concept "
        f"({PAIRS_PER_CONCEPT} a concept; percent, +- standard error)"
    )
    table.add_column("concept")
    for score in comparison.scores:
        for run in comparison.runs:
            table.add_column(f"{score}\n{run.title}", justify="right")
    for concept in (*comparison.concepts, "all"):
        cells = [
            comparison.cell(score, concept, run)
            for score in comparison.scores
            for run in comparison.runs
        ]
        table.add_row(concept, *cells)
    chances = [
        f"{100 * comparison.chance(score):.0f}"
        for score in comparison.scores
        for _ in comparison.runs
    ]
    table.add_row("chance", *chances)
    # Wide enough for a log, where rich would guess 80 columns.
    Console(width=120).print(table)
