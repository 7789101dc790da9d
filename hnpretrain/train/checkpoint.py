"""Checkpoints: what a run needs to go on from (epoch, step), and which of them is the latest.

A checkpoint is a folder `checkpoints/step_N` with DeepSpeed's files (weights, optimizer), the
model's open_clip config, the run's `config.yaml`, and `state.json`: the position in the data, and
what must not change. Where DeepSpeed's files hold the weights in one part a rank (ZeRO stage 3),
they lie beside them whole too, so that the checkpoint can be used as a model; and so do the
averages of the weights, if the run keeps them (`ema`). `checkpoints/latest` names the newest one
and is moved only when all ranks are done and all files are on the disk, so that a half-written one
is never found.

DeepSpeed's files fit the ZeRO stage that wrote them, and but for stage 0 the number of ranks; for
others, `hnpretrain checkpoint convert` puts the state in one piece beside them (whole.py).

Random states are not saved: every step seeds its draws from (seed, step, rank).
"""

from __future__ import annotations

import contextlib
import json
import math
import pickle
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from hnpretrain.data.ledger import Ledger
from hnpretrain.data.loader import Position
from hnpretrain.models import LoadedModel
from hnpretrain.models.build import one_line
from hnpretrain.models.store import EMA_NAME, write_config, write_weights
from hnpretrain.runs import LATEST_NAME, latest_checkpoint
from hnpretrain.shards import storage
from hnpretrain.train.distributed import Place, is_of_group, on_main, whole_tensors
from hnpretrain.train.durable import WRITE_ERRORS, durable_writes, sync
from hnpretrain.train.ema import WeightAverage
from hnpretrain.train.finite import LossScale, Skips, restored
from hnpretrain.train.optimizer import trained_names
from hnpretrain.train.whole import WHOLE_NAME, load_whole

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

STATE_NAME = "state.json"
RUN_CONFIG_NAME = "config.yaml"
_NAME = re.compile(r"step_\d+")
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
    SafetensorError,
    ValueError,
    pickle.UnpicklingError,
)


@dataclass
class CheckpointSettings:
    """Section `checkpoint:` of a training config.

    Attributes:
        every: steps between checkpoints; the run's end always has one.
        minutes: by the main rank's clock, since the last checkpoint, after which there is one too;
            0 leaves it to `every`.
        keep: how many are kept.
    """

    every: int = 500
    minutes: float = 0.0
    keep: int = 2

    def __post_init__(self) -> None:
        if self.every < 1 or self.keep < 1:
            raise ValueError(
                f"checkpoint.every={self.every} and checkpoint.keep={self.keep} must be at least 1"
            )
        if not 0 <= self.minutes < math.inf:  # also refuses NaN
            raise ValueError(f"checkpoint.minutes={self.minutes} must be a number from 0 up")


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes:
        position: the next step to take.
        global_step: optimizer steps taken so far.
        ledger: what became of the samples so far, over all ranks.
        loss_scale: of the next step.
        skips: the steps so far that were not finite; they count as steps too.
    """

    position: Position = field(default_factory=Position)
    global_step: int = 0
    ledger: Ledger = field(default_factory=Ledger)
    loss_scale: LossScale = field(default_factory=LossScale)
    skips: Skips = field(default_factory=Skips)

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Progress:
        """From what `asdict` made, by way of JSON."""
        loss_scale, skips = restored(fields)
        position, ledger = Position(**fields["position"]), Ledger(**fields["ledger"])
        return cls(position, fields["global_step"], ledger, loss_scale, skips)


@dataclass(frozen=True)
class Trained:
    """What a checkpoint is made of, on this rank.

    Attributes:
        engine: with the weights and the optimizer.
        model: the engine's model.
        loss: what it remembers is equal on all ranks.
        average: of the weights, if the run keeps it.
    """

    engine: DeepSpeedEngine
    model: LoadedModel
    loss: nn.Module
    average: WeightAverage | None


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


def fits_parts(checkpoint: Path, zero_stage: int, ranks: int) -> bool:
    """Whether a checkpoint's parts are those of such a run; else its whole state is to be loaded.

    Raises:
        ValueError: they are not, and there is no whole state; or it cannot be read.
    """
    with readable(checkpoint):
        state = json.loads((checkpoint / STATE_NAME).read_text())
        stage, written = state["zero_stage"], state["ranks"]
    fits = stage == zero_stage and (stage == 0 or ranks == written)
    if not fits and not (checkpoint / WHOLE_NAME).is_file():
        raise ValueError(
            f"{checkpoint} was saved at zero_stage={stage} by {written} processes, now it is "
            f"zero_stage={zero_stage} and {ranks}: run `hnpretrain checkpoint convert "
            f"{checkpoint.parent.parent}`, and then go on"
        )
    return bool(fits)


@contextlib.contextmanager
def readable(checkpoint: Path) -> Iterator[None]:
    """Inside, what cannot be read of a checkpoint is a ValueError that says what to do."""
    try:
        yield
    except _UNREADABLE as error:
        if isinstance(error, torch.OutOfMemoryError) or is_of_group(error):
            raise  # of this moment, not of the files
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
            decides its batches, its model and its loss. JSON values.
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

    def save(self, trained: Trained, progress: Progress) -> None:
        """Saves on all ranks together; collective.

        Raises:
            OSError: a file could not be written, on any rank: all ranks raise it, what was written
                of the checkpoint is removed, and the one before stays the latest.
        """
        engine, model = trained.engine, trained.model
        tag = f"step_{progress.global_step:08d}"
        folder = self._folder / tag
        on_main(lambda: self._make_room(folder))
        with durable_writes(engine) as errors:
            engine.save_checkpoint(str(self._folder), tag=tag, save_latest=False)
        weights = averages = None
        if engine.zero_optimization_stage() == 3:
            # One at a time, so that no device holds them all.
            weights = self._on_main_cpu(whole_tensors(model.model))
        if trained.average:
            averages = self._on_main_cpu(trained.average.whole())

        def finish() -> None:
            if weights is not None:
                write_weights(weights, folder)
            if averages is not None:
                state = weights if weights is not None else model.model.state_dict()
                write_weights({**state, **averages}, folder, EMA_NAME)
            write_config(model, folder)
            storage.write_bytes(str(folder / RUN_CONFIG_NAME), self._config.encode())
            loss_state = trained.loss.state_dict()
            state = {
                "progress": asdict(progress),
                "identity": self._identity,
                "zero_stage": engine.zero_optimization_stage(),
                "ranks": self._place.world_size,
                "parameters": trained_names(model.model),
                "loss": {name: value.tolist() for name, value in loss_state.items()},
            }
            for path in folder.iterdir():
                sync(path)
            storage.write_bytes(str(folder / STATE_NAME), json.dumps(state).encode())
            sync(folder)
            storage.write_bytes(str(self._folder / LATEST_NAME), tag.encode())
            sync(self._folder)

        self._all_raise(errors, tag)
        try:
            on_main(lambda: _as_os_error(finish))
        except OSError as error:
            self._all_raise([error], tag)
        on_main(lambda: self._remove_old(folder))

    def _all_raise(self, errors: list[Exception], tag: str) -> None:
        """Raises OSError on all ranks if any met an error; collective."""
        mine = one_line(errors[0]) if errors else None
        found: list[str | None] = [None] * self._place.world_size
        dist.all_gather_object(found, mine)
        rank, error = next(((r, x) for r, x in enumerate(found) if x), (0, None))
        if error is None:
            return
        on_main(lambda: self._try_to_remove([self._folder / tag]))
        raise OSError(f"checkpoint {self._folder / tag} could not be saved (rank {rank}): {error}")

    def _make_room(self, folder: Path) -> None:
        """Removes what there is under a new checkpoint's name, and half-written ones.

        Before the new one is written, since the disk may be full of the others.
        """
        self._try_to_remove(
            path for path in self._saved() if path != folder and not (path / STATE_NAME).is_file()
        )
        self._remove(folder)

    def _remove_old(self, newest: Path) -> None:
        """Leaves the newest checkpoint, and of those before it as many as are to be kept.

        Later ones are of a run that was set back to an earlier step, and goes there again.
        """
        complete = [path for path in self._saved() if (path / STATE_NAME).is_file()]
        before = [path for path in complete if _step_of(path) <= _step_of(newest)]
        kept = before[-self._settings.keep :]
        self._try_to_remove(path for path in complete if path not in kept)

    def _saved(self) -> list[Path]:
        """The folders that bear a checkpoint's name, by step."""
        named = (path for path in self._folder.glob("step_*") if _NAME.fullmatch(path.name))
        return sorted(named, key=_step_of)

    def _try_to_remove(self, folders: Iterable[Path]) -> None:
        """What cannot be removed is told; the next save tries again."""
        for folder in folders:
            try:
                self._remove(folder)
            except OSError as error:
                print(f"{folder} could not be removed ({error}); the next save tries again")

    def _remove(self, folder: Path) -> None:
        """Removes a checkpoint, or what there is of it, unless it is the latest.

        Raises:
            OSError: something of it cannot be removed; the rest is.
        """
        if folder == latest_checkpoint(self._folder.parent) or not folder.exists():
            return
        # First, so that a kill leaves none that looks complete.
        (folder / STATE_NAME).unlink(missing_ok=True)
        errors: list[BaseException] = []
        shutil.rmtree(folder, onerror=lambda _, __, found: errors.append(found[1]))
        if errors:
            raise errors[0]

    def _on_main_cpu(
        self, tensors: Iterator[tuple[str, torch.Tensor]]
    ) -> dict[str, torch.Tensor] | None:
        """Them on the main rank; the others take part in making them."""
        kept = {}
        for name, tensor in tensors:
            if self._place.is_main:
                kept[name] = tensor.detach().to("cpu", copy=True)
        return kept if self._place.is_main else None

    def restore(self, trained: Trained, latest: Path | None) -> Progress | None:
        """Loads a checkpoint, on all ranks; None if there is none.

        Raises:
            ValueError: the run cannot go on from it: something in `identity` has changed, its files
                are those of another ZeRO stage or number of ranks, or cannot be read.
        """
        if latest is None:
            return None
        engine, loss = trained.engine, trained.loss
        with readable(latest):
            state = json.loads((latest / STATE_NAME).read_text())
            identity, remembered = state["identity"], state["loss"]
            progress = Progress.from_json(state["progress"])
        self._check(identity, latest)
        fits = fits_parts(latest, engine.zero_optimization_stage(), self._place.world_size)
        with readable(latest):
            if fits:
                path, _ = engine.load_checkpoint(str(self._folder), tag=latest.name)
                if path is None:
                    raise ValueError("DeepSpeed finds no checkpoint there")
            else:
                load_whole(engine, trained.model.model, latest / WHOLE_NAME)
            loss.load_state_dict(
                {name: torch.as_tensor(value) for name, value in remembered.items()}
            )
        if trained.average:
            self._restore_average(trained, latest)
        return progress

    def _restore_average(self, trained: Trained, latest: Path) -> None:
        assert trained.average is not None
        if (latest / EMA_NAME).is_file():
            with readable(latest):
                trained.average.load(load_file(latest / EMA_NAME))
        else:  # it begins here, since `ema` has been switched on
            trained.average.begin()

    def _check(self, saved: dict[str, Any], latest: Path) -> None:
        for key, value in self._identity.items():
            if key in saved and saved[key] == value:
                continue
            if key in ("data.shards", "model"):
                of_data = "the shards' index has changed since, or weights of data.mixture have"
                what = of_data if key == "data.shards" else "the model has changed since"
                raise ValueError(
                    f"{latest} cannot be continued: {what}. Restore it, or train into another "
                    "`output`"
                )
            before = saved.get(key)
            raise ValueError(
                f"{latest} was trained with {key}={before}, now it is {value}. Set it to {before} "
                "again, or train into another `output`"
            )


def _step_of(folder: Path) -> int:
    return int(folder.name.removeprefix("step_"))


def _as_os_error(write: Callable[[], None]) -> None:
    """Writes; whatever stands in the way is an OSError."""
    try:
        write()
    except WRITE_ERRORS as error:
        raise OSError(one_line(error)) from error
