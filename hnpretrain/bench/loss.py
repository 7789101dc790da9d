"""Loss, forward and backward: time, memory and error, ours beside what a user would take else.

1. All contenders get the same unit features, in one process a rank, and take turns: whatever else
   the machine does slows them alike. Each turn is one forward and backward; medians are told.
2. Peak memory is measured on a GPU by its allocator. On a CPU a fresh process runs the contender
   once, and its peak of resident memory counts from when the features were made.
3. Errors are against the formula in float64, with negatives or without, of the loss and of the
   image gradients, relative to their norms. The formula is `HardNegativeContrastiveLoss` on the
   same features in float64, which tests hold against the dense formula.
"""

from __future__ import annotations

import ctypes
import gc
import itertools
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.functional import normalize

from hnpretrain.bench.contenders import SCALE, Contender, Inputs, contenders
from hnpretrain.bench.machine import machine
from hnpretrain.losses import HardNegativeContrastiveLoss

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# A contender that needs more than this for its matrices of all pairs is left out.
_SHARE_OF_MEMORY = 0.6
_BYTES_PER_PAIR = 18  # open_clip's at its peak: two matrices of logits, and of their gradients
_GPU_WARM_UPS = 3


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


def compare(cases: Sequence[Case]) -> list[dict[str, Any]]:
    """The rows of the table; peers that do not fit into memory are told with no figures."""
    return [row for case in cases for row in _compare(case)]


def _compare(case: Case) -> list[dict[str, Any]]:
    names = [contender.name for contender in _taking_part(case)]
    measured: dict[str, Any] = _in_processes(case, _measure, names)
    peaks = measured["peaks"]
    if case.device == "cpu":
        fitting = [name for name in names if name in measured["seconds"]]
        peaks = {name: _in_processes(case, _peak_of, [name]) for name in fitting}
    fastest = min(s for name, s in measured["seconds"].items() if name.startswith("ours"))
    rows = []
    for contender in _taking_part(case):
        seconds = measured["seconds"].get(contender.name)
        row = {"case": contender.name, **asdict(case), "seconds": seconds, "machine": machine()}
        if case.device == "cuda":
            row["machine"] = torch.cuda.get_device_name()
        if seconds is not None:
            flops = contender.products * 2.0 * case.B * case.B * case.D
            row |= {
                "ours": fastest,
                "peer": seconds,
                "ratio": fastest / seconds,
                "peak_bytes": peaks[contender.name],
                "flops_per_second": flops / seconds,
                "share_of_matmul": flops / seconds / measured["matmul"],
                **measured["errors"][contender.name],
            }
        rows.append(row)
    return rows


def _taking_part(case: Case) -> list[Contender]:
    return contenders(case.device, case.K, ["gather", "ring"] if case.ranks > 1 else ["gather"])


def _in_processes(case: Case, work: Any, names: Sequence[str]) -> Any:
    """What rank 0 found; the ranks are fresh processes, so that nothing is left from before."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["hnpretrain.bench.loss", "open_clip"])
    with tempfile.TemporaryDirectory() as folder:
        arguments = (case, names, folder)
        processes = [
            context.Process(target=_run_rank, args=(rank, work, *arguments), daemon=True)
            for rank in range(case.ranks)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        if codes := [process.exitcode for process in processes if process.exitcode]:
            raise ValueError(
                f"a process of {case} ended with exit status {codes[0]} (-9: memory ran out); "
                "see its output above"
            )
        return torch.load(Path(folder, "found.pt"), weights_only=True)


def _run_rank(rank: int, work: Any, case: Case, names: Sequence[str], folder: str) -> None:
    if case.device == "cuda":
        torch.cuda.set_device(rank)
    if case.ranks > 1:
        if case.device == "cpu":
            torch.set_num_threads(max(1, torch.get_num_threads() // case.ranks))
        backend = "nccl" if case.device == "cuda" else "gloo"
        store = f"file://{folder}/store"
        dist.init_process_group(backend, init_method=store, rank=rank, world_size=case.ranks)
    try:
        found = work(rank, case, [c for c in _taking_part(case) if c.name in names])
        if rank == 0:
            torch.save(found, Path(folder, "found.pt"))
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def make_inputs(case: Case, rank: int) -> Inputs:
    """Features as of a model half-way: captions near images, negatives near captions."""
    generator = torch.Generator().manual_seed(rank)
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


def _measure(rank: int, case: Case, taking_part: Sequence[Contender]) -> dict[str, Any]:
    inputs = make_inputs(case, rank)
    fitting = [c for c in taking_part if c.name.startswith("ours") or _fits(case, c)]
    exact = {
        scope: _exact(inputs, scope, case)
        for scope in sorted({contender.scope for contender in fitting})
    }
    errors: dict[str, dict[str, float]] = {}
    peaks: dict[str, int] = {}
    seconds: dict[str, list[float]] = {contender.name: [] for contender in fitting}
    losses = {contender.name: contender.make() for contender in fitting}
    for contender in fitting:
        for _ in range(_GPU_WARM_UPS if case.device == "cuda" else 1):
            value = _step(losses[contender.name], inputs)
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
            torch.cuda.synchronize()
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            _step(losses[contender.name], inputs)
            peaks[contender.name] = torch.cuda.max_memory_allocated() - before
    for _, contender in itertools.product(range(case.repeats), fitting):
        _wait(case)
        start = time.perf_counter()
        _step(losses[contender.name], inputs)
        _wait(case)
        seconds[contender.name].append(time.perf_counter() - start)
    return {
        "seconds": {name: statistics.median(times) for name, times in seconds.items()},
        "errors": errors,
        "peaks": peaks,
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


def _wait(case: Case) -> None:
    if case.device == "cuda":
        torch.cuda.synchronize()
    if case.ranks > 1:
        dist.barrier()


def _matmul_flops(case: Case) -> float:
    """FLOP/s of large matrix products in the features' dtype on this machine, the best of five."""
    n = 8192 if case.device == "cuda" else 2048
    a = torch.randn(n, n, device=case.device).to(DTYPES[case.dtype])
    times = []
    for _ in range(6):
        _wait(replace(case, ranks=1))
        start = time.perf_counter()
        a @ a
        _wait(replace(case, ranks=1))
        times.append(time.perf_counter() - start)
    return 2.0 * n**3 / min(times[1:])


def _peak_of(rank: int, case: Case, taking_part: Sequence[Contender]) -> int:
    """Bytes of resident memory that one forward and backward adds at its peak, on this rank."""
    inputs = make_inputs(case, rank)
    (contender,) = taking_part
    loss = contender.make()
    # Threads, libraries and the first small arrays are there before.
    small = make_inputs(replace(case, B=64 * case.ranks), rank)
    _step(loss, small)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # else memory that is free but held here would be used first
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak until now
    before = _status("VmRSS")
    _step(loss, inputs)
    return _status("VmHWM") - before


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    (value,) = (line.split()[1] for line in lines if line.startswith(f"{field}:"))
    return int(value) * 1024
