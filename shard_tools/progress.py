"""How far the job is, on the screen: one bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections import deque
from datetime import timedelta
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from shard_tools.counting import CountState
from shard_tools.job import JobState
from shard_tools.prepare import WaitState

# A long job's log should stay short.
_SECONDS_BETWEEN_LINES = 10.0
_SECONDS_BETWEEN_LATER_LINES = 60.0
_EARLY_SECONDS = 600.0
# Rates are those of the last minute: long enough that a batch does not show, short enough that a
# change does.
_RATE_SECONDS = 60.0
_SECONDS_BETWEEN_POINTS = 1.0


class Rate:
    """How fast a count grows, over the last _RATE_SECONDS."""

    def __init__(self) -> None:
        self._points: deque[tuple[float, int]] = deque()

    def add(self, now: float, count: int) -> None:
        """Takes note of a count; time in seconds."""
        points = self._points
        if len(points) > 1 and now - points[-2][0] < _SECONDS_BETWEEN_POINTS:
            points.pop()
        points.append((now, count))
        while len(points) > 2 and now - points[1][0] > _RATE_SECONDS:
            points.popleft()

    def per_second(self) -> float:
        """0 while nothing is known."""
        if len(self._points) < 2:
            return 0.0
        (start, before), (end, after) = self._points[0], self._points[-1]
        return (after - before) / (end - start) if end > start else 0.0

    def seconds_for(self, count: int) -> float | None:
        """How long that much more takes at this rate; None while nothing is known."""
        rate = self.per_second()
        return count / rate if rate > 0 else None


class JobProgress:
    """Shows the states that `build` and `count` report; a context manager.

    The share that is done is one of samples where the source knows how many it has, else one of the
    bytes of its tars.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[text]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._started = self._last_line = 0.0
        self._ended = self._stopping = False
        self._task = self._bar.add_task("starting", total=None, text="")
        self._counted, self._captions, self._work = Rate(), Rate(), Rate()

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

    def __call__(self, state: JobState | CountState | WaitState) -> None:
        now = time.monotonic()
        if not self._started:
            self._started = self._last_line = now
        if state.stopping and not self._stopping:
            self._stopping = True
            self._console.print(
                "stopping after the samples at hand; Ctrl-C again stops at once", highlight=False
            )
        if isinstance(state, WaitState):
            self._show("waiting", None, None, f"for {state.owner}, which works for all parts", now)
        elif isinstance(state, CountState):
            self._show_counting(state, now)
        else:
            self._show_building(state, now)

    def _show_counting(self, state: CountState, now: float) -> None:
        self._counted.add(now, state.captions)
        left = max(0, state.wanted - state.captions)
        text = (
            f"{state.captions:,} of {state.wanted:,} captions at "
            f"{self._counted.per_second():,.0f}/s{_eta(self._counted.seconds_for(left))}"
        )
        self._show("counting words", state.captions, state.wanted, text, now)

    def _show_building(self, state: JobState, now: float) -> None:
        self._captions.add(now, state.captions)
        self._work.add(now, state.work)
        share = state.captions_with_negatives / max(state.captions, 1)
        finished = state.shards_kept + state.shards_built
        done = state.work / max(state.work_to_do, 1)
        text = (
            f"{state.samples:,} samples, {state.captions:,} captions at "
            f"{self._captions.per_second():,.0f}/s, {share:.0%} with negatives, "
            f"{state.rejects:,} rejects, {done:.0%} done"
            f"{_eta(self._work.seconds_for(state.work_to_do - state.work))}"
        )
        ends = finished == state.shards and not self._ended
        self._ended = self._ended or ends
        what = f"shards {finished}/{state.shards}"
        self._show(what, state.work, state.work_to_do, text, now, ends)

    def _show(
        self,
        what: str,
        done: int | None,
        total: int | None,
        text: str,
        now: float,
        at_once: bool = False,
    ) -> None:
        if self._console.is_terminal:
            self._bar.update(
                self._task, description=what, completed=done or 0, total=total, text=text
            )
            return
        early = now - self._started < _EARLY_SECONDS
        between = _SECONDS_BETWEEN_LINES if early else _SECONDS_BETWEEN_LATER_LINES
        if at_once or now - self._last_line >= between:
            self._last_line = now
            self._console.print(f"{what} | {text}", highlight=False, markup=False, soft_wrap=True)


def _eta(seconds: float | None) -> str:
    return "" if not seconds else f", {timedelta(seconds=round(seconds))} to go"
