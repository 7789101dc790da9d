"""The collectives of the loss: a process group as the loss sees it.

Every method is a collective: all ranks of the group call it, in the same order, with equal shapes
and dtypes. With one rank nothing is sent and nothing is copied, and torch.distributed need not be
initialised.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

# torch 2.14 renamed these and warns of the old names; 2.11 knows no others.
_all_gather = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)
_reduce_scatter = getattr(dist, "reduce_scatter_single", dist.reduce_scatter_tensor)


@dataclass(frozen=True)
class Ranks:
    """The ranks that share one global batch; `rank` is this process's place among `size`."""

    group: dist.ProcessGroup | None
    size: int
    rank: int

    @classmethod
    def of(cls, group: dist.ProcessGroup | None) -> Ranks:
        """The ranks of `group`, or of the world if None (one rank if there is no world).

        Raises:
            ValueError: a group is given but torch.distributed is not initialised, or this process
                is no member of it.
        """
        if not (dist.is_available() and dist.is_initialized()):
            if group is not None:
                raise ValueError(
                    f"group={group!r} was given, but torch.distributed is not initialised; call "
                    "init_process_group first or leave group=None"
                )
            return cls(None, size=1, rank=0)
        rank = dist.get_rank(group)
        if rank < 0:
            raise ValueError(
                f"rank {dist.get_rank()} of the world is not in the loss's group; compute the loss "
                "on members only"
            )
        return cls(group, size=dist.get_world_size(group), rank=rank)

    def only(self) -> range:
        """This rank alone, as a range of ranks."""
        return range(self.rank, self.rank + 1)

    def exchange(self, values: Sequence[int]) -> list[list[int]]:
        """Every rank's integers, in rank order: a few bytes, read back on the host."""
        if self.size == 1:
            return [list(values)]
        mine = torch.tensor(values, dtype=torch.int64, device=self._control_device())
        everyone = mine.new_empty(self.size * mine.numel())
        _all_gather(everyone, mine, group=self.group)
        return everyone.view(self.size, -1).tolist()

    def start_gather(self, x: torch.Tensor) -> Callable[[], torch.Tensor]:
        """Begins to concatenate the ranks' tensors, (n, ...) -> (W*n, ...).

        What it returns waits for the end of it.
        """
        if self.size == 1:
            return lambda: x
        everyone = x.new_empty(self.size * x.shape[0], *x.shape[1:])
        sent = [x.contiguous()]  # alive until it has arrived
        work: Any = _all_gather(everyone, sent[0], group=self.group, async_op=True)

        def wait() -> torch.Tensor:
            work.wait()
            sent.clear()
            return everyone

        return wait

    def start_passing(self, tensors: Sequence[torch.Tensor]) -> Callable[[], list[torch.Tensor]]:
        """Sends tensors to the next rank; what it returns waits for those of the one before."""
        dtypes = [x.dtype for x in tensors]
        # Alive until they have arrived. Not every backend sends truth values.
        sent = [x.view(torch.uint8) if x.dtype == torch.bool else x for x in tensors]
        sent = [x.contiguous() for x in sent]
        received = [torch.empty_like(x) for x in sent]
        to, source = self._neighbour(1), self._neighbour(-1)
        operations = [dist.P2POp(dist.isend, x, to, self.group) for x in sent]
        operations += [dist.P2POp(dist.irecv, x, source, self.group) for x in received]
        works = dist.batch_isend_irecv(operations)

        def wait() -> list[torch.Tensor]:
            for work in works:
                work.wait()
            sent.clear()
            return [x.view(dtype) for x, dtype in zip(received, dtypes, strict=True)]

        return wait

    def _neighbour(self, distance: int) -> int:
        rank = (self.rank + distance) % self.size
        return rank if self.group is None else dist.get_global_rank(self.group, rank)

    def swap(self, x: torch.Tensor) -> torch.Tensor:
        """Row w of the result is the row of rank w that was meant for this one: (W, ...)."""
        received = torch.empty_like(x)
        dist.all_to_all_single(received, x.contiguous(), group=self.group)
        return received

    def reduce_scatter(self, x: torch.Tensor) -> torch.Tensor:
        """Sums over the ranks and keeps this rank's share: (W*n, ...) -> (n, ...).

        gloo has no reduce-scatter of its own; since torch 2.3 its process group makes one from an
        all-reduce, so one call serves every backend.
        """
        if self.size == 1:
            return x
        mine = x.new_empty(x.shape[0] // self.size, *x.shape[1:])
        _reduce_scatter(mine, x.contiguous(), group=self.group)
        return mine

    def sum(self, x: torch.Tensor) -> torch.Tensor:
        """Sums over the ranks, in place."""
        if self.size > 1:
            dist.all_reduce(x, group=self.group)
        return x

    def _control_device(self) -> torch.device:
        # The CPU where the group has a CPU backend: reading the answer then waits for no GPU work.
        if "cpu:" in dist.get_backend_config(self.group):
            return torch.device("cpu")
        return torch.device("cuda", torch.cuda.current_device())


ALONE = Ranks(None, size=1, rank=0)
