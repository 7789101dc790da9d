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
        precision: fp32, or bf16: the towers run in bf16 autocast, weights and loss stay fp32.
        zero_stage: DeepSpeed ZeRO stage, 0 to 2.
        log_every: steps between log lines.
    """

    output: str = "runs/default"
    seed: int = 0
    epochs: int = 1
    batch_size: int = 256
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
        if self.zero_stage not in (0, 1, 2):
            raise ValueError(f"zero_stage={self.zero_stage} is not one of 0, 1, 2")
        for name in ("epochs", "batch_size", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if storage.is_url(self.output):
            raise ValueError(
                f"output={self.output}: checkpoints and logs go to a folder that all ranks see; "
                "URLs are for shards"
            )
        if self.seed < 0:
            raise ValueError(f"seed={self.seed} must not be negative")
