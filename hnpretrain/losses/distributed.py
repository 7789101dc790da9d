"""The collectives of the loss: a process group as the loss sees it.

Every method is a collective: all ranks of the group call it, in the same order, with equal shapes
and dtypes. With one rank nothing is sent and nothing is copied, and torch.distributed need not be
initialised.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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

    def exchange(self, values: Sequence[int]) -> list[list[int]]:
        """Every rank's integers, in rank order: a few bytes, read back on the host."""
        if self.size == 1:
            return [list(values)]
        mine = torch.tensor(values, dtype=torch.int64, device=self._control_device())
        everyone = mine.new_empty(self.size * mine.numel())
        _all_gather(everyone, mine, group=self.group)
        return everyone.view(self.size, -1).tolist()

    def gather(self, x: torch.Tensor) -> torch.Tensor:
        """Concatenates the ranks' tensors along the first dimension: (n, ...) -> (W*n, ...)."""
        if self.size == 1:
            return x
        everyone = x.new_empty(self.size * x.shape[0], *x.shape[1:])
        _all_gather(everyone, x.contiguous(), group=self.group)
        return everyone

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

    def logsumexp(self, x: torch.Tensor) -> torch.Tensor:
        """log(sum over the ranks of exp(x)), elementwise, shifted by the maximum: no overflow."""
        if self.size == 1:
            return x
        highest = x.clone()
        dist.all_reduce(highest, op=dist.ReduceOp.MAX, group=self.group)
        total = self.sum((x - highest).exp_())
        return total.log_().add_(highest)

    def _control_device(self) -> torch.device:
        # The CPU where the group has a CPU backend: reading the answer then waits for no GPU work.
        if "cpu:" in dist.get_backend_config(self.group):
            return torch.device("cpu")
        return torch.device("cuda", torch.cuda.current_device())
