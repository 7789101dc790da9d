"""Many trainings in one group of two processes, which spares the start of all but one."""

from __future__ import annotations

import contextlib
import itertools
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from hnpretrain.data.samples import Batch
from hnpretrain.train import loop
from hnpretrain.train.distributed import process_group
from tests.support.training import clean_environment, train_here

ROOT = Path(__file__).parents[2]
_ERROR = "error of a rank: "
# Among the overrides, what happens on rank 1 alone: it has another override; it cannot write the
# checkpoint whose name follows; its images at a step, from 0, are not finite.
OTHER = "other: "
FULL_DISK = "full disk at "
POISON = "poison at "


def train_all(recipe: Path, runs: Sequence[Sequence[str]]) -> str:
    """Trains a recipe with each of several lists of overrides, with two ranks; what was printed.

    Fails with what was printed if one of them does.
    """
    output = _run(recipe, runs)
    assert not errors_in(output), output
    return output


def errors_of(recipe: Path, *runs: Sequence[str]) -> list[str]:
    """What each of two ranks raises that trains a recipe, once for each list of overrides."""
    return errors_in(_run(recipe, runs))


def errors_in(output: str) -> list[str]:
    return [line.partition(_ERROR)[2] for line in output.splitlines() if line.startswith(_ERROR)]


def _run(recipe: Path, runs: Sequence[Sequence[str]]) -> str:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += [__file__, str(recipe), *("\n".join(overrides) for overrides in runs)]
    environment = clean_environment() | {"PYTHONPATH": os.fspath(ROOT)}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env=environment, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@contextlib.contextmanager
def _refusing(refused: Sequence[str]) -> Iterator[None]:
    """Inside, this rank can write none of DeepSpeed's files of some checkpoints."""
    save = torch.save

    def refusing(state: object, path: str, **options: object) -> None:
        if any(name in path for name in refused):
            raise OSError(28, "No space left on device")
        save(state, path, **options)

    torch.save = refusing
    try:
        yield
    finally:
        torch.save = save


@contextlib.contextmanager
def _poisoning(steps: Sequence[str]) -> Iterator[None]:
    """Inside, this rank's images at some steps are not finite."""
    compute, number = loop.forward_backward, itertools.count()

    def poisoned(engine: Any, loss: Any, batches: Sequence[Batch], *rest: Any) -> Any:
        if str(next(number)) in steps:
            batches = [_poison(batch) for batch in batches]
        return compute(engine, loss, batches, *rest)

    loop.forward_backward = poisoned
    try:
        yield
    finally:
        loop.forward_backward = compute


def _poison(batch: Batch) -> Batch:
    return replace(batch, image_BCHW=batch.image_BCHW * torch.nan, normalization=None)


def _train(recipe: Path, lines: Sequence[str], rank: int) -> None:
    marked: dict[str, list[str]] = {OTHER: [], FULL_DISK: [], POISON: []}
    overrides = []
    for line in lines:
        mark = next((mark for mark in marked if line.startswith(mark)), None)
        if mark is None:
            overrides.append(line)
        elif rank == 1:
            marked[mark].append(line.removeprefix(mark))
    with _refusing(marked[FULL_DISK]), _poisoning(marked[POISON]):
        train_here(recipe, *overrides, *marked[OTHER])


if __name__ == "__main__":
    with process_group() as place:
        for run in sys.argv[2:]:
            try:
                _train(Path(sys.argv[1]), run.split("\n"), place.rank)
            except (ValueError, OSError) as error:
                print(f"{_ERROR}{error!r}\n", end="", flush=True)
