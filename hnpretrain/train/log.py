"""The run's log: JSON lines in a file, one dense line on the console."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hnpretrain.config import without_secrets
from hnpretrain.runs import LOG_NAME
from hnpretrain.shards import storage
from hnpretrain.train.machine import in_words
from hnpretrain.train.trackers import Point, Tracker

# The events whose numbers trackers get, and under what name.
_TRACKED = {"step": "train", "evaluation": "evaluation"}


class RunLog:
    """Written by the main rank alone.

    Every line is a JSON object with `event` (`step`, `rejected`, `checkpoint`, ...) and
    `global_step`, the number of steps taken when it was written. Numbers that are not finite, which
    JSON does not know, are null; URLs are without their secrets. What cannot be written, on a full
    disk, is kept and tried again with the next line.

    Args:
        run: the run's folder.
        global_step: where the run goes on; lines of later steps, which a killed run wrote after its
            last checkpoint, are dropped, since they are about to be written again.
        trackers: which get the numbers of steps and evaluations, too, first those that the log
            holds; they are closed with it.
    """

    def __init__(self, run: Path, global_step: int, trackers: Sequence[Tracker] = ()) -> None:
        self._run = run
        path = run / LOG_NAME
        kept = [
            line
            for line in (path.read_bytes().splitlines(keepends=True) if path.is_file() else [])
            if _is_before(line, global_step)
        ]
        storage.write_bytes(str(path), b"".join(kept))
        self._file = path.open("ab", buffering=0)
        self._pending = b""
        self._is_told = False
        self._trackers = trackers
        for tracker in trackers:
            tracker.restore(_points(kept))

    def write(self, event: str, global_step: int, **fields: Any) -> None:
        line = {"event": event, "global_step": global_step, **_known(without_secrets(fields))}
        self._append(json.dumps(line).encode() + b"\n")
        if event in _TRACKED:
            for tracker in self._trackers:
                tracker.add(global_step, _numbers(event, fields))

    def holds(self, event: str, global_step: int) -> bool:
        """Whether it tells of such an event after so many steps."""
        return any(line["global_step"] == global_step for line in read_log(self._run, event))

    def _append(self, data: bytes) -> None:
        self._pending += data
        try:
            while self._pending:
                self._pending = self._pending[self._file.write(self._pending) :]
        except OSError as error:
            if not self._is_told:
                self._is_told = True
                print(f"{LOG_NAME} cannot be written, and is tried again: {error}", flush=True)

    def close(self) -> None:
        self._append(b"")
        with contextlib.suppress(OSError):  # of what was told already
            self._file.close()
        for tracker in self._trackers:
            tracker.close()


def read_log(run: Path, event: str) -> list[dict[str, Any]]:
    """The log's lines of one event, in order."""
    lines = (json.loads(line) for line in (run / LOG_NAME).read_text("utf-8").splitlines())
    return [line for line in lines if line["event"] == event]


def console_line(
    step: int,
    total_steps: int,
    fields: Mapping[str, Any],
    terms: Collection[str],
    seconds_left: float,
) -> str:
    """One dense line of a step's fields.

    Args:
        terms: the names of those that are terms of the loss.
    """
    loss = f"loss {fields['loss']:.4f}"
    if len(terms) > 1:
        loss += " (" + " ".join(f"{name} {fields[name]:.4f}" for name in terms) + ")"
    parts = [f"step {step}/{total_steps}", f"epoch {fields['epoch']}", loss]
    if fields["skipped"]:
        parts.append(f"skipped {fields['skipped']}")
    if fields.get("negatives"):
        parts.append(
            f"neg margin {fields['negative_margin']:+.3f} acc {fields['negative_accuracy']:.3f}"
        )
    rate = fields["samples_per_second"]
    parts += [
        f"{rate:.0f} samples/s" if rate >= 10 else f"{rate:.2g} samples/s",
        f"{fields['step_seconds']:.3g} s/step",
        f"data wait {fields['data_wait']:.0%}",
    ]
    if "mfu" in fields:
        parts.append(f"MFU {fields['mfu']:.1%}")
    parts += [
        in_words(fields["memory"]),
        f"grad {fields['grad_norm']:.2f}",
        f"scale {fields['logit_scale']:.1f}",
        f"lr {fields['lr']:.2e}",
        f"ETA {duration(seconds_left)}",
    ]
    return " | ".join(parts)


def duration(seconds: float) -> str:
    """H:MM:SS."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"


def _points(lines: Iterable[bytes]) -> Iterator[Point]:
    """What trackers get of a log's lines."""
    for line in lines:
        fields = json.loads(line)
        event, step = fields.pop("event"), fields.pop("global_step")
        if event in _TRACKED:
            yield step, _numbers(event, fields)


def _numbers(event: str, fields: Mapping[str, Any]) -> dict[str, float]:
    return dict(_by_path(_TRACKED[event], fields))


def _by_path(path: str, value: Any) -> Iterator[tuple[str, float]]:
    """The numbers in a value, each with the path to it."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _by_path(f"{path}/{key}", item)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield path, value


def _known(value: Any) -> Any:
    """A value as JSON knows it."""
    if isinstance(value, Mapping):
        return {key: _known(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_known(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _is_before(line: bytes, global_step: int) -> bool:
    try:
        return json.loads(line)["global_step"] <= global_step
    except (ValueError, KeyError):
        return False  # the line that the kill cut off
