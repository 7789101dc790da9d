"""The root of a training config; its sections stand beside the code that they configure."""

from __future__ import annotations

from dataclasses import dataclass, field

from hnpretrain.config import require_one_of
from hnpretrain.data.loader import DataSettings
from hnpretrain.losses.settings import LossSettings
from hnpretrain.models import ModelSettings
from hnpretrain.shards import storage
from hnpretrain.train.checkpoint import CheckpointSettings
from hnpretrain.train.optimizer import OptimizerSettings

PRECISIONS = ("fp32", "bf16")


@dataclass
class TrainSettings:
    """A run.

    Attributes:
        output: the run's folder: resolved config, log, checkpoints. If it holds a checkpoint, the
            run goes on from there.
        seed: of the plan, the draws and the weights.
        epochs: passes over the data.
        batch_size: B, the global batch over all ranks.
        micro_batches: into how many equal parts a rank's batch is split for the towers; the loss
            and its gradients are those of the whole (gradient caching). 0 takes the fewest that
            are estimated to fit into memory.
        precision: fp32, or bf16: the towers run in bf16 autocast, weights and loss stay fp32.
        zero_stage: DeepSpeed ZeRO stage, 0 to 3: what is cut into one part a rank. 1: the
            optimizer's state; 2: gradients too; 3: weights too.
        log_every: steps between log lines.
    """

    output: str = "runs/default"
    seed: int = 0
    epochs: int = 1
    batch_size: int = 256
    micro_batches: int = 0
    precision: str = "fp32"
    zero_stage: int = 0
    log_every: int = 10
    data: DataSettings = field(default_factory=DataSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    loss: LossSettings = field(default_factory=LossSettings)
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    checkpoint: CheckpointSettings = field(default_factory=CheckpointSettings)

    def __post_init__(self) -> None:
        require_one_of("precision", self.precision, PRECISIONS)
        if self.zero_stage not in (0, 1, 2, 3):
            raise ValueError(f"zero_stage={self.zero_stage} is not one of 0, 1, 2, 3")
        for name in ("epochs", "batch_size", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        for name in ("micro_batches", "seed"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} must not be negative")
        if storage.is_url(self.output):
            raise ValueError(
                f"output={self.output}: checkpoints and logs go to a folder that all ranks see; "
                "URLs are for shards"
            )


def require_shards(settings: TrainSettings) -> None:
    """Raises ValueError if the settings name no data."""
    if not settings.data.shards:
        raise ValueError("set data.shards to the folder or URL that `shard build` wrote")
