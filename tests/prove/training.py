"""Trainings that survive: `python -m tests.prove.training [KILLS] [MINUTES] [SEED]`, run by
`make prove`.

- A run of two ranks of which a random one is killed, kill -9, at a random moment, KILLS times: its
  loss lines are those of a run that was left alone, to the last digit.
- A run that is stopped and goes on with 4, 2 and again 4 ranks: the same batches, the same losses.
- A run of MINUTES minutes: no process grows by more than two percent once it is warm.
"""

from __future__ import annotations

import json
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import psutil

from hnpretrain.runs import latest_checkpoint
from hnpretrain.train.log import read_log
from tests.support.datasets import tile, write_dataset
from tests.support.training import (
    end,
    lines_of,
    loss_lines,
    ranks_of,
    start,
    train,
    wait_for_lines,
    write_recipe,
)

_EPOCHS = 40
_STEPS = 12 * _EPOCHS
# Share of kills that come before the first step: while modules load, or a checkpoint.
_EARLY = 0.25


def kill_often(folder: Path, shards: Path, kills: int, draws: random.Random) -> None:
    recipe = write_recipe(
        folder / "killed.yaml", shards, batch_size=8, epochs=_EPOCHS, checkpoint="{every: 7}"
    )
    alone, killed = folder / "alone", folder / "killed"
    started = time.monotonic()
    process = start(recipe, f"output={alone}")
    wait_for_lines(process, alone, 1)
    until_first = time.monotonic() - started
    output, _ = process.communicate()
    assert process.returncode == 0, output
    reached: list[int] = []
    victims: Counter[str] = Counter()
    while victims.total() < kills:
        process = start(recipe, f"output={killed}")
        try:
            if draws.random() < _EARLY:
                time.sleep(draws.uniform(0.5, until_first))
            else:
                wait_for_lines(process, killed, _lines_left(killed) + draws.randint(1, 30))
                time.sleep(draws.uniform(0, 0.1))
            ranks = ranks_of(process)
            if not ranks:
                continue
            rank = draws.randrange(len(ranks))
            os.kill(ranks[rank], signal.SIGKILL)
            process.communicate(timeout=120)
            assert process.returncode == 1
        finally:
            end(process)
        victims[f"rank {rank}"] += 1
        latest = latest_checkpoint(killed)
        reached.append(int(latest.name.removeprefix("step_")) if latest else 0)
    train(recipe, f"output={killed}")
    assert len(loss_lines(alone)) == _STEPS
    assert loss_lines(killed) == loss_lines(alone)
    print(
        f"{victims.total()} kills ({dict(victims)}), gone on from steps {reached}: all {_STEPS} "
        "loss lines are those of the run that was left alone",
        flush=True,
    )


def _lines_left(run: Path) -> int:
    """Of the log, once a run goes on: those up to its checkpoint."""
    latest = latest_checkpoint(run)
    if latest is None:
        return 0
    step = int(latest.name.removeprefix("step_"))
    lines = (run / "log.jsonl").read_text().splitlines()
    return sum(json.loads(line)["global_step"] <= step for line in lines if line.endswith("}"))


def resize(folder: Path, shards: Path) -> None:
    recipe = write_recipe(folder / "resized.yaml", shards, batch_size=8, epochs=4)
    clipped = "optimizer.max_grad_norm=0.5"  # see tests/train/test_caching.py
    alone, resized = folder / "four", folder / "resized"
    train(recipe, f"output={alone}", clipped, processes=4)
    at = []
    for processes in (4, 2):
        process = start(recipe, f"output={resized}", clipped, processes=processes)
        try:
            wait_for_lines(process, resized, lines_of(resized) + 8)
            for pid in ranks_of(process):
                os.kill(pid, signal.SIGUSR1)
            process.communicate(timeout=120)
        finally:
            end(process)
        at.append(read_log(resized, "step")[-1]["global_step"])
    train(recipe, f"output={resized}", clipped, processes=4)
    pairs = list(zip(loss_lines(alone), loss_lines(resized), strict=True))
    assert len(pairs) == 48 > at[1] > at[0]
    worst = max(abs(a["loss"] - b["loss"]) / a["loss"] for a, b in pairs)
    assert worst < 1e-5, worst
    assert all(a["samples"] == b["samples"] for a, b in pairs)
    print(
        f"4 ranks to step {at[0]}, 2 to step {at[1]}, 4 to the end: losses differ by {worst:.1e} "
        "at most from those of 4 ranks alone",
        flush=True,
    )


def stay_flat(folder: Path, shards: Path, minutes: float) -> None:
    recipe = write_recipe(
        folder / "long.yaml", shards, batch_size=8, epochs=10**6, log_every=100,
        checkpoint="{every: 2000}", ema=0.999,
    )  # fmt: skip
    run, console = folder / "long", folder / "long.txt"
    with console.open("w") as output:
        process = start(recipe, f"output={run}", output=output)
    try:
        wait_for_lines(process, run, 1)
        family = psutil.Process(process.pid).children(recursive=True)
        sizes: dict[str, list[int]] = {_name(member): [] for member in family}
        deadline = time.monotonic() + 60 * minutes
        while time.monotonic() < deadline:
            assert process.poll() is None, console.read_text()
            for member in family:
                sizes[_name(member)].append(member.memory_info().rss)
            time.sleep(1)
        for pid in ranks_of(process):
            os.kill(pid, signal.SIGTERM)
        process.communicate(timeout=120)
    finally:
        end(process)
    for name, values in sizes.items():
        fifth = len(values) // 5
        early, late = (statistics.median(x) for x in (values[fifth : 2 * fifth], values[-fifth:]))
        growth = late / early - 1
        print(f"{name}: {late / 1e6:.0f} MB, {growth:+.2%} since it was warm", flush=True)
        assert growth < 0.02, name
    steps = read_log(run, "step")[-1]["global_step"]
    assert steps > 100 * minutes, "it stood still"
    print(f"{steps} steps in {minutes:g} minutes: no process grew by 2 %", flush=True)


def _name(process: psutil.Process) -> str:
    rank = process.environ().get("RANK", "?")
    parent = process.parent()
    kind = "a worker of rank" if parent and "RANK" in parent.environ() else "rank"
    return f"{kind} {rank} ({process.pid})"


def main(kills: int, minutes: float, seed: int) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        shards = folder / "shards"
        write_dataset(shards, (tile(i) for i in range(100)), per_shard=17)
        kill_often(folder, shards, kills, random.Random(seed))
        resize(folder, shards)
        stay_flat(folder, shards, minutes)


if __name__ == "__main__":
    given = sys.argv[1:]
    main(
        int(given[0]) if given else 15,
        float(given[1]) if given[1:] else 20,
        int(given[2]) if given[2:] else 0,
    )
