"""The command line, run as a program."""

from __future__ import annotations

import subprocess
import sys

from tests.support.training import clean_environment


def hnpretrain(*arguments: object, status: int = 0, timeout: float = 300) -> str:
    """Runs `hnpretrain` with these arguments; returns what it printed, errors behind the rest.

    Raises:
        AssertionError: it ended with another status.
    """
    done = subprocess.run(
        [sys.executable, "-m", "hnpretrain.cli", *map(str, arguments)],
        capture_output=True, text=True, timeout=timeout, env=clean_environment(), check=False,
    )  # fmt: skip
    told = done.stdout + done.stderr
    assert done.returncode == status, told
    return told
