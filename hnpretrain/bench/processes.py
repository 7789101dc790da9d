"""How benchmarks measure: in fresh processes, in turns, memory at its peak."""

from __future__ import annotations

import ctypes
import gc
import itertools
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from hnpretrain.train.distributed import GROUP_VARIABLES

WARM_UPS: Mapping[str, int] = {"cpu": 1, "cuda": 3}
"""By device, the runs before anything is timed."""


def in_processes(work: Callable[..., Any], *arguments: Any, device: str, ranks: int = 1) -> Any:
    """What rank 0's `work(*arguments)` gives.

    The ranks are fresh processes, so that nothing is left from before. With several they are a
    process group: gloo on a CPU, NCCL on GPUs.

    Args:
        work: a function at the top of a module. It gives numbers and tensors, in dicts and lists.
        device: cpu, where the ranks share torch's threads and see no GPU, or cuda, one GPU each.

    Raises:
        ValueError: rank 0 raised it, or a process ended otherwise.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([work.__module__, "open_clip"])
    # They have groups of their own.
    environment = {key: x for key, x in os.environ.items() if key not in GROUP_VARIABLES}
    with tempfile.TemporaryDirectory() as folder:
        processes = [
            context.Process(
                target=_run_rank,
                args=(rank, ranks, device, folder, work, arguments, environment),
            )
            for rank in range(ranks)
        ]
        try:
            for process in processes:
                process.start()
            for process in processes:
                process.join()
        finally:
            for process in processes:
                if process.pid is not None:
                    process.terminate()  # no daemons, which could start no loader's workers
        refusal = Path(folder, "refusal.txt")
        if refusal.is_file():
            raise ValueError(refusal.read_text(encoding="utf-8"))
        if codes := [process.exitcode for process in processes if process.exitcode]:
            raise ValueError(
                f"a process of {arguments[0]} ended with exit status {codes[0]} (-9: memory ran "
                "out); see its output above"
            )
        return torch.load(Path(folder, "found.pt"), weights_only=True)


def _run_rank(
    rank: int,
    ranks: int,
    device: str,
    folder: str,
    work: Callable[..., Any],
    arguments: tuple[Any, ...],
    environment: Mapping[str, str],
) -> None:
    os.environ.clear()  # the fork server has that of when it was started
    os.environ.update(environment)
    if device == "cuda":
        torch.cuda.set_device(rank)
    else:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # what trains takes a GPU if it sees one
    if ranks > 1:
        if device == "cpu":
            torch.set_num_threads(max(1, torch.get_num_threads() // ranks))
        backend = "nccl" if device == "cuda" else "gloo"
        store = f"file://{folder}/store"
        dist.init_process_group(backend, init_method=store, rank=rank, world_size=ranks)
    try:
        found = work(*arguments)
        if rank == 0:
            torch.save(found, Path(folder, "found.pt"))
    except ValueError as error:
        if rank == 0:
            Path(folder, "refusal.txt").write_text(str(error), encoding="utf-8")
        sys.exit(1)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def median_seconds(
    steps: Mapping[str, Callable[[], object]], repeats: int, wait: Callable[[], None]
) -> dict[str, float]:
    """Of each step, by name, over so many turns.

    The steps take turns, so that whatever else the machine does slows them alike.

    Args:
        wait: for all that a step has left to do, on this device and on other ranks.
    """
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _, (name, step) in itertools.product(range(repeats), steps.items()):
        wait()
        start = time.perf_counter()
        step()
        wait()
        seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in seconds.items()}


def wait_for(device: str) -> None:
    """Until the device has done what it was given."""
    if device == "cuda":
        torch.cuda.synchronize()


def against_ours(seconds: Mapping[str, float], name: str) -> dict[str, float]:
    """Fields of a row: seconds of the first of ours, the row's own, and the ratio of the two.

    The first is what `hnpretrain train` takes; others of ours are there to be compared with it.
    """
    ours = next(value for other, value in seconds.items() if other.startswith("ours"))
    return {"ours": ours, "peer": seconds[name], "ratio": ours / seconds[name]}


def added_at_peak(run: Callable[[], object], device: str) -> int:
    """Bytes that a run adds at its peak: of the GPU's allocator, or of resident memory.

    Of resident memory in a fresh process only. What stays from run to run (threads, libraries) is
    counted unless there was one before.
    """
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        return torch.cuda.max_memory_allocated() - before
    ctypes.CDLL(None).malloc_trim(0)  # else memory that is free but held here would be used first
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak until now
    before = _status("VmRSS")
    run()
    return _status("VmHWM") - before


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    (value,) = (line.split()[1] for line in lines if line.startswith(f"{field}:"))
    return int(value) * 1024
