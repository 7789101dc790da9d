"""What a training tells of its data, at every number of ranks, over restarts, behind faults."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import psutil
import pytest
from fsspec.implementations.local import LocalFileSystem

from hnpretrain.train.log import read_log
from tests.support.datasets import tile, write_dataset
from tests.support.faulty_store import (
    CUT,
    RESET,
    SILENT,
    SLOW_DOWN,
    UNAVAILABLE,
    FaultyStore,
    Request,
    before_the_bucket,
)
from tests.support.training import (
    end,
    loss_lines,
    ranks_of,
    start,
    train_here,
    wait_for_lines,
    write_recipe,
)
from tests.train.many_runs import train_all

STEPS = 24
MISSING = "000017.tar"
SKIP = ("data.on_bad_shard=skip", "data.max_reject_share=1")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    write_dataset(folder, (tile(i) for i in range(100)), per_shard=17)
    return folder


@pytest.fixture(scope="module")
def bad(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One shard is missing, and one sample's bytes are damaged."""
    folder = tmp_path_factory.mktemp("bad")
    write_dataset(folder, (tile(i) for i in range(100)), per_shard=17)
    (folder / MISSING).unlink()
    data = bytearray((folder / "000051.tar").read_bytes())
    data[700] ^= 1
    (folder / "000051.tar").write_bytes(data)
    return folder


def recipe(folder: Path, shards: Path | str, **settings: Any) -> Path:
    fields = {"epochs": 2, "batch_size": 8, "checkpoint": "{every: 5}", **settings}
    return write_recipe(folder / "recipe.yaml", Path(str(shards)), **fields)


def told(run: Path) -> dict[str, Any]:
    """What the log tells of the data, without the keys of clocks."""
    return {
        "ledgers": [line["ledger"] for line in loss_lines(run)],
        "end": read_log(run, "ledger"),
        "rejected": read_log(run, "rejected"),
        "quarantined": read_log(run, "quarantined"),
    }


def without_retries(ledger: dict[str, Any]) -> dict[str, Any]:
    return {key: ledger[key] for key in ledger if key != "retries"}


def test_the_ledger_is_the_same_at_every_number_of_ranks_and_over_a_restart(
    tmp_path: Path, bad: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = recipe(tmp_path, bad)
    train_here(path, f"output={tmp_path / 'one'}", "data.workers=0", *SKIP)
    console = capsys.readouterr().out
    train_here(path, f"output={tmp_path / 'twice'}", "epochs=1", *SKIP)
    train_here(path, f"output={tmp_path / 'twice'}", *SKIP)
    train_all(path, [[f"output={tmp_path / 'two'}", *SKIP]])

    one, two, twice = (told(tmp_path / name) for name in ("one", "two", "twice"))
    (end,) = one["end"]
    reasons = end["rejected"]
    assert set(reasons) == {"checksum_mismatch", "shard_unreadable"}
    assert reasons["checksum_mismatch"] == len(one["rejected"]) in (1, 2)
    assert 20 < reasons["shard_unreadable"] <= 34
    assert (end["read"], end["decoded"]) == (192, 192 - sum(reasons.values()))
    assert end["quarantined"] == 1
    assert len(one["ledgers"]) == STEPS
    assert one["ledgers"][-1] == {key: end[key] for key in one["ledgers"][-1]}
    (quarantined,) = one["quarantined"]
    assert quarantined["shard"] == f"{bad}/{MISSING}"
    assert "No such file" in quarantined["why"]
    assert console.count(f"quarantined shard {bad}/{MISSING}: ") == 1
    assert f"ledger: 192 samples read, {end['decoded']} decoded, " in console
    assert f"quarantined shards: 1 ({bad}/{MISSING})" in console

    for other in (two, twice):
        assert [without_retries(line) for line in other["ledgers"]] == [
            without_retries(line) for line in one["ledgers"]
        ]
        assert other["quarantined"] == one["quarantined"]
        assert sorted(map(str, other["rejected"])) == sorted(map(str, one["rejected"]))
        assert without_retries(other["end"][-1]) == without_retries(end)
    for a, b in zip(loss_lines(tmp_path / "one"), loss_lines(tmp_path / "two"), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
        assert set(a["interval"]) == set(a["ledger"])
    state = json.loads((tmp_path / "two/checkpoints/step_00000024/state.json").read_text())
    assert state["progress"]["ledger"]["rejected"] == reasons


def test_a_bad_shard_ends_the_run_on_all_ranks(tmp_path: Path, bad: Path) -> None:
    process = start(recipe(tmp_path, bad), f"output={tmp_path / 'run'}")
    output, _ = process.communicate(timeout=100)
    assert process.returncode == 1
    assert f"error: shard {bad}/{MISSING}: [Errno 2] No such file or directory" in output


def test_passwords_in_paths_are_neither_kept_nor_told(
    tmp_path: Path, bad: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a store that takes them in its URLs; one of its shards is quarantined."""

    class Store(LocalFileSystem):
        @classmethod
        def _strip_protocol(cls, path: str) -> str:
            return str(super()._strip_protocol(path.removeprefix("store://me:my-secret@")))

    fsspec.register_implementation("store", Store, clobber=True)
    write_dataset(tmp_path / "others", (tile(i) for i in range(100, 117)), per_shard=17)
    urls = [f"store://me:my-secret@{folder}" for folder in (bad, tmp_path / "others")]
    mixture = ", ".join(f"'{url}': 1.0" for url in urls)
    options = ("data.shards=''", f"data.mixture={{{mixture}}}", f"output={tmp_path / 'run'}", *SKIP)
    train_here(recipe(tmp_path, bad), *options, "epochs=1")
    train_here(recipe(tmp_path, bad), *options)
    (quarantined,) = read_log(tmp_path / "run", "quarantined")
    assert quarantined["shard"] == f"store://{bad}/{MISSING}"
    told = capsys.readouterr().out
    assert f" of store://{bad}\n" in told
    assert "my-secret" not in told
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert {"config.yaml", "log.jsonl", "state.json"} <= {path.name for path in files}
    assert not [path for path in files if b"my-secret" in path.read_bytes()]


def test_a_loader_process_that_is_killed_is_told_in_one_line(tmp_path: Path, shards: Path) -> None:
    """As the kernel does when memory is out."""
    run = tmp_path / "run"
    process = start(recipe(tmp_path, shards, epochs=10_000), f"output={run}", processes=1)
    try:
        wait_for_lines(process, run, 3)
        (rank,) = ranks_of(process)
        (worker,) = psutil.Process(rank).children()
        worker.kill()
        output, _ = process.communicate(timeout=100)
    finally:
        end(process)
    assert process.returncode == 1
    (line,) = (line for line in output.splitlines() if "error: " in line)
    assert "error: a loader process is gone (DataLoader worker (pid" in line
    assert line.endswith("lower data.workers or data.block_size")


def test_too_many_lost_samples_stop_the_run_with_the_list(tmp_path: Path, bad: Path) -> None:
    with pytest.raises(ValueError, match="samples were rejected, more than") as raised:
        train_here(
            recipe(tmp_path, bad, epochs=12),
            f"output={tmp_path / 'run'}",
            "data.on_bad_shard=skip",
        )
    for part in ("data.max_reject_share=0.01", "shard_unreadable", "checksum_mismatch", MISSING):
        assert part in str(raised.value)


@pytest.fixture
def store(bucket: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyStore]:
    """What hangs has failed after two seconds; s3fs and botocore repeat as they do."""
    monkeypatch.setattr(fsspec.get_filesystem_class("s3"), "read_timeout", 2.0)
    assert bucket == "s3://photos"
    with before_the_bucket(monkeypatch) as proxy:
        yield proxy


def faults(stalled: str) -> Any:
    """10 % 503, 2 % resets, 2 % bodies that are cut, and one read that hangs."""

    def fault(request: Request, number: int) -> str | None:
        if request.operation == "read" and stalled in request.target and number == 0:
            return SILENT
        draw = random.Random(f"5 {request} {number}").random()
        for share, name in ((0.05, UNAVAILABLE), (0.1, SLOW_DOWN), (0.12, RESET), (0.14, CUT)):
            if draw < share:
                return name
        return None

    return fault


def test_behind_faults_the_losses_are_those_from_disk(
    tmp_path: Path, shards: Path, store: FaultyStore
) -> None:
    url = "s3://photos/faulty"
    storage_files = fsspec.filesystem("s3", endpoint_url=store.upstream, use_listings_cache=False)
    storage_files.put(str(shards) + "/", "photos/faulty/", recursive=True)
    train_here(recipe(tmp_path, shards), f"output={tmp_path / 'local'}")
    store.plan = faults("000051.tar")
    train_here(
        recipe(tmp_path, "unused"),
        f"output={tmp_path / 'remote'}",
        f"data.shards={url}",
        "data.workers=2",
    )
    local, remote = loss_lines(tmp_path / "local"), loss_lines(tmp_path / "remote")
    assert [line["loss"] for line in local] == [line["loss"] for line in remote]
    failed = sum(
        count
        for (operation, fault), count in store.faults.items()
        if operation == "read" and fault != "slow"
    )
    assert store.faults["read", SILENT] >= 1
    assert failed > 5
    (ledger,) = read_log(tmp_path / "remote", "ledger")
    assert ledger["rejected"] == {}
    # But for the index before the first step, and for resets that aiohttp hides.
    assert ledger["retries"] > failed / 2
    assert sum(line["interval"]["retries"] for line in remote) == ledger["retries"]
