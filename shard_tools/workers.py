"""Work spread over processes that die, are killed or are told to stop without a hang.

Each item of work is done by one process; processes share nothing but a flag and counts in shared
memory. Spawned, not forked: s3fs and BLAS threads do not survive a fork.

Ctrl-C and SIGTERM set the flag, which all workers look at between two samples; a second one kills
the workers. They raise nothing while there are workers: an exception that a signal handler raises
may come inside a lock, which then is never released, or inside a callback, which swallows it.
"""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

_REPORT_SECONDS = 0.25
# How long the other workers may take to end by themselves after one has died.
_GRACE_SECONDS = 5.0
# Items handed to the pool at a time, for each worker: enough that none waits for the next, few
# enough that looking at them all costs nothing, and that what is done ahead of its turn is bounded.
_SUBMITTED_PER_WORKER = 3
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(Exception):
    """The job is to stop; what is at hand is given up, leaving nothing behind."""


class Tally:
    """Counts of each item of work, and the flag that stops all workers, in shared memory.

    Without locks, which a process that is killed would hold for ever: each row is written by the
    one worker that does that item, and a number is read as it was before or after.

    Args:
        rows: one an item.
        columns: counts of an item.
    """

    def __init__(self, rows: int, columns: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._columns = columns
        self._counts = context.RawArray("q", rows * columns)
        self._stop = context.RawValue("b", 0)

    def add(self, row: int, *counts: int) -> None:
        """Adds one count a column to a row."""
        for column, count in enumerate(counts):
            self._counts[row * self._columns + column] += count

    def row(self, row: int) -> tuple[int, ...]:
        start = row * self._columns
        return tuple(self._counts[start : start + self._columns])

    def sums(self) -> tuple[int, ...]:
        """The sum of each column over all rows."""
        return tuple(sum(self._counts[column :: self._columns]) for column in range(self._columns))

    def stop(self) -> None:
        self._stop.value = 1

    def stopped(self) -> bool:
        return bool(self._stop.value)


def cores() -> int:
    """Cores that this process may use, which containers and Slurm set lower than the machine's."""
    return len(os.sched_getaffinity(0))


def spread(
    items: Sequence[Item],
    prepare: Callable[..., Callable[[int, Item], Result]],
    arguments: Sequence[Any],
    tally: Tally,
    workers: int,
    tell: Callable[[], None],
    in_order: bool = False,
) -> Generator[Result, None, None]:
    """Results of `prepare(*arguments, tally)(number, item)` for all items, in worker processes.

    Use it inside `contextlib.closing`: the workers end with the generator. In the main thread, the
    first Ctrl-C or SIGTERM stops the work at the next sample, a second at once.

    Args:
        items: numbered from 0; picklable, each is sent to the one worker that does it.
        prepare: what each worker does first. What it raises comes out here.
        arguments: of `prepare`; picklable.
        tally: its flag is looked at by the work itself, which raises Stopped.
        workers: processes.
        tell: called a few times a second, and after each result.
        in_order: results come in the items' order; else as they are done.

    Raises:
        KeyboardInterrupt: a signal came.
        ChildProcessError: a worker died.
    """
    processes: list[BaseProcess] = []  # the workers, once they are started
    done = _spread(items, prepare, arguments, tally, workers, tell, in_order, processes)
    return _stoppable(done, tally, processes)


def alone(
    items: Iterable[Item], work: Callable[[int, Item], Result], tally: Tally
) -> Generator[Result, None, None]:
    """`work(number, item)` for all items, in this process; signals as in `spread`."""
    return _stoppable((work(*item) for item in enumerate(items)), tally, [])


def _stoppable(
    results: Generator[Result, None, None], tally: Tally, processes: Sequence[BaseProcess]
) -> Generator[Result, None, None]:
    with _signals_stop(tally, processes), contextlib.closing(results):
        try:
            yield from results
        except Stopped as stopped:
            raise KeyboardInterrupt from stopped


def _spread(
    items: Iterable[Item],
    prepare: Callable[..., Callable[[int, Item], Result]],
    arguments: Sequence[Any],
    tally: Tally,
    workers: int,
    tell: Callable[[], None],
    in_order: bool,
    processes: list[BaseProcess],
) -> Generator[Result, None, None]:
    pool = ProcessPoolExecutor(
        workers,
        multiprocessing.get_context("spawn"),
        _start_worker,
        (prepare, (*arguments, tally)),
    )
    numbered = enumerate(items)

    def submit(count: int) -> list[Future[Result]]:
        return [pool.submit(_work_in_worker, *item) for item in islice(numbered, count)]

    try:
        # All workers are started in here, one by each submit. The pool's locks have started
        # multiprocessing's resource tracker before: starting that would unblock the signals.
        with _signals_kept_from_children():
            others = set(multiprocessing.active_children())
            try:
                pending = submit(_SUBMITTED_PER_WORKER * workers)
            finally:
                processes.extend(set(multiprocessing.active_children()) - others)
        while pending:
            awaited = pending[:1] if in_order else pending
            done, _ = wait(awaited, _REPORT_SECONDS, FIRST_COMPLETED)
            tell()
            if tally.stopped():
                raise Stopped
            for future in [future for future in awaited if future in done]:
                pending.remove(future)
                yield future.result()
            pending += submit(len(done))
    except BrokenProcessPool as error:
        raise ChildProcessError(
            "a worker process died (most often it is killed because memory ran out); finished "
            f"shards are kept: start the job again, with fewer than workers={workers}"
        ) from error
    finally:
        # After a signal or an error, the workers give up what they do at the next sample.
        tally.stop()
        pool.shutdown(wait=False, cancel_futures=True)
        _wait_for(processes)


def _wait_for(processes: Sequence[BaseProcess]) -> None:
    """Waits until all workers have ended; once one was killed, the others for a little while only.

    One that was killed while it waited for work holds the lock of the queue for ever, so that the
    others would wait too. The pool's own remedy, SIGTERM, is blocked in them.
    """
    deadline = math.inf
    while alive := [process for process in processes if process.is_alive()]:
        if deadline == math.inf and any(process.exitcode for process in processes):
            deadline = time.monotonic() + _GRACE_SECONDS
        if time.monotonic() > deadline:
            for process in alive:
                process.kill()
        alive[0].join(_REPORT_SECONDS)


# A worker process's own, or why it has none: of an initializer that raises, the pool tells no more
# than that a worker died.
_work: Callable[[int, Any], Any] | Exception


def _start_worker(prepare: Callable[..., Callable[[int, Any], Any]], arguments: tuple[Any]) -> None:
    global _work
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        _work = prepare(*arguments)
    except Exception as error:
        _work = error


def _end_with_parent() -> None:
    """Ends this process when the job's is gone, however that was killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _work_in_worker(number: int, item: Any) -> Any:
    if isinstance(_work, Exception):
        raise _work
    return _work(number, item)


@contextlib.contextmanager
def _signals_stop(tally: Tally, processes: Sequence[BaseProcess]) -> Iterator[None]:
    """Inside, the first Ctrl-C or SIGTERM stops the job at its next sample, a second at once: it
    kills the worker processes, or where there are none raises KeyboardInterrupt.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers
        return
    # What was ignored stays so: a job under nohup or in a shell's background.
    before = {
        number: handler
        for number in _STOP_SIGNALS
        if (handler := signal.getsignal(number)) != signal.SIG_IGN
    }

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def stop(_number: int, _frame: FrameType | None) -> None:
        tally.stop()
        for number in before:
            signal.signal(number, stop_at_once)

    def stop_at_once(_number: int, _frame: FrameType | None) -> None:
        restore()
        if not processes:
            raise KeyboardInterrupt
        for process in processes:
            process.kill()

    for number in before:
        signal.signal(number, stop)
    try:
        yield
    finally:
        restore()


@contextlib.contextmanager
def _signals_kept_from_children() -> Iterator[None]:
    """Processes started inside never see Ctrl-C or SIGTERM, which may be sent to the whole group:
    the job tells them to stop, so that they leave no temporary file behind.

    The signals are blocked, not ignored: children inherit either, but what comes meanwhile still
    reaches this process afterwards.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
