"""Runs training on one box under torchrun."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from hnpretrain.config import load
from hnpretrain.train.settings import TrainSettings


def torchrun_command(config: str, overrides: Sequence[str], processes: int) -> list[str]:
    """The command that trains `config` with this many processes on this machine."""
    return [
        sys.executable,
        "-m",
        "launch.torchrun",
        # A rendezvous of its own on a free port, so that several runs can share the machine.
        "--standalone",
        f"--nproc_per_node={processes}",
        "-m",
        "hnpretrain.train",
        config,
        *overrides,
    ]


def run_local(config: str, overrides: Sequence[str], processes: int) -> NoReturn:
    """Turns this process into torchrun, so that signals reach it and it can end its ranks.

    Raises:
        ValueError: the config is wrong; found here, before W ranks say it.
    """
    if processes < 1:
        raise ValueError(f"--nproc={processes} must be at least 1")
    load(TrainSettings, config, overrides)
    command = torchrun_command(config, overrides, processes)
    os.execv(command[0], command)
