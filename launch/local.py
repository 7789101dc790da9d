"""Runs training on one box under torchrun, and starts it again where that can help."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from hnpretrain.config import load
from hnpretrain.runs import latest_checkpoint
from hnpretrain.train.settings import TrainSettings
from launch import torchrun

_FAILED = 1


def run_local(config: str, overrides: Sequence[str], processes: int, restarts: int) -> int:
    """Trains `config` with this many processes on this machine, to the end or until it is stopped.

    A run that fails is started again from its last checkpoint, unless it has made none since it
    was started: then it would most likely fail alike.

    Args:
        restarts: how often at most.

    Returns:
        The exit status, that of `launch.torchrun`.

    Raises:
        ValueError: the config is wrong; found here, before W ranks say it.
    """
    if processes < 1:
        raise ValueError(f"--nproc={processes} must be at least 1")
    if restarts < 0:
        raise ValueError(f"--restarts={restarts} must not be negative")
    run = Path(load(TrainSettings, config, overrides).output)
    arguments = [
        # A rendezvous of its own on a free port, so that several runs can share the machine.
        "--standalone",
        f"--nproc_per_node={processes}",
        "-m",
        "hnpretrain.train",
        config,
        *overrides,
    ]
    restart = 0
    while True:
        before = latest_checkpoint(run)
        status = torchrun.run(arguments)
        latest = latest_checkpoint(run)
        if status != _FAILED or latest is None or latest == before or restart == restarts:
            return status
        restart += 1
        print(
            f"launch: the run goes on from {latest.name}, restart {restart} of at most {restarts}",
            file=sys.stderr,
            flush=True,
        )
