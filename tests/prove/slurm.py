"""A training on the test cluster that meets its time limit and a more urgent job:
`python -m tests.prove.slurm`, run by `make prove` where Slurm is installed.

It goes on at the exact step each time: its loss lines are those of a run that was left alone.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from launch import queue
from launch.training import submit
from tests.slurm.cluster import missing, running_cluster
from tests.slurm.jobs import start_now, wait_for_lines, wait_for_state
from tests.support.datasets import tile, write_dataset
from tests.support.training import lines_of, loss_lines, train, write_recipe

_EPOCHS = 600
_ASKED = "it was asked to stop (status 75): back to the queue"


def main() -> None:
    why = missing()
    if why:
        sys.exit(f"error: {why}")
    with tempfile.TemporaryDirectory(prefix="slurm-") as scratch:
        folder = Path(scratch)
        shards = folder / "shards"
        write_dataset(shards, (tile(i) for i in range(40)), per_shard=17)
        recipe = write_recipe(
            folder / "recipe.yaml", shards, batch_size=8, epochs=_EPOCHS,
            checkpoint="{every: 1000}",
            # Slurm may tell of a time limit up to a minute before it is asked to.
            # As many threads as torchrun gives: sums depend on them.
            launch="{nodes: 2, gpus_per_node: 0, minutes: 2, signal_seconds: 30, "
            "environment: {OMP_NUM_THREADS: '1'}}",
        )  # fmt: skip
        alone, run = folder / "alone", folder / "run"
        train(recipe, f"output={alone}")
        with running_cluster(folder / "cluster"):
            record = submit(str(recipe), [f"output={run}"])
            log = Path(record.log)
            wait_for_lines(record, 5)
            wait_for_state(record, "PENDING")
            assert log.read_text().count(_ASKED) == 1, log.read_text()[-2000:]
            at_limit = lines_of(run)
            start_now(record)
            wait_for_lines(record, at_limit + 20)
            urgent = ("--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null")
            queue.run("sbatch", *urgent, "--wrap=sleep 5")
            wait_for_state(record, "PENDING")
            at_preemption = lines_of(run)
            assert "DUE TO PREEMPTION" in log.read_text()
            while True:
                start_now(record)
                wait_for_state(record, "RUNNING")
                wait_for_state(record, "PENDING", "COMPLETED", "FAILED")
                if queue.states(record.jobs[0])[0].state != "PENDING":
                    break
            wait_for_state(record, "COMPLETED")
        assert loss_lines(run) == loss_lines(alone)
        limits = log.read_text().count(_ASKED)
    print(
        f"stopped by its time limit {limits} x, first after {at_limit} lines of the log, and by a "
        f"more urgent job after {at_preemption}: all {5 * _EPOCHS} loss lines are those of the run "
        "that was left alone"
    )


if __name__ == "__main__":
    main()
