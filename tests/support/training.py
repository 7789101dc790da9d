"""Small trainings, in processes of their own under torchrun."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, Any

import psutil

from hnpretrain import config
from hnpretrain.train import loop
from hnpretrain.train.distributed import GROUP_VARIABLES
from hnpretrain.train.log import read_log
from hnpretrain.train.settings import TrainSettings

TINY_MODEL = """
model:
  config:
    embed_dim: 16
    vision_cfg: {image_size: 32, layers: 1, width: 32, head_width: 16, patch_size: 16}
    text_cfg: {context_length: 16, vocab_size: 49408, width: 16, heads: 2, layers: 1}
"""
_CLOCK = ("samples_per_second", "step_seconds", "data_wait", "memory", "tflops", "mfu")


def clean_environment() -> dict[str, str]:
    """The environment for a process that is to have a group of its own, as this one has."""
    return {key: value for key, value in os.environ.items() if key not in GROUP_VARIABLES}


def write_recipe(path: Path, shards: Path, **settings: Any) -> Path:
    """A training config of a model that takes milliseconds a step.

    Args:
        settings: further ones; a section is the text of a YAML mapping.
    """
    fields = {"log_every": 1, "micro_batches": 1, **settings}
    lines = [f"{key}: {value}" for key, value in fields.items()]
    data = f"data: {{shards: '{shards}', negatives: 2, workers: 1, block_size: 8}}"
    optimizer = "optimizer: {lr: 1.0e-3, warmup_steps: 2}"
    path.write_text("\n".join([*lines, data, optimizer, TINY_MODEL]))
    return path


def start(
    recipe: Path, *overrides: str, processes: int = 2, output: IO[str] | None = None
) -> subprocess.Popen[str]:
    """Starts a training under torchrun, with two ranks or another number.

    Args:
        output: takes what it prints; else a pipe does, which somebody must read before it is full.
    """
    return subprocess.Popen(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            f"--nproc_per_node={processes}",
            "-m",
            "hnpretrain.train",
            str(recipe),
            *overrides,
        ],
        stdout=output or subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=clean_environment(),
    )


def train(recipe: Path, *overrides: str, processes: int = 2) -> str:
    """Trains with two ranks to the end; the output. Fails if the training does."""
    process = start(recipe, *overrides, processes=processes)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


def train_here(recipe: Path, *overrides: str) -> None:
    """Trains in this process, which spares the imports."""
    loop.train(config.load(TrainSettings, recipe, overrides))


def kill_after(process: subprocess.Popen[str], run: Path, lines: int) -> None:
    """Kills all its processes, hard, once the log has this many lines."""
    try:
        wait_for_lines(process, run, lines)
    finally:
        end(process)


def wait_for_lines(process: subprocess.Popen[str], run: Path, lines: int) -> None:
    """Waits until the run's log has this many lines."""
    deadline = time.monotonic() + 200
    while lines_of(run) < lines:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "the training does not get on"
        time.sleep(0.005)


def lines_of(run: Path) -> int:
    """Whole lines of the run's log, which may not be there yet."""
    log = run / "log.jsonl"
    return log.read_bytes().count(b"\n") if log.is_file() else 0


def end(process: subprocess.Popen[str]) -> None:
    """Kills a launcher and all below it, hard; nothing if it has ended."""
    if process.poll() is None:
        # Agent and ranks: torchrun gives each rank a session of its own.
        family = [*psutil.Process(process.pid).children(recursive=True), process]
        for member in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
    process.communicate()


def ranks_of(process: subprocess.Popen[str]) -> list[int]:
    """The process ids of a launcher's ranks, in order."""
    children = psutil.Process(process.pid).children()
    ranks = {int(child.environ()["RANK"]): child.pid for child in children}
    return [ranks[rank] for rank in sorted(ranks)]


def loss_lines(run: Path) -> list[dict[str, Any]]:
    """The log's step lines, without what a clock measured."""
    lines = read_log(run, "step")
    return [{key: line[key] for key in line if key not in _CLOCK} for line in lines]
