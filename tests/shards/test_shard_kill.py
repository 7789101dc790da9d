"""kill -9 at any moment: started again, the job ends with the bytes of one that was left alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from shard_tools.job import build
from tests.shards.conftest import PHOTOS, photos_settings, write_jsonl
from tests.support.killing import Killing, files_of

_TIMES = 6  # each photo, so that there is work for some seconds
_SAMPLES_PER_SHARD = 2


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory, records: list[dict[str, Any]]) -> Path:
    lines = [{**r, "key": f"{n}-{r['coco_id']}"} for n in range(_TIMES) for r in records]
    return write_jsonl(tmp_path_factory.mktemp("source"), lines, {})


@pytest.fixture(scope="module")
def alone(manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What four processes make of the manifest that nobody disturbs."""
    folder = tmp_path_factory.mktemp("alone")
    build(photos_settings(folder, manifest, samples_per_shard=_SAMPLES_PER_SHARD, workers=4))
    return files_of(str(folder))


def test_one_process_makes_the_bytes_of_four(
    tmp_path: Path, manifest: Path, alone: dict[str, bytes]
) -> None:
    build(photos_settings(tmp_path, manifest, samples_per_shard=_SAMPLES_PER_SHARD))
    assert files_of(str(tmp_path)) == alone


def test_a_job_that_is_killed_ten_times(
    tmp_path: Path, manifest: Path, alone: dict[str, bytes]
) -> None:
    arguments = [
        "shard", "build", "source.kind=jsonl", f"source.path={manifest}",
        f"source.images={PHOTOS}", f"samples_per_shard={_SAMPLES_PER_SHARD}", "workers=2",
    ]  # fmt: skip
    killing = Killing(arguments, str(tmp_path / "killed"), alone, seed=0)
    killing.run(10)
    assert killing.killed.total() == 10
    assert killing.killed.keys() == {"all", "worker", "job"}
    # Some came between the first shard and the last.
    shards = sum(name.endswith(".tar") for name in alone)
    assert any(0 < count < shards for count in killing.unfinished)
    assert killing.finished >= 1
