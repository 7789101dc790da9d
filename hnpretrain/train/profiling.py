"""A trace of some steps by torch.profiler, where one is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import profiler

FOLDER_NAME = "profile"


@dataclass
class ProfileSettings:
    """Section `profile:` of a training config.

    Attributes:
        steps: how many steps are traced; 0 traces none.
        first: the first of them, as log lines count: the run's first step is 1. It is from 2 on,
            since the profiler starts in the step before; a run that goes on after that one traces
            nothing.
        rank: the process that is traced.
    """

    steps: int = 0
    first: int = 10
    rank: int = 0

    def __post_init__(self) -> None:
        for name, least in (("steps", 0), ("first", 2), ("rank", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"profile.{name}={getattr(self, name)} must be at least {least}")


def require_rank(settings: ProfileSettings, ranks: int) -> None:
    """Raises ValueError if there is no such process to trace."""
    if settings.steps and settings.rank >= ranks:
        raise ValueError(
            f"profile.rank={settings.rank} is none of the {ranks} processes: set 0 to {ranks - 1}"
        )


class StepProfiler:
    """Traces the steps that the settings name, on the rank that they name.

    The trace is a Chrome trace, which https://ui.perfetto.dev opens, in the folder `profile` of the
    run's; it appears when its last step is done.

    Args:
        settings: section `profile:`.
        run: the run's folder.
        rank: of this process.
    """

    def __init__(self, settings: ProfileSettings, run: Path, rank: int) -> None:
        last = settings.first + settings.steps - 1
        self._path = run / FOLDER_NAME / f"steps_{settings.first}-{last}_rank_{rank}.json.gz"
        self._settings = settings
        self._is_wanted = settings.steps > 0 and rank == settings.rank
        self._profiler: profiler.profile | None = None

    def close(self) -> None:
        """Writes what there is of a trace that is not done."""
        if self._profiler:
            self._stop()

    def before_step(self, step: int) -> None:
        """To be called before each step is taken, its batch read included.

        Args:
            step: its number, from 1.
        """
        if not self._is_wanted:
            return
        if step == self._settings.first - 1:
            self._profiler = self._make()
            self._profiler.start()
        elif self._profiler:
            self._profiler.step()
            if step == self._settings.first + self._settings.steps:
                self._stop()

    def _make(self) -> profiler.profile:
        activities = [profiler.ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(profiler.ProfilerActivity.CUDA)
        active = self._settings.steps
        return profiler.profile(
            activities=activities,
            schedule=profiler.schedule(wait=0, warmup=1, active=active, repeat=1),
            on_trace_ready=self._write,
            record_shapes=True,
            acc_events=True,  # of the one trace; else it warns that it would forget them
        )

    def _write(self, trace: Any) -> None:
        temporary = self._path.with_name(f".{self._path.name}")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            trace.export_chrome_trace(str(temporary))
            temporary.replace(self._path)
        except (OSError, RuntimeError) as error:  # a trace is not worth a training
            print(f"profile: {self._path} could not be written: {error}", flush=True)
            return
        print(f"profile: {self._path}; https://ui.perfetto.dev opens it", flush=True)

    def _stop(self) -> None:
        assert self._profiler is not None
        self._profiler.stop()
        self._profiler = None
