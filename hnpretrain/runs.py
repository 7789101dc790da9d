"""What lies where in a run's folder, for who looks at it without torch."""

from __future__ import annotations

from pathlib import Path

LOG_NAME = "log.jsonl"
LATEST_NAME = "latest"


def latest_checkpoint(run: Path) -> Path | None:
    """The run's newest complete checkpoint, or None."""
    latest = run / "checkpoints" / LATEST_NAME
    if not latest.is_file():
        return None
    return latest.parent / latest.read_text().strip()
