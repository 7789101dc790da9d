"""What was launched into a folder, in numbered folders: `launch/001`, `launch/002`, ...

Each holds the code and the settings of one submission, its script and its log, and a record of it.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from hnpretrain.config import without_secrets
from hnpretrain.shards import storage

# In a submission's folder, once its job is not to begin, or to begin again.
CANCELLED = "cancelled"
_RECORD = "job.json"
DEFAULT = "launch"


@dataclass(frozen=True)
class Record:
    """A submission.

    Attributes:
        cluster: see ClusterSettings.
        kind: training, shards or inpaint.
        jobs: ids of its jobs, in the order that they run.
        log: file of all output; of an array one a task, with `{task}`.
        submitted: when, ISO 8601.
        output: what it works on, absolute.
    """

    cluster: str
    kind: str
    jobs: tuple[str, ...]
    log: str
    submitted: str
    output: str


def place_of(output: str) -> str:
    """An output as records have it: a URL without its secrets, or an absolute path."""
    return without_secrets(output) if storage.is_url(output) else str(Path(output).absolute())


def folder_of(output: str, folder: str) -> Path:
    """Where an output's submissions are, absolute.

    Args:
        folder: the setting; empty for the default, which is in the output.

    Raises:
        ValueError: the output is a URL, and no folder is set.
    """
    if not folder and storage.is_url(output):
        raise ValueError(
            f"{without_secrets(output)} is a URL: set launch.folder (--folder of status, logs and "
            "cancel) to a folder that all nodes see, for scripts and logs"
        )
    return Path(folder or Path(output) / DEFAULT).absolute()


def next_folder(folder: Path) -> Path:
    """The name of the next submission's folder, which is not there yet."""
    numbers = [int(each.name) for each in folder.glob("[0-9]*") if each.name.isdigit()]
    return folder / f"{max(numbers, default=0) + 1:03}"


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """The next submission's folder, for the user alone; gone again if the submission fails."""
    made = next_folder(folder)
    made.mkdir(mode=0o700)
    try:
        yield made
    except BaseException:
        shutil.rmtree(made)
        raise


def write(
    folder: Path, cluster: str, kind: str, jobs: Sequence[str], log: str, output: str
) -> Record:
    """Writes a submission's record, and returns it."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    record = Record(cluster, kind, tuple(jobs), log, now, place_of(output))
    value = json.dumps(dataclasses.asdict(record), indent=1) + "\n"
    storage.write_bytes(str(folder / _RECORD), value.encode())
    return record


def latest(folder: Path, output: str) -> tuple[Path, Record] | None:
    """The last submission's folder and record, of those for an output, or None."""
    found = sorted(folder.glob(f"[0-9]*/{_RECORD}"), key=lambda path: int(path.parent.name))
    for path in reversed(found):
        value = json.loads(path.read_text(encoding="utf-8"))
        record = Record(**{**value, "jobs": tuple(value["jobs"])})
        if record.output == place_of(output):
            return path.parent, record
    return None
