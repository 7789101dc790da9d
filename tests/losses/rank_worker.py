"""What each process of the distributed tests computes; test_distributed.py launches and judges it.

A world is launched once and goes through every case, since starting processes costs more than all
of them. Each rank writes what it found to a file; comparing is left to the parent.
"""

from __future__ import annotations

import itertools
import multiprocessing
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from hnpretrain.losses import HardNegativeContrastiveLoss, blocked, make_loss
from tests.losses.loss_cases import Case, make_case

SCOPES = ("own", "local", "global")
COMMS = ("gather", "ring")
OBJECTIVES = ("negclip", "ceclip", "tsvlc", "siglip")
SMOOTHING = 0.1
SCALES = (1.0, 100.0)
DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16}
LOCAL_BATCH = 6
COLLECTIVE_TIMEOUT = timedelta(seconds=60)
DEADLINE_S = 300.0


def case_for(ranks: int, K: int = 3) -> Case:
    """The global batch of a world of this size; the scale is high enough for 1e-5 in float32."""
    return make_case(seed=100 + ranks, B=LOCAL_BATCH * ranks, D=10, K=K, scale=30.0, noise=2.0)


def extreme_case(ranks: int, scale: float) -> Case:
    """As case_for, at another scale, with the first pair and its negatives twice on each rank."""
    case = make_case(seed=200 + ranks, B=LOCAL_BATCH * ranks, D=10, K=3, scale=scale, noise=2.0)
    for twice in range(LOCAL_BATCH - 1, LOCAL_BATCH * ranks, LOCAL_BATCH):
        for x in (case.image, case.text, case.negative, case.mask):
            x[twice] = x[0]
    return case


class Towers(nn.Module):
    """A two-tower model small enough to read: linear towers and CLIP's logit scale."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.image = nn.Linear(7, 10, dtype=torch.float64)
        self.text = nn.Linear(5, 10, dtype=torch.float64)
        self.logit_scale = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))
        for weight in self.parameters():
            if weight.ndim > 0:
                weight.data.normal_(generator=generator)

    def forward(self, image: torch.Tensor, captions: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """image (b, 7), captions (b, 1 + K, 5): the positive, then its negatives."""
        text = nn.functional.normalize(self.text(captions), dim=-1)
        image = nn.functional.normalize(self.image(image), dim=-1)
        return image, text[:, 0], text[:, 1:], self.logit_scale.exp()


def tower_inputs(ranks: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Global inputs of Towers and a mask: (B, 7), (B, 3, 5), (B, 2)."""
    generator = torch.Generator().manual_seed(4)
    B = 3 * ranks
    images = torch.randn(B, 7, generator=generator, dtype=torch.float64)
    captions = torch.randn(B, 3, 5, generator=generator, dtype=torch.float64)
    return images, captions, torch.rand(B, 2, generator=generator) < 0.7


def run_loss(
    case: Case, scope: str, group: Any = None, comm: str = "gather", backend: str = "auto"
) -> dict[str, Any]:
    loss = HardNegativeContrastiveLoss(scope, group, comm=comm, backend=backend)
    out = loss(*case.arguments())
    out.total.backward()
    return {"total": out.total.detach(), "grads": case.grads(), "metrics": out.metrics}


def run_objective(objective: str, comm: str, case: Case) -> dict[str, Any]:
    smoothing = 0.0 if objective == "siglip" else SMOOTHING
    loss = make_loss(objective, negatives=3, label_smoothing=smoothing, comm=comm)
    bias = torch.tensor(-3.0, dtype=torch.float64)
    out = loss(*case.arguments(), logit_bias=bias)
    out.total.backward()
    thresholds = [x.double() for x in loss.state_dict().values()]
    return {
        "total": out.total.detach(),
        "grads": case.grads(),
        "terms": out.terms,
        "thresholds": thresholds,
    }


def message_of(case: Case, loss: HardNegativeContrastiveLoss) -> str:
    """The ValueError that the loss raises, or an empty string; then proves that no rank hangs."""
    try:
        loss(*case.arguments())
    except ValueError as error:
        dist.barrier()
        return str(error)
    return ""


def find_all(rank: int, ranks: int) -> dict[str, Any]:
    """Every result of this rank, by name."""
    found: dict[str, Any] = {}
    for K in (0, 3):
        mine = case_for(ranks, K).part(rank, ranks)
        for scope in SCOPES:
            for name, dtype in DTYPES.items():
                for comm, tile in itertools.product(COMMS, (2**20, 50)):
                    blocked.CPU_TILE_ELEMENTS = tile
                    found[f"{scope}-K{K}-{name}-{comm}-tile{tile}"] = run_loss(
                        mine.leaves(dtype), scope, comm=comm
                    )

    mine = case_for(ranks).part(rank, ranks)
    for scope in SCOPES:
        for comm in COMMS:
            locked = mine.leaves(torch.float64)
            locked.text.requires_grad_(False)
            locked.negative.requires_grad_(False)
            found[f"{scope}-{comm}-locked-text"] = run_loss(locked, scope, comm=comm)
        inputs = mine.leaves(torch.float64)
        found[f"{scope}-oracle"] = run_loss(inputs, scope, backend="oracle")

        model = Towers()
        parallel = nn.parallel.DistributedDataParallel(model)
        images, captions, mask = (x.chunk(ranks)[rank] for x in tower_inputs(ranks))
        image, text, negative, scale = parallel(images, captions)
        loss = HardNegativeContrastiveLoss(scope)
        loss(image, text, negative, mask, logit_scale=scale).total.backward()
        found[f"{scope}-ddp"] = {name: p.grad for name, p in model.named_parameters()}

    for scale, scope, comm in itertools.product(SCALES, SCOPES, COMMS):
        for name in ("float64", "float32"):
            inputs = extreme_case(ranks, scale).part(rank, ranks).leaves(DTYPES[name])
            found[f"s{scale:g}-{scope}-{name}-{comm}"] = run_loss(inputs, scope, comm=comm)
    for objective, comm in itertools.product(OBJECTIVES, COMMS):
        inputs = mine.leaves(torch.float64)
        found[f"{objective}-{comm}"] = run_objective(objective, comm, inputs)

    if ranks == 1:
        return found

    # Ranks may have different K as long as negatives stay at home.
    fewer = mine.leaves(torch.float64)
    if rank == 0:
        fewer.negative = fewer.negative.detach()[:, :1].requires_grad_()
        fewer.mask = fewer.mask[:, :1]
    found["own-different-K"] = run_loss(fewer, "own")["total"]
    found["refused-K"] = message_of(fewer, HardNegativeContrastiveLoss("global"))

    uneven = mine.part(0, 2) if rank == 0 else mine
    found["refused-batch"] = message_of(uneven, HardNegativeContrastiveLoss("own"))
    mixed = mine.leaves(torch.float32) if rank == 0 else mine
    found["refused-dtype"] = message_of(mixed, HardNegativeContrastiveLoss("own"))
    locked = mine.leaves(torch.float64)
    locked.text.requires_grad_(rank == 0)
    found["refused-gradient"] = message_of(locked, HardNegativeContrastiveLoss("own"))
    found["refused-scope"] = message_of(mine, HardNegativeContrastiveLoss(SCOPES[min(rank, 1)]))
    found["refused-comm"] = message_of(mine, HardNegativeContrastiveLoss(comm=COMMS[min(rank, 1)]))
    ranked = make_loss("hn", negatives=3, weights={"rank": 0.2})
    found["refused-term-K"] = message_of(fewer, ranked)
    short = make_loss("hn", negatives=max(3 - rank, 1), weights={"rank": 0.2})
    found["refused-thresholds"] = message_of(mine, short)
    smoothed = HardNegativeContrastiveLoss(label_smoothing=0.1 * rank)
    found["refused-settings"] = message_of(mine, smoothed)
    broken = mine.part(0, 1)
    if rank == 1:
        broken.text = broken.text[:-1]
    found["refused-shape"] = message_of(broken, HardNegativeContrastiveLoss("own"))

    if ranks == 4:  # two groups of two, each with the batch of a world of two
        groups = [dist.new_group([0, 1]), dist.new_group([2, 3])]
        mine = case_for(2).part(rank % 2, 2)
        for scope in SCOPES:
            for comm in COMMS:
                inputs = mine.leaves(torch.float64)
                found[f"{scope}-{comm}-group"] = run_loss(inputs, scope, groups[rank // 2], comm)
        try:
            HardNegativeContrastiveLoss(group=groups[1 - rank // 2])(*mine.arguments())
        except ValueError as error:
            found["not-a-member"] = str(error)
    return found


def work(rank: int, ranks: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/init",
        rank=rank,
        world_size=ranks,
        timeout=COLLECTIVE_TIMEOUT,
    )
    try:
        torch.save(find_all(rank, ranks), Path(folder) / f"rank{rank}.pt")
    finally:
        dist.destroy_process_group()


def launch(
    ranks: int, folder: Path, work: Callable[[int, int, str], None] = work
) -> list[dict[str, Any]]:
    """Runs `work` in `ranks` processes and returns what each found; never waits past DEADLINE_S."""
    # Importing torch, and the compiler that DDP's constructor imports, takes longer than all cases:
    # the fork server does it once for every process.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch._dynamo"])
    processes = [
        context.Process(target=work, args=(rank, ranks, str(folder)), daemon=True)
        for rank in range(ranks)
    ]
    for process in processes:
        process.start()
    deadline = time.monotonic() + DEADLINE_S
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
    for process in processes:
        if process.is_alive():
            process.kill()
            process.join()
    codes = [process.exitcode for process in processes]
    if any(codes):
        raise RuntimeError(f"ranks ended with exit codes {codes}; -9 is the deadline")
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(ranks)]
