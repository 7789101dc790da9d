"""What each rank sends in a step, counted by a process group: the figure of docs/loss.md."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from hnpretrain.losses import HardNegativeContrastiveLoss, make_loss
from tests.losses import counting_group
from tests.losses.loss_cases import make_case
from tests.losses.rank_worker import COMMS, launch

B, D, K = 48, 20, 3
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
Found = list[dict[str, Any]]


def figure(W: int, comm: str, scope: str, e: int) -> int:
    """Bytes sent by a rank in forward and backward, as in docs/loss.md; e is a feature's size."""
    b = B // W
    if comm == "gather":
        each = b * D * e + 4 * b + 12 * b + 4 * b * D
        negatives = b * K * D * e + 2 * b * K + 4 * b * K * D
    else:
        each = 2 * b * D * e + 4 * b + 12 * b + 4 * b * D
        negatives = 2 * b * K * D * e + 2 * b * K + 4 * b * K * D
    agreement, told = 13 * 8, 2 * 4 * 8 // W
    return (W - 1) * (agreement + told + each + (negatives if scope == "global" else 0))


def work(rank: int, ranks: int, folder: str) -> None:
    torch.set_num_threads(1)
    counting_group.register()
    dist.init_process_group(
        "counting", init_method=f"file://{folder}/init", rank=rank, world_size=ranks
    )
    found = {}
    for comm in COMMS:
        for scope in ("own", "local", "global"):
            for name, dtype in DTYPES.items():
                inputs = make_case(B=B, D=D, K=K).part(rank, ranks).leaves(dtype)
                counting_group.SENT.clear()
                loss = HardNegativeContrastiveLoss(scope, comm=comm)
                loss(*inputs.arguments()).total.backward()
                found[f"{comm}-{scope}-{name}"] = dict(counting_group.SENT)
        inputs = make_case(B=B, D=D, K=K).part(rank, ranks).leaves(torch.float32)
        counting_group.SENT.clear()
        make_loss("ceclip", K, comm=comm)(*inputs.arguments()).total.backward()
        found[f"{comm}-ceclip"] = dict(counting_group.SENT)
    torch.save(found, Path(folder) / f"rank{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Found]:
    return functools.cache(lambda ranks: launch(ranks, tmp_path_factory.mktemp("bytes"), work))


@pytest.mark.parametrize("W", [2, 4])
@pytest.mark.parametrize("comm", COMMS)
@pytest.mark.parametrize("scope", ["own", "local", "global"])
@pytest.mark.parametrize("dtype", list(DTYPES))
def test_bytes_sent(
    world: Callable[[int], Found], W: int, comm: str, scope: str, dtype: str
) -> None:
    for found in world(W):
        sent = found[f"{comm}-{scope}-{dtype}"]
        assert sum(sent.values()) == figure(W, comm, scope, DTYPES[dtype].itemsize), sent
        assert ("send" in sent) == (comm == "ring")


@pytest.mark.parametrize("W", [2, 4])
@pytest.mark.parametrize("comm", COMMS)
def test_ceclip_sends_negatives_once(world: Callable[[int], Found], W: int, comm: str) -> None:
    terms = 2 * 16 * (W - 1) // W + 32 * (1 + K) * (W - 1) // W  # two values; thresholds
    for found in world(W):
        sent = found[f"{comm}-ceclip"]
        assert sum(sent.values()) == figure(W, comm, "global", 4) + terms, sent
