"""The process group, for `torchrun` and for a single process alike."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn

from hnpretrain.data.workers import named_if_gone

T = TypeVar("T")

# Until the first step is taken: compiling, first reads, restoring and converting may take long.
_START_TIMEOUT = timedelta(hours=1)
GROUP_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Place:
    """Where this process stands.

    Attributes:
        rank: 0 to world_size - 1.
        world_size: number of processes, W.
        device: its CUDA device, or the CPU.
    """

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0


@contextlib.contextmanager
def process_group() -> Iterator[Place]:
    """Joins the group that the environment describes (torchrun's variables), and leaves it.

    Inside, the loss of a loader process or of another rank is an OSError that says what to do.

    Without these variables the process is a world of its own. A process that is in a group already
    stays in it: DeepSpeed remembers its groups, so none can be joined after the first was left.
    """
    if dist.is_initialized():
        with named_if_gone():
            yield _place()
        return
    _check_environment()
    with _world_of_one() if "RANK" not in os.environ else contextlib.nullcontext():
        _init_deepspeed(_device())
        try:
            with named_if_gone():
                yield _place()
        except RuntimeError as error:
            raise _as_lost_rank(error) from error
        # Not after an error: leaving in order could wait for ranks that wait for this one.
        dist.destroy_process_group()


def set_timeouts(minutes: float) -> None:
    """How long this process waits for others in collective operations from now on."""
    # Public since torch 2.14 only.
    set_timeout = getattr(dist, "set_timeout", None) or dist.distributed_c10d._set_pg_timeout
    # DeepSpeed has groups of its own, of the same ranks.
    for group in dist.distributed_c10d._world.pg_map:
        set_timeout(timedelta(minutes=minutes), group)


def is_of_group(error: Exception) -> bool:
    """Whether a collective operation raised it, since another rank is gone or does not answer."""
    if isinstance(error, dist.DistBackendError):
        return True
    return isinstance(error, RuntimeError) and "gloo" in str(error)


def _as_lost_rank(error: RuntimeError) -> Exception:
    """An error of a collective operation, in words; another one as it is."""
    text = str(error)
    if not is_of_group(error):
        return error
    first = text.splitlines()[0]
    if "timed out" in text.lower() or "timeout" in text.lower():
        return TimeoutError(
            "another rank has not answered within the time-out (collective_timeout, in minutes): "
            f"it hangs, or its machine is gone; the run goes on from its last checkpoint ({first})"
        )
    return ConnectionError(
        "another rank is gone: its own error, if it could tell one, says why; the run goes on from "
        f"its last checkpoint ({first})"
    )


def on_main(work: Callable[[], T]) -> T:
    """What `work` gives on the main rank, on all ranks; collective.

    Raises:
        ValueError, OSError: where the main rank met one, all ranks do, and none waits for others.
    """
    found: list[Any] = [None]
    if dist.get_rank() == 0:
        try:
            found = [work()]
        except (ValueError, OSError) as error:
            found = [error]
    dist.broadcast_object_list(found)
    if isinstance(found[0], Exception):
        raise found[0]
    return found[0]


def on_all(work: Callable[[], T]) -> list[T]:
    """What `work` gives on each rank, on all ranks, by rank; collective.

    Raises:
        ValueError, OSError: where a rank met one, all ranks do, and none waits for others; it
            names the rank unless all met one.
    """
    try:
        own: Any = work()
    except (ValueError, OSError) as error:
        own = error
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, own)
    failed = [rank for rank, each in enumerate(found) if isinstance(each, Exception)]
    if failed:
        first = found[failed[0]]
        if len(failed) == len(found):
            raise first
        raise OSError(f"{first} (on rank {failed[0]}, not on all)") from first
    return found


def whole_tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of a model's state dict, one at a time, also if ZeRO stage 3 has cut them.

    Collective: all ranks take all of them. Each is whole, on its rank's device, until the next.
    """
    import deepspeed

    for name, tensor in model.state_dict(keep_vars=True).items():
        # Small weights are whole on every rank, and must be left so: DeepSpeed cuts what it has
        # gathered here, and then stops at steps that do not run as those that it has recorded.
        is_cut = tensor.numel() == 0
        with deepspeed.zero.GatheredParameters([tensor], enabled=is_cut):
            yield name, tensor.detach()


def _check_environment() -> None:
    missing = [name for name in GROUP_VARIABLES if name not in os.environ]
    if missing and "RANK" in os.environ:
        raise ValueError(
            f"RANK is set but {', '.join(missing)} is not: start the ranks with torchrun or "
            "`hnpretrain launch`, or unset RANK to train in this process alone"
        )


def _place() -> Place:
    return Place(dist.get_rank(), dist.get_world_size(), _device())


def _device() -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    rank, count = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if rank >= count:
        raise ValueError(
            f"local rank {rank} has no GPU, since this process sees {count}: start at most {count} "
            "processes on this machine (--nproc, --nproc_per_node), or let each see all GPUs "
            "(CUDA_VISIBLE_DEVICES)"
        )
    device = torch.device("cuda", rank)
    torch.cuda.set_device(device)
    return device


@contextlib.contextmanager
def _world_of_one() -> Iterator[None]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ.update(zip(GROUP_VARIABLES, ("0", "0", "1", "127.0.0.1", str(port)), strict=True))
    try:
        yield
    finally:
        for name in GROUP_VARIABLES:
            os.environ.pop(name, None)


def _init_deepspeed(device: torch.device) -> None:
    # DeepSpeed reads the environment when it is first imported, so not at the top of this module.
    if device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    # It calls collectives by names that torch 2.14 has changed; with ZeRO, twice a step.
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
    if device.type == "cpu":
        # Else it compiles, with a C++ compiler and for a minute, an operator for inference.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    # Without this it looks for MPI where torchrun's variables are missing, and waits for it.
    deepspeed.init_distributed(
        "nccl" if device.type == "cuda" else "gloo",
        auto_mpi_discovery=False,
        verbose=False,
        timeout=_START_TIMEOUT,
    )
