"""Stopping on a signal: a flag that the ranks look at together, at a step's edge.

Schedulers announce the end of a job with SIGTERM, SIGUSR1 or SIGUSR2. A rank that saved on its own
would wait for ever, since saving takes all of them. So the signal sets a flag; the ranks tell each
other their flags with each step (edge.py), save together, and end with a status of their own.
"""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any

from hnpretrain.data.workers import SIGNALS

# EX_TEMPFAIL of sysexits.h: the run is saved and not done; the same command goes on.
EXIT_STATUS = 75
# A scheduler may send a signal to the launcher and to the ranks, which then get it twice.
_ONE_SIGNAL = 5.0  # seconds

_asked_at = -math.inf  # by time.monotonic()


class Stopped(SystemExit):
    """A run that was asked to stop, and saved; ends the process with EXIT_STATUS."""

    def __init__(self) -> None:
        super().__init__(EXIT_STATUS)


def stay() -> None:
    """From now on no signal ends this process, which has saved and ends with its own status.

    Launchers end the other ranks as soon as one has left.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def was_asked(seconds: float) -> bool:
    """Whether this process was asked to stop in the last `seconds`, be it that nobody listens now.

    A launcher asks so once, as soon as one rank has failed: mostly this one fails of that, too, but
    the signal may come first.
    """
    return time.monotonic() - _asked_at < seconds


class StopRequest:
    """Whether a signal has asked this process to stop; listens inside its `with` block.

    The first signal is noted. The same one again, more than five seconds later, ends the process at
    once, as if nobody listened. Another one does not: schedulers send SIGUSR1 ahead and SIGTERM at
    the end, which may meet the run while it saves.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._since: dict[int, float] = {}
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():  # others cannot listen
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        del kind, error, traceback
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self.signal is None:
            self.signal = signal.Signals(number)
        global _asked_at
        _asked_at = now = time.monotonic()
        if now - self._since.setdefault(number, now) > _ONE_SIGNAL:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
