"""`hnpretrain bench loader` on a few photos: rows, what is checked, what is refused."""

import json

import pytest
from typer.testing import CliRunner

from hnpretrain.bench import loader
from hnpretrain.bench.loader import Case
from hnpretrain.bench.processes import in_processes
from hnpretrain.cli import app
from hnpretrain.shards import storage
from tests.support.datasets import tile, write_dataset
from tests.support.mosaics import mosaics

COUNT = 48


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mosaics")
    write_dataset(folder, mosaics(COUNT), per_shard=16)
    return str(folder)


def run(*arguments):
    return CliRunner().invoke(app, ["bench", "loader", *arguments])


def test_rows_hold_rates_and_exactness(tmp_path, shards, monkeypatch):
    monkeypatch.setattr(loader, "_RESUME_SAMPLES", 100)
    file = tmp_path / "rows.json"
    result = run(shards, "--batch", "8", "--size", "64", "--repeats", "1", "--json", str(file))
    assert result.exit_code == 0, result.output
    rows = {row["case"]: row for row in json.loads(file.read_text())}
    assert list(rows) == ["ours, exact", "ours, fast", "open_clip", "webdataset"]
    for row in rows.values():
        assert row["images"] == COUNT
        assert row["images_per_second_per_core"] == pytest.approx(1 / row["seconds"])
        # The process is kept to one core.
        assert row["images_per_cpu_second"] > 0.8 * row["images_per_second_per_core"]
        assert row["ratio"] == pytest.approx(row["ours"] / row["peer"])
    assert [row["keys"] for row in rows.values()] == [COUNT, COUNT, None, COUNT]
    exact, fast, *_ = rows.values()
    assert exact["checked"] == fast["checked"] == COUNT
    assert exact["largest_difference"] == 0
    assert 0 < fast["mean_difference"] < 2
    assert exact["normalizing_seconds"] > 0
    assert exact["resume_samples"] == 112
    assert exact["resume_seconds"] > 0
    for shown in ("images/s per core", "to open_clip", "from the middle of 112 samples"):
        assert shown in " ".join(result.output.split())


def test_from_s3(bucket, shards):
    """All contenders read a bucket, in processes of their own."""
    for name in storage.list_files(shards, ""):
        data = storage.read_bytes(storage.join(shards, name))
        storage.write_bytes(f"{bucket}/mosaics/{name}", data)
    case = Case(f"{bucket}/mosaics", 1, 8, 32, COUNT, 1, True)
    rows = {row["case"]: row for (*found,) in loader.compare([case]) for row in found}
    assert [row["images"] for row in rows.values()] == [COUNT] * 4
    assert rows["ours, exact"]["largest_difference"] == 0
    assert "resume_seconds" not in rows["ours, exact"]


def test_an_epoch_of_some_shards(shards):
    case = Case(shards, 1, 8, 32, 17, 1, False)
    assert loader._index(case).samples == 32
    assert len(loader._urls(case)) == 2


def test_wrong_use(tmp_path, shards):
    for arguments, message in (
        ((shards, "--workers", "4"), "has 3 shards for 4 workers"),
        ((shards, "--batch", "64"), "do not fill one global batch of 64"),
        ((str(tmp_path),), "index.json does not exist"),
    ):
        result = run(*arguments)
        assert isinstance(result.exception, ValueError)
        assert message in str(result.exception)


def test_resuming_in_the_middle_of_a_hundred_thousand_samples(tmp_path):
    """Reads one block a stream and decodes one batch, in 64 streams of 100 shards."""
    write_dataset(tmp_path / "tiles", map(tile, range(1000)), per_shard=1000)
    case = Case(str(tmp_path / "tiles"), 2, 256, 224, 1000, 1, True)
    folder = tmp_path / "repeated"
    folder.mkdir()
    assert loader._repeat_shards(case, folder) == 100_000
    found = in_processes(loader._resume, case, "ours, exact", str(folder), device="cpu")
    assert found["resume_cpu_seconds"] > 0
    assert found["resume_seconds"] > 0
