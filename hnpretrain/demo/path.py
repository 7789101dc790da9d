"""Runs the demo: the same commands that a user would type, one after the other.

    world -> shards with negatives -> two trainings under torchrun (standard loss; K = 3 negatives)
    -> evaluation on pairs of unseen scenes -> a table and demo/report.html

Both runs see the same images and captions in the same order, from the same weights; K is the only
difference. If the demo is started again it goes on where it was: finished shards are kept by their
markers, trainings go on from their checkpoints. A folder that was made with other settings is
refused, so that a table never mixes two demos.
"""

from __future__ import annotations

import hashlib
import json
import shlex
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from hnpretrain.demo.report import Comparison, Run, write_report
from hnpretrain.shards import storage
from hnpretrain.worlds.pairs import CONCEPTS

SCENES = 5000
CAPTIONS = 4
PAIRS_PER_CONCEPT = 500
IMAGE_SIZE = 48
PROCESSES = 2
_ASSETS = Path(__file__).parent
_RECIPE = _ASSETS / "recipe.yaml"
# In place of the lexicons for photos: words that no scene shows, or that are put in more often than
# they are replaced, would tell negatives from captions without a look at the picture.
_LEXICONS = {concept: _ASSETS / "lexicons" / f"{concept}.yaml" for concept in CONCEPTS}
RUNS = (Run("standard", "standard loss", 0), Run("negatives", "K = 3 negatives", 3))


def run(output: Path, seed: int) -> None:
    """Runs the whole demo in a folder.

    Raises:
        ValueError: the folder holds a demo of other settings.
        OSError: a command failed; its own message stands above.
    """
    started = time.perf_counter()
    output.mkdir(parents=True, exist_ok=True)
    world, pairs, shards = output / "world", output / "pairs.parquet", output / "shards"
    _keep_settings(output / "demo.json", seed)
    recipe = output / "recipe.yaml"
    recipe.write_text(_RECIPE.read_text())

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
        *(f"negatives.lexicons.{concept}={path}" for concept, path in _LEXICONS.items()),
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
    print(f"{minutes:.1f} minutes since this start; pictures and curves: {report}")


def _keep_settings(path: Path, seed: int) -> None:
    """Writes down what the folder's demo is made with; refuses to mix two demos in one folder."""
    made_with = {
        "seed": seed,
        "scenes": SCENES,
        "captions": CAPTIONS,
        "pairs_per_concept": PAIRS_PER_CONCEPT,
        "image_size": IMAGE_SIZE,
        **{
            file.name: hashlib.sha256(file.read_bytes()).hexdigest()[:12]
            for file in (_RECIPE, *_LEXICONS.values())
        },
    }
    if path.is_file():
        before = json.loads(path.read_text())
        changed = [
            f"{key}={before.get(key)}, not {value}"
            for key, value in made_with.items()
            if before.get(key) != value
        ]
        if changed:
            raise ValueError(
                f"{path.parent} holds a demo that was made with {'; '.join(changed)}: give another "
                f"folder, or remove it"
            )
    storage.write_bytes(str(path), (json.dumps(made_with, indent=2) + "\n").encode())


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
