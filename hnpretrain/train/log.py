"""The run's log: JSON lines in a file, one dense line on the console."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hnpretrain.shards import storage

LOG_NAME = "log.jsonl"


class RunLog:
    """Written by the main rank alone.

    Every line is a JSON object with `event` (`step`, `rejected`, `checkpoint`, ...) and
    `global_step`, the number of optimizer steps taken when it was written.

    Args:
        run: the run's folder.
        global_step: where the run goes on; lines of later steps, which a killed run wrote after its
            last checkpoint, are dropped, since they are about to be written again.
    """

    def __init__(self, run: Path, global_step: int) -> None:
        path = run / LOG_NAME
        kept = [
            line
            for line in (path.read_bytes().splitlines(keepends=True) if path.is_file() else [])
            if _is_before(line, global_step)
        ]
        storage.write_bytes(str(path), b"".join(kept))
        self._file = path.open("a", encoding="utf-8")

    def write(self, event: str, global_step: int, **fields: Any) -> None:
        line = {"event": event, "global_step": global_step, **fields}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def read_log(run: Path, event: str) -> list[dict[str, Any]]:
    """The log's lines of one event, in order."""
    lines = (json.loads(line) for line in (run / LOG_NAME).read_text("utf-8").splitlines())
    return [line for line in lines if line["event"] == event]


def console_line(step: int, total_steps: int, fields: dict[str, Any], seconds_left: float) -> str:
    """One dense line of a step's fields."""
    parts = [
        f"step {step}/{total_steps}",
        f"epoch {fields['epoch']}",
        f"loss {fields['loss']:.4f}",
    ]
    if fields.get("negatives"):
        parts.append(
            f"neg margin {fields['negative_margin']:+.3f} acc {fields['negative_accuracy']:.3f}"
        )
    parts += [
        f"{fields['samples_per_second']:.0f} samples/s",
        f"data wait {fields['data_wait']:.0%}",
        f"grad {fields['grad_norm']:.2f}",
        f"scale {fields['logit_scale']:.1f}",
        f"lr {fields['lr']:.2e}",
        f"ETA {_duration(seconds_left)}",
    ]
    return " | ".join(parts)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"


def _is_before(line: bytes, global_step: int) -> bool:
    try:
        return json.loads(line)["global_step"] <= global_step
    except (ValueError, KeyError):
        return False  # the line that the kill cut off
