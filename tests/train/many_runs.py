"""Many trainings in one group of two processes, which spares the start of all but one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.support.training import clean_environment, train_here

ROOT = Path(__file__).parents[2]


def train_all(recipe: Path, runs: Sequence[Sequence[str]]) -> None:
    """Trains a recipe with each of several lists of overrides, with two ranks.

    Fails with what was printed if one of them does.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += [__file__, str(recipe), *("\n".join(overrides) for overrides in runs)]
    environment = clean_environment() | {"PYTHONPATH": os.fspath(ROOT)}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env=environment, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


if __name__ == "__main__":
    from hnpretrain.train.distributed import process_group

    with process_group():
        for overrides in sys.argv[2:]:
            train_here(Path(sys.argv[1]), *overrides.split("\n"))
