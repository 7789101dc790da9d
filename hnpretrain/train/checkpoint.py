"""Checkpoints: what a run needs to go on from (epoch, step), and which of them is the latest.

A checkpoint is a folder `checkpoints/step_N` with DeepSpeed's files (weights, optimizer), the
model's open_clip config, the run's `config.yaml`, and `state.json`: the position in the data, and
what must not change. Where DeepSpeed's files hold the weights in one part a rank (ZeRO stage 3),
they lie beside them whole too, so that the checkpoint can be used as a model.
`checkpoints/latest` names the newest one and is moved only when all ranks are done, so that a
half-written one is never found.

Random states are not saved: every step seeds its draws from (seed, step, rank).
"""

from __future__ import annotations

import contextlib
import json
import pickle
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import nn

from hnpretrain.data.loader import Position
from hnpretrain.models import LoadedModel
from hnpretrain.models.build import one_line
from hnpretrain.models.store import LATEST_NAME, latest_checkpoint, write_config, write_weights
from hnpretrain.shards import storage
from hnpretrain.train.distributed import Place, on_main

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

STATE_NAME = "state.json"
RUN_CONFIG_NAME = "config.yaml"
# What torch and DeepSpeed raise for files that are cut, damaged or missing.
_UNREADABLE = (
    AssertionError,
    AttributeError,
    EOFError,
    FileNotFoundError,
    IndexError,
    KeyError,
    RuntimeError,
    TypeError,
    ValueError,
    pickle.UnpicklingError,
)


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


def find_latest(run: Path) -> Path | None:
    """The run's newest complete checkpoint, or None; collective.

    The main rank's word counts: a stale view of a shared folder must not split the ranks.
    """
    return on_main(lambda: latest_checkpoint(run))


def ranks_of(checkpoint: Path) -> int:
    """The number of processes that wrote a checkpoint.

    Raises:
        ValueError: it cannot be read.
    """
    with readable(checkpoint):
        return int(json.loads((checkpoint / STATE_NAME).read_text())["ranks"])


@contextlib.contextmanager
def readable(checkpoint: Path) -> Iterator[None]:
    """Inside, what cannot be read of a checkpoint is a ValueError that says what to do."""
    try:
        yield
    except (torch.OutOfMemoryError, dist.DistBackendError):
        raise  # of this moment, not of the files
    except _UNREADABLE as error:
        folder = checkpoint.parent
        others = {path.parent for path in folder.glob(f"step_*/{STATE_NAME}")} - {checkpoint}
        names = ", ".join(sorted(path.name for path in others))
        another = f"Write the name of another one ({names}) into {folder / LATEST_NAME}, or train"
        raise ValueError(
            f"checkpoint {checkpoint} cannot be read: {one_line(error)}. "
            f"{another if names else 'Train'} into another `output`"
        ) from error


class Checkpoints:
    """The checkpoints of one run.

    Args:
        run: the run's folder, on a file system that all ranks see.
        settings: section `checkpoint:`.
        identity: what must be equal, by the name of its setting, for a run to go on: all that
            decides its batches, its model and its loss, and the form of DeepSpeed's files. JSON
            values.
        config: all settings of the run, as YAML, to be kept with each checkpoint.
        place: this process.
    """

    def __init__(
        self,
        run: Path,
        settings: CheckpointSettings,
        identity: dict[str, Any],
        config: str,
        place: Place,
    ) -> None:
        self._folder = run / "checkpoints"
        self._settings = settings
        self._identity = identity
        self._config = config
        self._place = place

    def save(
        self, engine: DeepSpeedEngine, model: LoadedModel, loss: nn.Module, progress: Progress
    ) -> None:
        """Saves on all ranks together; collective. What the loss remembers is equal on all."""
        tag = f"step_{progress.global_step:08d}"
        engine.save_checkpoint(str(self._folder), tag=tag, save_latest=False)
        weights = None
        if engine.zero_optimization_stage() == 3:
            weights = _whole_weights(model.model, self._place)
        dist.barrier()
        if self._place.is_main:
            if weights is not None:
                write_weights(weights, self._folder / tag)
            write_config(model, self._folder / tag)
            storage.write_bytes(str(self._folder / tag / RUN_CONFIG_NAME), self._config.encode())
            remembered = {name: value.tolist() for name, value in loss.state_dict().items()}
            state = {
                "progress": asdict(progress),
                "identity": self._identity,
                "ranks": self._place.world_size,
                "loss": remembered,
            }
            storage.write_bytes(str(self._folder / tag / STATE_NAME), json.dumps(state).encode())
            storage.write_bytes(str(self._folder / LATEST_NAME), tag.encode())
            complete = sorted(path.parent for path in self._folder.glob(f"step_*/{STATE_NAME}"))
            for old in complete[: -self._settings.keep]:
                if old.name != tag:  # what a killed run left may have a higher number
                    shutil.rmtree(old)
        dist.barrier()

    def restore(self, engine: DeepSpeedEngine, loss: nn.Module, latest: Path | None) -> Progress:
        """Loads a checkpoint into engine and loss, on all ranks; the start if there is none.

        Raises:
            ValueError: the run cannot go on from it: something in `identity` has changed, or its
                files cannot be read.
        """
        if latest is None:
            return Progress()
        with readable(latest):
            state = json.loads((latest / STATE_NAME).read_text())
            identity, fields = state["identity"], state["progress"]
            remembered = state.get("loss", {})
            progress = Progress(position=Position(**fields.pop("position")), **fields)
        self._check(identity, latest)
        with readable(latest):
            path, _ = engine.load_checkpoint(str(self._folder), tag=latest.name)
            if path is None:
                raise ValueError("DeepSpeed finds no checkpoint there")
            loss.load_state_dict(
                {name: torch.as_tensor(value) for name, value in remembered.items()}
            )
        return progress

    def _check(self, saved: dict[str, Any], latest: Path) -> None:
        for key, value in self._identity.items():
            if key in saved and saved[key] == value:
                continue
            if key in ("data.shards", "model"):
                what = "the shards' index has" if key == "data.shards" else "the model has"
                raise ValueError(
                    f"{latest} cannot be continued: {what} changed since. Restore it, or train "
                    "into another `output`"
                )
            before = saved.get(key)
            raise ValueError(
                f"{latest} was trained with {key}={before}, now it is {value}. Set it to {before} "
                "again, or train into another `output`"
            )


def _whole_weights(model: nn.Module, place: Place) -> dict[str, torch.Tensor]:
    """The state dict of a model that ZeRO stage 3 has cut, on the main rank's CPU; collective.

    One tensor at a time, so that no device holds them all.
    """
    import deepspeed

    whole = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        # Small weights are whole on every rank, and must be left so: DeepSpeed cuts what it has
        # gathered here, and then stops at steps that do not run as those that it has recorded.
        is_cut = tensor.numel() == 0
        with deepspeed.zero.GatheredParameters([tensor], enabled=is_cut):
            if place.is_main:
                whole[name] = tensor.detach().to("cpu", copy=True)
    return whole
