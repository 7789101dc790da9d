"""Reads ahead: work in a few threads, whose results are waited for where they are needed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


class Background:
    """A few threads for work that waits for a store.

    Not a ThreadPoolExecutor: a process that ends waits for an executor's threads, and so for a
    store that hangs. These end with the process, whatever they are at.

    Make it in the process that uses it: threads do not survive a fork.

    Args:
        threads: so many run at once; which of the others comes next is left to chance.
    """

    def __init__(self, threads: int) -> None:
        self._turns = threading.Semaphore(threads)
        self._closed = False

    def start(self, work: Callable[[], T]) -> Future[T]:
        """Starts `work`; the future has its result, or raises what it raised."""
        future: Future[T] = Future()
        threading.Thread(
            target=self._run, args=(work, future), name="hnpretrain-read", daemon=True
        ).start()
        return future

    def close(self) -> None:
        """Lets what has not begun yet not begin; what runs is left alone."""
        self._closed = True

    def _run(self, work: Callable[[], T], future: Future[T]) -> None:
        with self._turns:
            if self._closed:
                future.cancel()
                return
            try:
                result = work()
            except BaseException as error:  # for whoever waits; nobody else would hear of it
                future.set_exception(error)
            else:
                future.set_result(result)
