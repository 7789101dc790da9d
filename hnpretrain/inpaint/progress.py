"""How far `generate` is: a line on the screen every few seconds."""

from __future__ import annotations

import time
from datetime import timedelta

from rich.console import Console

from hnpretrain.inpaint.generate import GenerateState
from shard_tools.progress import Rate

# A long job's log should stay short.
_SECONDS_BETWEEN_LINES = 5.0
_SECONDS_BETWEEN_LATER_LINES = 60.0
_EARLY_SECONDS = 600.0


class GenerateProgress:
    """Prints the states that `generate` reports."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._rate = Rate()
        self._started = self._last_line = time.monotonic()
        self._stopping = self._ended = False

    def __call__(self, state: GenerateState) -> None:
        now = time.monotonic()
        done = state.done
        self._rate.add(now, done)
        if state.stopping and not self._stopping:
            self._stopping = True
            self._print("stopping after the pictures at hand; Ctrl-C again stops at once")
        early = now - self._started < _EARLY_SECONDS
        between = _SECONDS_BETWEEN_LINES if early else _SECONDS_BETWEEN_LATER_LINES
        ends = done == state.to_do and not self._ended
        if not ends and now - self._last_line < between:
            return
        self._ended = self._ended or ends
        self._last_line = now
        pace = self._rate.per_second()
        left = self._rate.seconds_for(state.to_do - done)
        self._print(
            f"pictures {done:,}/{state.to_do:,}"
            + (f" | {1 / pace:.2f} s each" if pace else "")
            + (f", {state.kept:,} from before" if state.kept else "")
            + (f", {state.not_made:,} not made" if state.not_made else "")
            + (f", {state.rechecked:,} checked anew" if state.rechecked else "")
            + (f", {timedelta(seconds=round(left))} to go" if left else "")
        )

    def _print(self, line: str) -> None:
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)
