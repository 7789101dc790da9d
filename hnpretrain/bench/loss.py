"""Loss, forward and backward: time, memory and error, ours beside what a user would take else.

1. All contenders get the same unit features, in one process a rank, and take turns: whatever else
   the machine does slows them alike. Each turn is one forward and backward; medians are told. A
   peer that cannot do the case is told with its error.
2. Peak memory is measured on a GPU by its allocator. On a CPU a fresh process runs the contender
   once, and its peak of resident memory counts from when the features were made.
3. Errors are against the formula in float64, with negatives or without, of the loss and of the
   image gradients, relative to their norms. The formula is `HardNegativeContrastiveLoss` on the
   same features in float64, which tests hold against the dense formula.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.functional import normalize

from hnpretrain.bench.contenders import SCALE, Contender, Inputs, contenders
from hnpretrain.bench.machine import machine
from hnpretrain.bench.processes import (
    WARM_UPS,
    added_at_peak,
    against_ours,
    in_processes,
    median_seconds,
    wait_for,
)
from hnpretrain.losses import HardNegativeContrastiveLoss

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# A contender that needs more than this for its matrices of all pairs is left out.
_SHARE_OF_MEMORY = 0.6
_BYTES_PER_PAIR = 18  # open_clip's at its peak: two matrices of logits, and of their gradients


@dataclass(frozen=True)
class Case:
    """What is measured.

    Attributes:
        B: the global batch.
        D: width of the features.
        K: negatives a caption.
        dtype: of DTYPES.
        ranks: W; gloo processes on a CPU, NCCL ones on GPUs.
        device: cpu or cuda.
        repeats: turns of each contender.
    """

    B: int
    D: int
    K: int
    dtype: str
    ranks: int
    device: str
    repeats: int


def compare(cases: Sequence[Case]) -> Iterator[list[dict[str, Any]]]:
    """The rows of each case; peers that do not fit into memory are told with no figures."""
    return map(_compare, cases)


def _compare(case: Case) -> list[dict[str, Any]]:
    names = [contender.name for contender in _taking_part(case)]
    measured: dict[str, Any] = _in_ranks(_measure, case)
    seconds, peaks = measured["seconds"], measured["peaks"]
    if case.device == "cpu":
        peaks = {name: _in_ranks(_peak_of, case, name) for name in names if name in seconds}
    rows = []
    for contender in _taking_part(case):
        name = contender.name
        row = {
            "case": name,
            **asdict(case),
            "seconds": seconds.get(name),
            "failure": measured["failures"].get(name),
            "machine": machine(case.device),
        }
        if name in seconds:
            flops = contender.products * 2.0 * case.B * case.B * case.D
            row |= {
                **against_ours(seconds, name),
                "peak_bytes": peaks[name],
                "flops_per_second": flops / seconds[name],
                "share_of_matmul": flops / seconds[name] / measured["matmul"],
                **measured["errors"][name],
            }
        rows.append(row)
    return rows


def _taking_part(case: Case) -> list[Contender]:
    return contenders(case.device, case.K, ["gather", "ring"] if case.ranks > 1 else ["gather"])


def _in_ranks(work: Any, case: Case, *arguments: Any) -> Any:
    return in_processes(work, case, *arguments, device=case.device, ranks=case.ranks)


def make_inputs(case: Case) -> Inputs:
    """Features as of a model half-way: captions near images, negatives near captions."""
    generator = torch.Generator().manual_seed(dist.get_rank() if case.ranks > 1 else 0)
    b = case.B // case.ranks

    def noisy(x: torch.Tensor, noise: float) -> torch.Tensor:
        drawn = normalize(torch.randn(x.shape, generator=generator), dim=-1)
        return normalize(x + noise * drawn, dim=-1)

    image = noisy(torch.zeros(b, case.D), 1.0)
    text = noisy(image, 4.0)
    negative = torch.empty(b, case.K, case.D)
    for k in range(case.K):
        negative[:, k] = noisy(text, 0.5)
    dtype = DTYPES[case.dtype]
    image, text, negative = (
        x.to(case.device, dtype).requires_grad_() for x in (image, text, negative)
    )
    return Inputs(image, text, negative, torch.tensor(SCALE, device=case.device).requires_grad_())


def _measure(case: Case) -> dict[str, Any]:
    inputs = make_inputs(case)
    fitting = [c for c in _taking_part(case) if c.name.startswith("ours") or _fits(case, c)]
    exact = {
        scope: _exact(inputs, scope, case)
        for scope in sorted({contender.scope for contender in fitting})
    }
    errors: dict[str, dict[str, float]] = {}
    peaks: dict[str, int] = {}
    failures: dict[str, str] = {}
    steps = {contender.name: partial(_step, contender.make(), inputs) for contender in fitting}
    for contender in fitting:
        try:
            for _ in range(WARM_UPS[case.device]):
                value = steps[contender.name]()
        except Exception as error:
            # memeff's kernels want more shared memory for fp32 than there is, for one. Where ranks
            # wait for each other, none may go on without the rest.
            if contender.name.startswith("ours") or case.ranks > 1:
                raise
            failures[contender.name] = f"{type(error).__name__}: {error}"
            del steps[contender.name]
            continue
        loss, gradient = exact[contender.scope]
        assert inputs.image.grad is not None
        difference = (inputs.image.grad.double() - gradient).norm() / gradient.norm()
        if case.ranks > 1:
            dist.all_reduce(value.div_(case.ranks))
        errors[contender.name] = {
            "loss_error": (abs(value - loss) / abs(loss)).item(),
            "gradient_error": difference.item(),
        }
        if case.device == "cuda":
            for leaf in inputs.leaves():
                leaf.grad = None  # gradients count, as they do on a CPU
            peaks[contender.name] = added_at_peak(steps[contender.name], case.device)
    return {
        "seconds": median_seconds(steps, case.repeats, partial(_meet, case)),
        "errors": errors,
        "peaks": peaks,
        "failures": failures,
        "matmul": _matmul_flops(case) * case.ranks,
    }


def _step(loss: Any, inputs: Inputs) -> torch.Tensor:
    for leaf in inputs.leaves():
        leaf.grad = None
    total = loss(inputs)
    total.backward()
    return total.detach().double()


def _exact(inputs: Inputs, scope: str, case: Case) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss of the formula and the gradient of this rank's images, in float64.

    As trainers see it: W times the gradient of the global loss, of which they take the mean.
    """
    wide = Inputs(*(x.detach().double().requires_grad_() for x in inputs.leaves()))
    negative = wide.negative if case.K else None
    total = HardNegativeContrastiveLoss(scope)(wide.image, wide.text, negative, None, wide.scale)
    total.total.backward()
    assert wide.image.grad is not None
    return total.total.detach(), wide.image.grad


def _fits(case: Case, contender: Contender) -> bool:
    pairs = case.B // case.ranks * case.B * (1 + case.K if contender.negatives else 1)
    if case.device == "cuda":
        return pairs * _BYTES_PER_PAIR < _SHARE_OF_MEMORY * torch.cuda.mem_get_info()[1]
    fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    available = int(fields["MemAvailable"].split()[0]) * 1024
    return pairs * _BYTES_PER_PAIR * case.ranks < _SHARE_OF_MEMORY * available


def _meet(case: Case) -> None:
    wait_for(case.device)
    if case.ranks > 1:
        dist.barrier()


def _matmul_flops(case: Case) -> float:
    """FLOP/s of large matrix products in the features' dtype on this machine, the best of five."""
    n = 8192 if case.device == "cuda" else 2048
    a = torch.randn(n, n, device=case.device).to(DTYPES[case.dtype])
    times = []
    for _ in range(6):
        wait_for(case.device)
        start = time.perf_counter()
        a @ a
        wait_for(case.device)
        times.append(time.perf_counter() - start)
    return 2.0 * n**3 / min(times[1:])


def _peak_of(case: Case, name: str) -> int:
    """Bytes that one forward and backward of the contender adds at its peak, on this rank."""
    inputs = make_inputs(case)
    (contender,) = (c for c in _taking_part(case) if c.name == name)
    loss = contender.make()
    # Threads, libraries and the first small arrays are there before.
    _step(loss, make_inputs(replace(case, B=64 * case.ranks)))
    return added_at_peak(partial(_step, loss, inputs), case.device)
