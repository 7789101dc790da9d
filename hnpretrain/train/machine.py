"""How much memory this machine leaves to a rank, and how much the rank takes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import torch

# Shares of what there is that a training may be planned to fill. What is estimated is what is
# allocated; allocators lose some to fragments, and on a CPU loader processes come on top.
CUDA_SHARE = 0.9
CPU_SHARE = 0.8


def budget(device: torch.device, local_ranks: int) -> int:
    """Bytes that this process may come to hold on its device.

    On a GPU, its memory less what others use; on a CPU, what this process holds and its share of
    what is available.

    Args:
        local_ranks: processes that train on this machine.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(CUDA_SHARE * (free + torch.cuda.memory_reserved(device)))
    return int(CPU_SHARE * (resident() + available() / local_ranks))


def local_ranks(ranks: int) -> int:
    """How many of all ranks train on this machine: what torchrun says, else all."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", ranks))


def in_words(size: float) -> str:
    """Bytes, for people."""
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


def in_use(device: torch.device) -> int:
    """Bytes that this process takes.

    On a GPU the most that its tensors have taken at once, on a CPU what it holds now.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resident()


def resident() -> int:
    """Bytes of main memory that this process holds; 0 where /proc does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def available() -> int:
    """Bytes of main memory that may still be taken: of the machine, or of the control group."""
    return min([_of_machine(), *_of_control_groups()])


def _of_machine() -> int:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:  # no Linux
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    kibibytes = next(line.split()[1] for line in lines if line.startswith("MemAvailable:"))
    return 1024 * int(kibibytes)


# Of each version of control groups: where they lie, the limit, the use, and the part of it that
# is files that were read, which yield.
_VERSIONS = {
    2: ("sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
    1: (
        "sys/fs/cgroup/memory",
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
        "total_inactive_file",
    ),
}


def _of_control_groups(root: Path = Path("/")) -> Iterator[int]:
    """What is left in the groups of this process, from its own to the uppermost."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        place, limit_name, use_name, files_name = _VERSIONS[1 if controllers else 2]
        own = root / place / path.lstrip("/")
        for group in (own, *own.parents):
            if not group.is_relative_to(root / place):
                break
            try:
                limit = (group / limit_name).read_text().strip()
                use = int((group / use_name).read_text())
                statistics = (group / "memory.stat").read_text().splitlines()
            except OSError:  # the uppermost has no limit, and no file of it; a container sees less
                continue
            files = next((int(x.split()[1]) for x in statistics if x.startswith(files_name)), 0)
            if limit != "max":
                yield max(0, int(limit) - use + files)
