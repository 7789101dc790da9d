"""The process group, for `torchrun` and for a single process alike."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist


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

    Without these variables the process is a world of its own.
    """
    if "RANK" not in os.environ:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        os.environ.update(
            RANK="0",
            LOCAL_RANK="0",
            WORLD_SIZE="1",
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=str(port),
        )
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    else:
        device = torch.device("cpu")
    _init_deepspeed(device)
    yield Place(dist.get_rank(), dist.get_world_size(), device)
    # Not after an error: leaving in order could wait for ranks that wait for this one.
    dist.destroy_process_group()


def _init_deepspeed(device: torch.device) -> None:
    # DeepSpeed reads the environment when it is first imported, so not at the top of this module.
    if device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    if device.type == "cpu":
        # Else it compiles, with a C++ compiler and for a minute, an operator for inference.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    # Without this it looks for MPI where torchrun's variables are missing, and waits for it.
    deepspeed.init_distributed(
        "nccl" if device.type == "cuda" else "gloo", auto_mpi_discovery=False, verbose=False
    )
