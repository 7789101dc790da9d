"""Blocks of features on their way from rank to rank, and what is summed up for them on the way.

`gather`: every rank receives all blocks at once, while it works on its own. What belongs to the
blocks' owners is sent home in one collective at the end. Memory O(B).

`ring`: blocks move on by one rank a step, the next arriving while this one is worked on; what
belongs to a block's owner follows it and is home after W - 1 steps. Memory O(b), whatever W is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol

import torch

from hnpretrain.losses.distributed import Ranks

COMMS = ("gather", "ring")

Owners = range
"""Ranks whose blocks come together, one after the other."""


def visiting(
    ranks: Ranks, comm: str, own: Sequence[torch.Tensor]
) -> Iterator[tuple[Owners, Sequence[torch.Tensor]]]:
    """(owners, their tensors) until all ranks have been there, this one's own first and alone.

    A collective: each rank must take all of them, and use the same order of calls otherwise.
    """
    if ranks.size == 1:
        yield range(1), own
    elif comm == "gather":
        arriving = [ranks.start_gather(x) for x in own]
        yield ranks.only(), own
        whole = [wait().unflatten(0, (ranks.size, -1)) for wait in arriving]
        for owners in (range(ranks.rank), range(ranks.rank + 1, ranks.size)):
            if owners:
                yield owners, [x[owners.start : owners.stop].flatten(0, 1) for x in whole]
    else:
        for step in range(ranks.size):
            arrive = ranks.start_passing(own) if step < ranks.size - 1 else None
            owner = (ranks.rank - step) % ranks.size
            yield range(owner, owner + 1), own
            if arrive is not None:
                own = arrive()


def again(
    ranks: Ranks, comm: str, kept: Sequence[torch.Tensor], more: Sequence[torch.Tensor]
) -> Iterator[tuple[Owners, Sequence[torch.Tensor]]]:
    """(owners, (features, *more)) as in forward; what was gathered is there still.

    Args:
        ranks, comm: as in forward.
        kept: the features that came, in order; on a ring this rank's alone.
        more: of this rank, to be sent along.
    """
    if ranks.size == 1 or comm == "ring":
        yield from visiting(ranks, comm, [kept[0], *more])
    else:
        visits = visiting(ranks, comm, more)
        yield from ((owners, [x, *rest]) for x, (owners, rest) in zip(kept, visits, strict=True))


class Homeward(Protocol):
    """What each rank computes for every block's owner, and the owner wants all together."""

    def part(
        self, owners: Owners, like: torch.Tensor, dtype: torch.dtype
    ) -> AbstractContextManager[torch.Tensor]:
        """Zeros of the shape of `like`, (n * owners, ...), to be filled with this rank's part for
        blocks, one after the other as they come. At the end of the context it goes home.
        """

    def result(self) -> torch.Tensor:
        """All ranks' parts for this rank's block, together."""


def homeward(ranks: Ranks, comm: str, kind: str) -> Homeward:
    """Parts that are added up (`sum`) or whose exponentials are (`logsumexp`)."""
    combine = torch.add if kind == "sum" else torch.logaddexp
    if ranks.size > 1 and comm == "ring":
        return _Following(ranks, combine)
    return _Collected(ranks, kind)


def part_if(
    needed: bool, home: Homeward, owners: Owners, like: torch.Tensor, dtype: torch.dtype
) -> AbstractContextManager[torch.Tensor | None]:
    """`home.part(...)`, or None where nobody asks for the result."""
    return home.part(owners, like, dtype) if needed else nullcontext()


class _Collected:
    def __init__(self, ranks: Ranks, kind: str) -> None:
        self._ranks, self._kind = ranks, kind
        self._parts: torch.Tensor | None = None

    @contextmanager
    def part(
        self, owners: Owners, like: torch.Tensor, dtype: torch.dtype
    ) -> Iterator[torch.Tensor]:
        if self._parts is None:
            shape = (self._ranks.size, len(like) // len(owners), *like.shape[1:])
            self._parts = like.new_zeros(shape, dtype=dtype)
        yield self._parts[owners.start : owners.stop].flatten(0, 1)

    def result(self) -> torch.Tensor:
        assert self._parts is not None
        if self._ranks.size == 1:
            return self._parts[0]
        if self._kind == "sum":
            return self._ranks.reduce_scatter(self._parts.flatten(0, 1))
        return self._ranks.swap(self._parts).logsumexp(dim=0)


class _Following:
    """Parts for one block follow it: rank o + 1 begins, every further one adds its own."""

    def __init__(self, ranks: Ranks, combine: Callable[..., torch.Tensor]) -> None:
        self._ranks, self._combine = ranks, combine
        self._home: torch.Tensor | None = None
        self._arrive: Callable[[], list[torch.Tensor]] | None = None

    @contextmanager
    def part(
        self, owners: Owners, like: torch.Tensor, dtype: torch.dtype
    ) -> Iterator[torch.Tensor]:
        part = torch.zeros_like(like, dtype=dtype)
        yield part
        if owners == self._ranks.only():
            self._home = part
            return
        if self._arrive is not None:
            part = self._combine(part, self._arrive()[0], out=part)
        self._arrive = self._ranks.start_passing([part])

    def result(self) -> torch.Tensor:
        assert self._home is not None
        assert self._arrive is not None
        return self._combine(self._home, self._arrive()[0], out=self._home)
