"""Evaluation in several processes: `torchrun --nproc_per_node 8 -m hnpretrain.cli eval ...`.

Each encodes its share of the batches, and all get all features, so that scores are those of one
process. Features meet on the CPU, through gloo.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import zip_longest
from typing import Any, TypeVar

import torch.distributed as dist

from hnpretrain.eval.encode import All, Share

T = TypeVar("T")


class AmongProcesses:
    """Batches are dealt out to the processes in turn."""

    def __init__(self, rank: int, processes: int, gather: Callable[[Any], list[Any]]) -> None:
        """`gather`: collective; gives all processes' objects in order."""
        self._rank = rank
        self._processes = processes
        self._gather = gather

    def takes(self, batch: int) -> bool:
        return batch % self._processes == self._rank

    def joined(self, work: Callable[[], list[T]]) -> list[T]:
        turns = zip_longest(*self._all(work))
        return [batch for turn in turns for batch in turn if batch is not None]

    def same(self, work: Callable[[], T]) -> T:
        return self._all(lambda: work() if self._rank == 0 else None)[0]

    def _all(self, work: Callable[[], Any]) -> list[Any]:
        """What each process's work gives; where one fails, all do, and none waits for others."""
        try:
            own: Any = work()
        except Exception as error:
            own = _as_it_travels(error)
        found = self._gather(own)
        for each in found:
            if isinstance(each, Exception):
                raise each
        return found


def _as_it_travels(error: Exception) -> Exception:
    """The error, or one that says the same where it cannot go from process to process."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # its class decides what that raises
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


@contextmanager
def processes() -> Iterator[Share]:
    """The processes that torchrun has started, or this one alone."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield All()
        return
    dist.init_process_group("gloo")
    try:
        size = dist.get_world_size()

        def gather(value: Any) -> list[Any]:
            found: list[Any] = [None] * size
            dist.all_gather_object(found, value)
            return found

        yield AmongProcesses(dist.get_rank(), size, gather)
    finally:
        dist.destroy_process_group()


def is_main() -> bool:
    """Whether this process tells what is found."""
    return os.environ.get("RANK", "0") == "0"
