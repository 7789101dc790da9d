"""Trainings in one group of two processes, which waits for more: only the first one starts it."""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import torch

from hnpretrain.data.samples import Batch
from hnpretrain.train import loop
from hnpretrain.train.distributed import process_group
from tests.support.training import clean_environment, end, train_here

ROOT = Path(__file__).parents[2]
_ERROR = "error of a rank: "
_SECONDS = 300
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
    try:
        return _group().run({"recipe": str(recipe), "runs": [list(run) for run in runs]})
    except AssertionError:
        _group.cache_clear()  # it has ended, and the next one starts anew
        raise


class _Group:
    """Two ranks that wait for jobs, each a file in a folder; they end with this process."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="many-runs-"))
        self._jobs = itertools.count()
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        with (self._folder / "output").open("wb") as output:
            self._process = subprocess.Popen(
                [*command, "--nproc_per_node=2", __file__, str(self._folder), str(os.getpid())],
                stdout=output,
                stderr=subprocess.STDOUT,
                text=True,
                env=clean_environment() | {"PYTHONPATH": os.fspath(ROOT)},
            )
        self._output = (self._folder / "output").open(encoding="utf-8")

    def run(self, job: dict[str, Any]) -> str:
        """What the ranks print at a job; fails, and ends them, if they do not come to its end."""
        path = self._folder / str(next(self._jobs))
        _write(path, json.dumps(job))
        deadline = time.monotonic() + _SECONDS
        while not all(path.with_suffix(f".{rank}").exists() for rank in (0, 1)):
            if self._process.poll() is not None or time.monotonic() > deadline:
                end(self._process)
                raise AssertionError(f"the ranks ended, or hang:\n{self._output.read()}")
            time.sleep(0.01)
        return self._output.read()


@functools.cache
def _group() -> _Group:
    return _Group()


def _write(path: Path, text: str) -> None:
    """Whole, since others wait for it."""
    path.with_suffix(".part").write_text(text)
    path.with_suffix(".part").rename(path)


def _work(folder: Path, tests: int, rank: int) -> None:
    """A rank's jobs, until the process of the tests is gone, however that has ended."""
    for number in itertools.count():
        path = folder / str(number)
        while not path.exists():
            if not psutil.pid_exists(tests):
                return
            time.sleep(0.01)
        job = json.loads(path.read_text())
        for lines in job["runs"]:
            try:
                _train(Path(job["recipe"]), lines, rank)
            except (ValueError, OSError) as error:
                print(f"{_ERROR}{error!r}\n", end="", flush=True)
        sys.stdout.flush()
        path.with_suffix(f".{rank}").touch()


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
        jobs = Path(sys.argv[1])
        _work(jobs, int(sys.argv[2]), place.rank)
        if place.is_main:
            shutil.rmtree(jobs)
