"""One run at a time in a folder.

A scheduler may start a job again while the one that it has preempted still saves; both would write
the same log and checkpoints.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from hnpretrain.shards.lock import Hold, waited
from hnpretrain.train.distributed import on_main

LOCK_NAME = ".train.lock"
# Longer than schedulers leave a job to save, and than a lock counts that was left behind.
_PATIENCE_SECONDS = 600.0


@contextlib.contextmanager
def alone_in(run: Path) -> Iterator[Callable[[], None]]:
    """Inside, no other training writes into the run's folder; collective.

    Waits for one that does to end.

    Yields:
        What raises OSError, on all ranks, if another one has taken the folder: where there is no
        flock, this process may have stood still for so long that it counted as gone. Collective.

    Raises:
        OSError: on all ranks: it has not ended within ten minutes, or the folder cannot be written.
    """
    told: set[str] = set()

    def tell(owner: str) -> None:
        if not told:
            print(f"{run} is trained into by {owner}: waiting for it to end", flush=True)
        told.add(owner)

    with contextlib.ExitStack() as held:
        holds: list[Hold] = []

        def hold() -> None:
            lock = waited(str(run / LOCK_NAME), tell, _PATIENCE_SECONDS)
            holds.append(held.enter_context(lock))

        on_main(hold)
        yield lambda: on_main(lambda: holds[0].check())
