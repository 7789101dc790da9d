"""How far the job is, on the screen: one bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from shard_tools.job import JobState

_SECONDS_BETWEEN_LINES = 10.0


class JobProgress:
    """Shows the states that `build` reports; a context manager.

    The bar counts samples where the source knows how many it has, else shards.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[text]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._started = self._last_line = 0.0
        self._ended = self._stopping = False
        self._task = self._bar.add_task("building", total=None, text="")

    def __enter__(self) -> JobProgress:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def __call__(self, state: JobState) -> None:
        now = time.monotonic()
        if not self._started:
            self._started = self._last_line = now
        if state.stopping and not self._stopping:
            self._stopping = True
            self._console.print(
                "stopping after the samples at hand; Ctrl-C again stops at once", highlight=False
            )
        text = _describe(state, now - self._started)
        if self._console.is_terminal:
            if state.samples_to_do is None:
                unit, done, total = "shards", state.shards_built, state.shards - state.shards_kept
            else:
                unit, done, total = "samples", state.samples + state.rejects, state.samples_to_do
            self._bar.update(self._task, description=unit, completed=done, total=total, text=text)
            return
        finished = state.shards_kept + state.shards_built
        ends = finished == state.shards and not self._ended
        if ends or now - self._last_line >= _SECONDS_BETWEEN_LINES:
            self._last_line, self._ended = now, ends
            self._console.print(f"shards {finished}/{state.shards} | {text}", highlight=False)


def _describe(state: JobState, seconds: float) -> str:
    rate = state.captions / max(seconds, 1e-9)
    share = state.captions_with_negatives / max(state.captions, 1)
    return (
        f"{state.samples} samples, {state.captions} captions at {rate:.0f}/s, "
        f"{share:.0%} with negatives, {state.rejects} rejects"
    )
