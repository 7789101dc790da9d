"""The root of a training config; its sections stand beside the code that they configure."""

from __future__ import annotations

from dataclasses import dataclass, field

from hnpretrain.config import require_one_of
from hnpretrain.data.loader import DataSettings
from hnpretrain.losses.settings import LossSettings
from hnpretrain.models import ModelSettings
from hnpretrain.shards import storage
from hnpretrain.train.checkpoint import CheckpointSettings
from hnpretrain.train.evaluation import EvaluationSettings
from hnpretrain.train.optimizer import OptimizerSettings
from hnpretrain.train.profiling import ProfileSettings
from hnpretrain.train.trackers import LogSettings

PRECISIONS = ("fp32", "bf16", "fp16")
_SEEDS = 2**63  # that torch's generators take
_TIMEOUTS = (0.01, 43200)  # minutes; 30 days


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
        precision: fp32, bf16 or fp16: of the latter the towers run in autocast, weights and loss
            stay fp32. With fp16 the loss is scaled, so that gradients fit its range.
        zero_stage: DeepSpeed ZeRO stage, 0 to 3: what is cut into one part a rank. 1: the
            optimizer's state; 2: gradients too; 3: weights too.
        log_every: steps between log lines.
        ema: decay of an average of the weights that is kept beside them, such as 0.9999; 0 keeps
            none.
        max_skipped: steps in a row whose loss or gradients are not finite, and which are skipped;
            one more stops the run.
        collective_timeout: minutes that a rank waits for the others, once the first step is taken;
            then the run ends, since one of them is gone. More than a shard may take that hangs.
    """

    output: str = "runs/default"
    seed: int = 0
    epochs: int = 1
    batch_size: int = 256
    micro_batches: int = 0
    precision: str = "fp32"
    zero_stage: int = 0
    log_every: int = 10
    ema: float = 0.0
    max_skipped: int = 5
    collective_timeout: float = 60.0
    data: DataSettings = field(default_factory=DataSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    loss: LossSettings = field(default_factory=LossSettings)
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    checkpoint: CheckpointSettings = field(default_factory=CheckpointSettings)
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)
    log: LogSettings = field(default_factory=LogSettings)
    profile: ProfileSettings = field(default_factory=ProfileSettings)

    def __post_init__(self) -> None:
        require_one_of("precision", self.precision, PRECISIONS)
        if self.zero_stage not in (0, 1, 2, 3):
            raise ValueError(f"zero_stage={self.zero_stage} is not one of 0, 1, 2, 3")
        for name in ("epochs", "batch_size", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if not 0 <= self.seed < _SEEDS:
            raise ValueError(f"seed={self.seed} must be from 0 to {_SEEDS - 1}")
        for name in ("micro_batches", "max_skipped"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} must not be negative")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema={self.ema} must be a decay from 0 (none) to below 1")
        least, most = _TIMEOUTS
        if not least <= self.collective_timeout <= most:  # also refuses NaN
            raise ValueError(
                f"collective_timeout={self.collective_timeout} must be a number of minutes from "
                f"{least} to {most}"
            )
        if storage.is_url(self.output):
            raise ValueError(
                f"output={self.output}: checkpoints and logs go to a folder that all ranks see; "
                "URLs are for shards"
            )


def require_shards(settings: TrainSettings) -> None:
    """Raises ValueError if the settings name no data."""
    if not (settings.data.shards or settings.data.mixture):
        raise ValueError(
            "set data.shards to the folder or URL that `shard build` wrote, or data.mixture to "
            "several"
        )
