"""Many trainings in one group of two processes, which spares the start of all but one."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from tests.support.training import clean_environment, train_here

ROOT = Path(__file__).parents[2]
_ERROR = "error of a rank: "
# Among the overrides: rank 1 cannot write the checkpoint whose name follows.
FULL_DISK = "full disk at "


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
def _refusing(refused: str) -> Iterator[None]:
    """Inside, this rank can write none of DeepSpeed's files of a checkpoint."""
    save = torch.save

    def refusing(state: object, path: str, **options: object) -> None:
        if refused and refused in path:
            raise OSError(28, "No space left on device")
        save(state, path, **options)

    torch.save = refusing
    try:
        yield
    finally:
        torch.save = save


if __name__ == "__main__":
    from hnpretrain.train.distributed import process_group

    with process_group() as place:
        for lines in sys.argv[2:]:
            overrides = [line for line in lines.split("\n") if not line.startswith(FULL_DISK)]
            full = [line for line in lines.split("\n") if line.startswith(FULL_DISK)]
            refused = full[0].removeprefix(FULL_DISK) if full and place.rank == 1 else ""
            try:
                with _refusing(refused):
                    train_here(Path(sys.argv[1]), *overrides)
            except (ValueError, OSError) as error:
                print(f"{_ERROR}{error!r}\n", end="", flush=True)
