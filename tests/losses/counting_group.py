"""gloo, with a count of the bytes that each rank sends: `init_process_group("counting")`.

A collective is counted as its bandwidth-optimal algorithm sends: what a rank has goes to W - 1
others in a gather; of a sum that is scattered, or of an exchange, (W - 1) / W of it leaves; an
all-reduce is a sum that is scattered and gathered again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

SENT: Counter[str] = Counter()
"""Bytes by collective, of this process."""


def _bytes(tensors: Sequence[torch.Tensor]) -> int:
    return sum(x.nbytes for x in tensors)


class CountingGroup(dist.ProcessGroup):
    """Hands everything on to gloo."""

    def __init__(self, store: Any, rank: int, size: int, timeout: timedelta) -> None:
        super().__init__(rank, size)
        self._inner = dist.ProcessGroupGloo(store, rank, size, timeout)
        self._share = (size - 1) / size

    def _get_backend(self, _: torch.device) -> Any:
        return self._inner  # asked for what it can do

    def getBackendName(self) -> str:
        return "counting"

    def all_gather_single(
        self, output: torch.Tensor, mine: torch.Tensor, options: Any = None
    ) -> Any:
        SENT["gather"] += (self.size() - 1) * mine.nbytes
        return self._inner._allgather_base(output, mine, options or dist.AllgatherOptions())

    def reduce_scatter_single(
        self, output: torch.Tensor, whole: torch.Tensor, options: Any = None
    ) -> Any:
        SENT["reduce_scatter"] += round(self._share * whole.nbytes)
        return self._inner._reduce_scatter_base(output, whole, options)

    def all_to_all_single(
        self,
        output: torch.Tensor,
        mine: torch.Tensor,
        splits: Any,
        others: Any,
        options: Any = None,
    ) -> Any:
        SENT["swap"] += round(self._share * mine.nbytes)
        options = options or dist.AllToAllOptions()
        return self._inner.alltoall_base(output, mine, splits, others, options)

    # What torch called them before 2.14.
    _allgather_base = all_gather_single
    _reduce_scatter_base = reduce_scatter_single
    alltoall_base = all_to_all_single

    def allreduce(self, tensors: Any, options: Any = None) -> Any:
        SENT["all_reduce"] += round(2 * self._share * _bytes(tensors))
        return self._inner.allreduce(tensors, options)

    def send(self, tensors: Any, rank: int, tag: int) -> Any:
        SENT["send"] += _bytes(tensors)
        return self._inner.send(tensors, rank, tag)

    def recv(self, tensors: Any, rank: int, tag: int) -> Any:
        return self._inner.recv(tensors, rank, tag)

    def barrier(self, opts: Any = None) -> Any:
        return self._inner.barrier(opts or dist.BarrierOptions())


def register() -> None:
    """Makes the backend known under the name `counting`."""
    dist.Backend.register_backend("counting", CountingGroup, devices=["cpu"])
