"""TensorBoard and Weights & Biases: what log.jsonl holds, as curves.

Both get the log's numbers under the step that they belong to. A run that goes on from a checkpoint
takes steps again that it had told before it was killed: TensorBoard drops the old points of these
steps; Weights & Biases, which forgets nothing, is not told them twice. What it lacks of the steps
before (a kill loses what its helper process held, and offline it knows of no other process) it gets
from the log.
"""

from __future__ import annotations

import importlib.util
import json
import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from hnpretrain.config import without_secrets
from hnpretrain.models.build import one_line
from hnpretrain.shards import storage

TENSORBOARD_FOLDER = "tensorboard"
WANDB_NAME = "wandb.json"


@dataclass
class LogSettings:
    """Section `log:` of a training config.

    Attributes:
        tensorboard: write TensorBoard's files, too, into the folder `tensorboard` of the run's.
        wandb: the Weights & Biases project to log to, too; empty for none. Its own environment
            variables (WANDB_MODE=offline, WANDB_ENTITY, ...) say the rest.
        peak_tflops: what this device computes at most, for MFU; 0 takes what is known of it.
    """

    tensorboard: bool = False
    wandb: str = ""
    peak_tflops: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.peak_tflops < float("inf"):
            raise ValueError(f"log.peak_tflops={self.peak_tflops} must be a number from 0 up")


def require_packages(settings: LogSettings) -> None:
    """Raises ValueError if a package is missing that the settings need."""
    wanted = {"tensorboard": settings.tensorboard, "wandb": bool(settings.wandb)}
    for name, is_wanted in wanted.items():
        if is_wanted and importlib.util.find_spec(name) is None:
            raise ValueError(
                f"log.{name}={getattr(settings, name)} needs the package {name}: "
                f"pip install 'hnpretrain[{name}]'"
            )


Point = tuple[int, Mapping[str, float]]
"""A step and its numbers by name."""


class Tracker(Protocol):
    """Where numbers go beside log.jsonl; on the main rank alone."""

    def restore(self, points: Iterable[Point]) -> None:
        """Is called first, with what the log holds of a run that goes on."""
        ...

    def add(self, step: int, numbers: Mapping[str, float]) -> None:
        """Tells numbers of a step; steps never go back."""
        ...

    def close(self) -> None: ...


def open_trackers(
    settings: LogSettings, run: Path, global_step: int, config: Mapping[str, Any]
) -> list[Tracker]:
    """What the settings ask for.

    None of them ends a training that has begun: one that fails later, or cannot go on where the run
    goes on, says so once and is left out.

    Args:
        run: the run's folder.
        global_step: where the run goes on.
        config: all its settings, to be shown beside the curves.

    Raises:
        ValueError: a package is missing, or Weights & Biases cannot begin.
        OSError: TensorBoard's folder cannot be written.
    """
    require_packages(settings)
    trackers: list[Tracker] = []
    if settings.tensorboard:
        folder = run / TENSORBOARD_FOLDER
        trackers += _opened(
            "TensorBoard", lambda: _TensorBoard(folder, global_step), has_begun=folder.exists()
        )
    if settings.wandb:
        trackers += _opened(
            "Weights & Biases",
            lambda: _Wandb(settings.wandb, run, config),
            has_begun=(run / WANDB_NAME).is_file(),
        )
    return trackers


def _opened(name: str, make: Callable[[], Tracker], has_begun: bool) -> list[Tracker]:
    """The tracker, or none if it has begun in a run before and fails now."""
    try:
        return [_Bounded(name, make())]
    except Exception as error:  # whatever such a library may raise
        if not has_begun:
            raise
        print(f"{name} cannot go on, and is told nothing: {one_line(error)}", flush=True)
        return []


class _Bounded:
    """A tracker whose failure is its own: it is told to people once, and the tracker no more.

    The training goes on, and log.jsonl has it all.
    """

    def __init__(self, name: str, tracker: Tracker) -> None:
        self._name = name
        self._tracker: Tracker | None = tracker

    def restore(self, points: Iterable[Point]) -> None:
        self._let(lambda tracker: tracker.restore(points))

    def add(self, step: int, numbers: Mapping[str, float]) -> None:
        self._let(lambda tracker: tracker.add(step, numbers))

    def close(self) -> None:
        self._let(lambda tracker: tracker.close())

    def _let(self, act: Callable[[Tracker], None]) -> None:
        if self._tracker is None:
            return
        try:
            act(self._tracker)
        except Exception as error:  # whatever such a library may raise
            self._tracker = None
            print(f"{self._name} has failed, and is told no more: {one_line(error)}", flush=True)


class _TensorBoard:
    """Event files; readers drop what older files hold of steps after `global_step`."""

    def __init__(self, folder: Path, global_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._is_new = not folder.exists()
        self._writer = SummaryWriter(str(folder), purge_step=global_step + 1)

    def restore(self, points: Iterable[Point]) -> None:
        if self._is_new:  # else its files hold them
            for step, numbers in points:
                self._write(step, numbers)

    def add(self, step: int, numbers: Mapping[str, float]) -> None:
        self._write(step, numbers)
        self._writer.flush()  # what a kill loses of steps before a checkpoint never comes again

    def _write(self, step: int, numbers: Mapping[str, float]) -> None:
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class _Wandb:
    """One run of Weights & Biases, though it may take several processes."""

    def __init__(self, project: str, run: Path, config: Mapping[str, Any]) -> None:
        import wandb

        path = run / WANDB_NAME
        identity = json.loads(path.read_bytes()) if path.is_file() else {"id": secrets.token_hex(8)}
        try:
            self._run = wandb.init(
                project=project,
                id=identity["id"],
                name=run.name,
                dir=str(run),
                resume="allow",
                config=without_secrets(config),
                # Its records of the machine, the command line, the code and the console could hold
                # what is nobody's business; what a training tells is in its log.
                settings=wandb.Settings(
                    console="off", disable_code=True, disable_git=True, x_disable_meta=True
                ),
            )
        except Exception as error:  # its own, and those of what it stands on
            raise ValueError(
                f"log.wandb={project}: Weights & Biases cannot begin: {one_line(error)}. Log in "
                "(`wandb login`), set WANDB_MODE=offline, or unset log.wandb"
            ) from error
        storage.write_bytes(str(path), json.dumps(identity).encode())  # it has begun
        self._next = self._run.step  # after what its server has

    def restore(self, points: Iterable[Point]) -> None:
        for step, numbers in points:
            self.add(step, numbers)

    def add(self, step: int, numbers: Mapping[str, float]) -> None:
        if step >= self._next:
            self._run.log(dict(numbers), step=step)

    def close(self) -> None:
        self._run.finish()
