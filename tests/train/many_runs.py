"""Many trainings in one group of two processes, which spares the start of all but one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.support.training import clean_environment, train_here

ROOT = Path(__file__).parents[2]
_ERROR = "error of a rank: "


def train_all(recipe: Path, runs: Sequence[Sequence[str]]) -> None:
    """Trains a recipe with each of several lists of overrides, with two ranks.

    Fails with what was printed if one of them does.
    """
    output = _run(recipe, runs)
    assert not errors_in(output), output


def errors_of(recipe: Path, overrides: Sequence[str]) -> list[str]:
    """What each of two ranks raises that trains a recipe."""
    return errors_in(_run(recipe, [overrides]))


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


if __name__ == "__main__":
    from hnpretrain.train.distributed import process_group

    with process_group():
        for overrides in sys.argv[2:]:
            try:
                train_here(Path(sys.argv[1]), *overrides.split("\n"))
            except (ValueError, OSError) as error:
                print(f"{_ERROR}{error!r}\n", end="", flush=True)
