"""The code and the settings of a job, as they were when it was submitted.

A job may wait for days, and be started again for weeks. Whoever edits the code meanwhile changes
the next job, not this one.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import hnpretrain
import launch
import shard_tools
from hnpretrain.config import to_yaml

CODE = "code"
CONFIG = "config.yaml"


def write(folder: Path, settings: Any) -> None:
    """Writes the packages that run into `folder/code`, the settings into `folder/config.yaml`.

    For the user alone: URLs keep their secrets, without which the job could not read.
    """
    for package in (hnpretrain, shard_tools, launch):
        source = Path(package.__path__[0])
        shutil.copytree(
            source, folder / CODE / source.name, ignore=shutil.ignore_patterns("__pycache__")
        )
    config = folder / CONFIG
    config.touch(mode=0o600)
    config.write_text(to_yaml(settings, secrets=True), encoding="utf-8")
