"""Checkpoints: what a run needs to go on from (epoch, step), and which of them is the latest.

A checkpoint is a folder `checkpoints/step_N` with DeepSpeed's files (weights, optimizer), the
position in the data, and the model's open_clip config. `checkpoints/latest` names the newest one
and is moved only when all ranks are done, so that a half-written one is never found.

Random states are not saved: every step seeds its draws from (seed, step, rank).
"""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch.distributed as dist

from hnpretrain.data.loader import Position
from hnpretrain.data.plan import Plan
from hnpretrain.models import LoadedModel
from hnpretrain.models.store import LATEST_NAME, latest_checkpoint, write_config
from hnpretrain.shards import storage
from hnpretrain.train.distributed import Place

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine


@dataclass
class CheckpointSettings:
    """Section `checkpoint:` of a training config.

    Attributes:
        every: steps between checkpoints; the run's end always has one.
        keep: how many are kept.
    """

    every: int = 500
    keep: int = 2

    def __post_init__(self) -> None:
        if self.every < 1 or self.keep < 1:
            raise ValueError(
                f"checkpoint.every={self.every} and checkpoint.keep={self.keep} must be at least 1"
            )


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes:
        position: the next step to take.
        global_step: optimizer steps taken so far.
        samples: samples read so far, over all ranks.
        rejected: samples rejected so far, over all ranks.
    """

    position: Position = field(default_factory=Position)
    global_step: int = 0
    samples: int = 0
    rejected: int = 0


class Checkpoints:
    """The checkpoints of one run.

    Args:
        run: the run's folder, on a file system that all ranks see.
        settings: section `checkpoint:`.
        plan: of the run; a checkpoint of another plan is refused.
        index_fingerprint: of the data set; a checkpoint of other data is refused.
        place: this process.
    """

    def __init__(
        self,
        run: Path,
        settings: CheckpointSettings,
        plan: Plan,
        index_fingerprint: str,
        place: Place,
    ) -> None:
        self._run = run
        self._folder = run / "checkpoints"
        self._settings = settings
        self._place = place
        self._data = {
            "index": index_fingerprint,
            "seed": plan.seed,
            "data.streams": plan.streams,
            "batch_size": plan.batch_size,
            "data.block_size": plan.block_size,
        }

    def save(self, engine: DeepSpeedEngine, model: LoadedModel, progress: Progress) -> None:
        """Saves on all ranks together; collective."""
        tag = f"step_{progress.global_step:08d}"
        state = {"progress": asdict(progress), "data": self._data}
        engine.save_checkpoint(str(self._folder), tag=tag, client_state=state, save_latest=False)
        dist.barrier()
        if self._place.is_main:
            write_config(model, self._folder / tag)
            storage.write_bytes(str(self._folder / LATEST_NAME), tag.encode())
            for old in sorted(self._folder.glob("step_*"))[: -self._settings.keep]:
                if old.name != tag:
                    shutil.rmtree(old)
        dist.barrier()

    def restore(self, engine: DeepSpeedEngine) -> Progress:
        """Loads the latest checkpoint into the engine, on all ranks; the start if there is none.

        Raises:
            ValueError: the checkpoint belongs to other data or another plan.
        """
        latest = latest_checkpoint(self._run)
        if latest is None:
            return Progress()
        _, state = engine.load_checkpoint(str(self._folder), tag=latest.name)
        self._check(state["data"], latest)
        progress = dict(state["progress"])
        position = Position(**progress.pop("position"))
        return Progress(position=position, **progress)

    def _check(self, saved: dict[str, object], latest: Path) -> None:
        for key, value in self._data.items():
            if saved[key] == value:
                continue
            if key == "index":
                raise ValueError(
                    f"{latest} was trained on other shards: the index has changed since. Restore "
                    "the shards, or train into another `output`"
                )
            raise ValueError(
                f"{latest} was trained with {key}={saved[key]}, now it is {value}; the batches "
                f"would not be the same. Set {key}={saved[key]}, or train into another `output`"
            )
