"""Devices of a run: which there are, and which one a process uses."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from shard_tools.workers import Tally, cores

T = TypeVar("T")

_DEVICE = re.compile(r"(cpu|mps|cuda)(:\d+)?")


def check_names(devices: Sequence[str]) -> None:
    """Raises ValueError for what is no device, and for several kinds of them."""
    kinds = set()
    for name in devices:
        found = _DEVICE.fullmatch(name)
        if found is None:
            raise ValueError(f"devices: {name!r} is not cpu, mps, cuda or cuda:NUMBER")
        kinds.add(found[1])
    if len(kinds) > 1:
        raise ValueError(f"devices={list(devices)}: all of one kind, since their bytes differ")


def devices_of(devices: Sequence[str], use_gpus: bool) -> list[str]:
    """The devices that a run uses, one process each.

    Args:
        devices: that are asked for; if none are, every GPU that torch sees, or one CPU.
        use_gpus: whether GPUs are of use to a run that asks for no devices.

    Raises:
        ValueError: torch sees no such device here.
    """
    if not devices and not use_gpus:
        return ["cpu"]
    if devices and kind_of(devices[0]) == "cpu":
        return list(devices)
    import torch

    count = torch.cuda.device_count()
    if not devices:
        return [f"cuda:{number}" for number in range(count)] or ["cpu"]
    for name in devices:
        kind, _, number = name.partition(":")
        if kind == "cuda" and int(number or 0) >= count:
            raise ValueError(f"devices: torch sees {count} CUDA devices here, and no {name}")
        if kind == "mps" and not torch.backends.mps.is_available():
            raise ValueError("devices: torch sees no mps device here")
    return list(devices)


def kind_of(device: str) -> str:
    """`cuda` of `cuda:1`: what editors are told, since each process has one current device."""
    return device.partition(":")[0]


def use(device: str) -> None:
    """Makes a GPU the one that `cuda` means in this process."""
    if device.startswith("cuda:"):
        import torch

        torch.cuda.set_device(device)


def prepare(
    devices: Sequence[str], next_device: Any, make: Callable[[Tally], T], tally: Tally
) -> T:
    """First in each worker process: takes a device that no other has, then makes what works there.

    Args:
        devices: one a process.
        next_device: a shared integer with a lock, 0 at first.
    """
    with next_device.get_lock():
        number = next_device.value
        next_device.value += 1
    if kind_of(devices[number]) == "cpu":
        # Each takes its share of the cores; before torch is imported.
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores() // len(devices))))
    use(devices[number])
    return make(tally)
