"""The `launch` section of a YAML: where and how its job is started."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from hnpretrain.config import LAUNCH_SECTION, load, require_one_of

CLUSTERS = ("slurm", "local", "debug")
TASKS = ("rank", "node")

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# What these settings give sbatch, or what would break the count of ranks; and what to set instead.
_INSTEAD = {
    "account": "launch.account",
    "array": "--tasks and launch.parallel",
    "constraint": "launch.constraint",
    "cpus-per-task": "launch.cpus_per_rank (launch.cpus of arrays)",
    "dependency": "",
    "error": "launch.folder",
    "gpus": "launch.gpus_per_node",
    "gpus-per-node": "launch.gpus_per_node",
    "gpus-per-task": "launch.gpus_per_node",
    "job-name": "",
    "mem": "launch.mem_gb",
    "nodes": "launch.nodes",
    "ntasks": "launch.ranks_per_node",
    "ntasks-per-node": "launch.ranks_per_node",
    "open-mode": "",
    "output": "launch.folder",
    "partition": "launch.partition",
    "qos": "launch.qos",
    "requeue": "launch.requeues",
    "signal": "launch.signal_seconds",
    "time": "launch.minutes",
}

T = TypeVar("T", bound="ClusterSettings")


@dataclass
class ClusterSettings:
    """What training and shard jobs have in common.

    Attributes:
        cluster: slurm; local: processes of this machine, in the background; debug: this process.
        folder: of scripts, logs and the code that the job runs; it must be seen by all nodes.
            `launch` in the output where none is given.
        partition, account, qos, constraint: as for sbatch; "" leaves them out.
        minutes: the job's time limit.
        mem_gb: memory of a node; 0 leaves it out.
        sbatch: further options, as `exclude: node7`; a long option without its dashes.
        srun: further arguments of srun, as `--container-image=/images/torch.sqsh`.
        prelude: lines of bash, run on the job's first node before all else: `module load cuda`.
        python: the command that runs Python on the nodes, as `apptainer exec --nv torch.sif
            python`, or `python` after a prelude that activates it; "" is the one that runs this.
        environment: variables of the job.
    """

    cluster: str = "slurm"
    folder: str = ""
    partition: str = ""
    account: str = ""
    qos: str = ""
    constraint: str = ""
    minutes: int = 1440
    mem_gb: float = 0.0
    sbatch: dict[str, Any] = field(default_factory=dict)
    srun: list[str] = field(default_factory=list)
    prelude: list[str] = field(default_factory=list)
    python: str = ""
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require_one_of("launch.cluster", self.cluster, CLUSTERS)
        require_at_least(self, 1, "minutes")
        require_at_least(self, 0, "mem_gb")
        for name in self.environment:
            if not _NAME.fullmatch(name):
                raise ValueError(f"launch.environment: {name!r} is no name of a variable")
        if self.prelude and self.cluster != "slurm":
            raise ValueError(f"launch.prelude is for slurm, not for cluster={self.cluster}")
        self.sbatch_options()

    def sbatch_options(self) -> dict[str, Any]:
        """`sbatch` as submitit takes it: switches are true, lists have commas.

        Raises:
            ValueError: an option is given by another setting, or cannot be.
        """
        options: dict[str, Any] = {}
        for name, value in self.sbatch.items():
            option = name.replace("_", "-")
            if option in _INSTEAD:
                instead = _INSTEAD[option]
                what = f"set {instead}" if instead else "the launcher sets it"
                raise ValueError(f"launch.sbatch.{name}: {what}")
            if len(option) == 1 or isinstance(value, dict):
                raise ValueError(
                    f"launch.sbatch.{name}={value!r}: write a long option without its dashes, and "
                    "a value, true, or a list"
                )
            if value is not None and value is not False:
                text = ",".join(map(str, value)) if isinstance(value, list) else value
                options[option] = text
        return options


@dataclass
class TrainingLaunch(ClusterSettings):
    """How a training is started.

    Attributes:
        nodes: machines.
        gpus_per_node: GPUs of each; 0 asks for none.
        ranks_per_node: processes of each; 0 is one a GPU, or one.
        task: what Slurm starts: `rank`, each process by itself, or `node`, one torchrun a node.
        cpus_per_rank: cores of each process, for its loader; 0 leaves it to the cluster.
        signal_seconds: how long before the time limit the run is told to save. More than a
            checkpoint and an evaluation's batch take.
        requeues: how often the job goes back to the queue at most, whatever for.
        failures: how often in a row it does because it failed, without a new checkpoint between.
    """

    nodes: int = 1
    gpus_per_node: int = 8
    ranks_per_node: int = 0
    task: str = "rank"
    cpus_per_rank: int = 0
    signal_seconds: int = 180
    requeues: int = 100
    failures: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        require_one_of("launch.task", self.task, TASKS)
        require_at_least(self, 1, "nodes", "signal_seconds")
        require_at_least(
            self, 0, "gpus_per_node", "ranks_per_node", "cpus_per_rank", "requeues", "failures"
        )
        if self.signal_seconds >= 60 * self.minutes:
            raise ValueError(
                f"launch.signal_seconds={self.signal_seconds} must be less than the job's "
                f"launch.minutes={self.minutes}"
            )
        if self.cluster != "slurm" and self.nodes > 1:
            raise ValueError(f"launch.cluster={self.cluster} has one node, not {self.nodes}")
        if self.cluster == "debug" and self.ranks > 1:
            raise ValueError(f"launch.cluster=debug has one process, not {self.ranks}")

    @property
    def ranks_of_node(self) -> int:
        """Processes of each node."""
        return self.ranks_per_node or self.gpus_per_node or 1

    @property
    def ranks(self) -> int:
        """W: processes of all nodes."""
        return self.nodes * self.ranks_of_node


@dataclass
class ArrayLaunch(ClusterSettings):
    """How an array of jobs is started: of shards, or of pictures.

    Attributes:
        cpus: cores of each task, which runs a process on each (unless `workers` is set).
        parallel: tasks that run at the same time at most.
    """

    cpus: int = 8
    parallel: int = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.cluster != "slurm":
            raise ValueError(
                f"launch.cluster={self.cluster}: an array is for slurm; on this machine, "
                "`hnpretrain shard build` uses all cores, and `inpaint generate` all GPUs"
            )
        require_at_least(self, 1, "cpus", "parallel")


def require_at_least(settings: ClusterSettings, least: int, *names: str) -> None:
    """Raises ValueError for the first of these settings that is less."""
    for name in names:
        value = getattr(settings, name)
        if value < least:
            raise ValueError(f"launch.{name}={value} must be at least {least}")


def split(overrides: Sequence[str]) -> tuple[list[str], list[str]]:
    """The overrides of the `launch` section, and those of what is launched."""
    ours = [each for each in overrides if each.startswith(f"{LAUNCH_SECTION}.")]
    return ours, [each for each in overrides if each not in ours]


def read(cls: type[T], config: str, overrides: Sequence[str]) -> T:
    """The `launch` section of a YAML, with the overrides of it.

    Raises:
        ValueError: see `hnpretrain.config.load`.
    """
    return load(cls, config, overrides, section=LAUNCH_SECTION)
