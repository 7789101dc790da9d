"""Loader processes: they leave a job's signals to their rank, and are named if they are gone.

A scheduler that ends a job signals all of its processes, and torchrun whole process groups. A
worker that died of it would take its rank along, before that has taken its step and saved.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

# By which a job is asked to stop.
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


def heed_alone(rank: int, worker: int) -> None:
    """Makes this worker end on signals of its rank, and of nobody else; for `worker_init_fn`.

    Args:
        rank: process id of the rank, which ends its workers with SIGTERM.
        worker: number of the worker; not used.
    """
    del worker
    # Threads that begin later have them blocked too, so that they go to the one that waits.
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    threading.Thread(target=_wait_for, args=(rank,), daemon=True).start()


def _wait_for(rank: int) -> None:
    while signal.sigwaitinfo(SIGNALS).si_pid != rank:
        pass
    os._exit(0)


@contextlib.contextmanager
def named_if_gone() -> Iterator[None]:
    """Inside, a loader process that is killed is an OSError that says what to do.

    Torch raises in the rank as soon as that happens, wherever the rank is then.
    """
    try:
        yield
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker (pid"):
            raise
        raise OSError(
            f"a loader process is gone ({error}). Mostly the machine has no memory left for it: "
            "lower data.workers or data.block_size"
        ) from error
