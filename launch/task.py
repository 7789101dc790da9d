"""What submitit runs in each task of a job: turns the task into the program of the job.

A task is not the parent of what it starts, but becomes it. So signals reach the ranks and no one
else, their exit status is Slurm's, and submitit, which would have one rank of many save when a job
is preempted, is out of the way.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

from submitit.helpers import TorchDistributedEnvironment

_FIRST_PORT, _PORTS = 20_000, 12_000


@dataclass(frozen=True)
class Place:
    """Where a task works, whatever container or prelude it finds itself in.

    Attributes:
        code: the snapshot.
        directory: from where the job was submitted: relative paths of settings start there.
    """

    code: str
    directory: str

    def enter(self) -> None:
        """Sees to it that what this process becomes runs the snapshot, from that directory."""
        others = os.environ.get("PYTHONPATH", "").split(os.pathsep)
        paths = [self.code, *(path for path in others if path not in ("", self.code))]
        os.environ |= {"PYTHONPATH": os.pathsep.join(paths), "PYTHONSAFEPATH": "1"}
        os.chdir(self.directory)


@dataclass(frozen=True)
class Training:
    """One task of a training.

    Attributes:
        place: where it works.
        config: the run's resolved settings.
        ranks: processes that this task stands for: 1, and it is one of the ranks itself; or the
            node's, under a torchrun.
        nodes: of the job.
        under_torchrun: whether the task is the node's torchrun.
    """

    place: Place
    config: str
    ranks: int
    nodes: int
    under_torchrun: bool

    def __call__(self) -> NoReturn:
        self.place.enter()
        group = TorchDistributedEnvironment()
        group.master_port = port_of(group.master_port)
        _share_cores(group.local_world_size, self.ranks)
        train = ("-m", "hnpretrain.train", self.config)
        if not self.under_torchrun:
            group.export(set_cuda_visible_devices=False, overwrite=True)
            _become(train)
        _become(
            (
                "-m",
                "launch.torchrun",
                f"--nnodes={self.nodes}",
                f"--node_rank={group.rank}",
                f"--nproc_per_node={self.ranks}",
                f"--master_addr={group.master_addr}",
                f"--master_port={group.master_port}",
                *train,
            )
        )


@dataclass(frozen=True)
class Command:
    """A task that runs a command of `hnpretrain`.

    Attributes:
        place: where it works.
        command: `shard build`, as its words.
        config: the job's resolved settings.
        overrides: this task's.
    """

    place: Place
    command: tuple[str, ...]
    config: str
    overrides: tuple[str, ...] = ()

    def __call__(self) -> NoReturn:
        self.place.enter()
        _become(("-m", "hnpretrain.cli", *self.command, self.config, *self.overrides))


def port_of(drawn: int) -> int:
    """The port at which a job's ranks meet, from the one that submitit draws by the job's id.

    submitit draws up to 60000; there, from 32768 on, Linux has the ports of outgoing connections,
    of which one may be in use.
    """
    return _FIRST_PORT + drawn % _PORTS


def _share_cores(tasks: int, ranks: int) -> None:
    """Gives each of a node's ranks an equal part of the cores for its computing.

    Args:
        tasks: of the node.
        ranks: of each task.
    """
    own = os.environ.get("SLURM_CPUS_PER_TASK")
    cores = int(own) if own else len(os.sched_getaffinity(0)) // tasks
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // ranks)))


def _become(arguments: Sequence[str]) -> NoReturn:
    """Turns this process into Python with these arguments."""
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, *arguments])
