"""One function over many shards, in processes, with results in the shards' order."""

from __future__ import annotations

import itertools
import multiprocessing
import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

T = TypeVar("T")
Progress = Callable[[int, int], None]


def each_shard(
    function: Callable[[str], T], names: Sequence[str], workers: int, progress: Progress | None
) -> Iterator[T]:
    """`function(name)` for every name, in their order.

    A few shards a worker are under way at a time, so that results do not pile up in memory.

    Args:
        function: can be pickled if there is more than one worker.
        names: of shards.
        workers: processes; with 1 all is done in this one.
        progress: is called with the number of shards done and that of all.

    Raises:
        OSError: a worker was killed.
    """
    results = map(function, names) if workers == 1 else _in_processes(function, names, workers)
    for done, result in enumerate(results, start=1):
        yield result
        if progress:
            progress(done, len(names))


def _in_processes(function: Callable[[str], T], names: Sequence[str], workers: int) -> Iterator[T]:
    rest = iter(names)
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _die_at_once) as pool:
        try:
            waiting: deque[Future[T]] = deque(
                pool.submit(function, name) for name in itertools.islice(rest, 2 * workers)
            )
            while waiting:
                result = waiting.popleft().result()
                waiting.extend(pool.submit(function, name) for name in itertools.islice(rest, 1))
                yield result
        except BrokenProcessPool as error:
            raise OSError("a worker was killed, most often because memory ran out") from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _die_at_once() -> None:
    """Ctrl-C reaches the workers too. They only read, so there is nothing to tidy up."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
