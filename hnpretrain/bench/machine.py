"""The machine that a row was measured on."""

from __future__ import annotations

import os
import platform
from pathlib import Path


def machine(device: str = "cpu") -> str:
    """The processor's name and the cores that this process may use; for cuda the GPU's name."""
    if device == "cuda":
        import torch  # seconds, which others that want the processor's name need not spend

        return torch.cuda.get_device_name()
    name = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.is_file():
        lines = information.read_text(encoding="utf-8", errors="replace").splitlines()
        name = next(
            (x.partition(":")[2].strip() for x in lines if x.startswith("model name")), name
        )
    return f"{name}, {len(os.sched_getaffinity(0))} cores"
