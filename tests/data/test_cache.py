"""Copies of shards on the node's own disk: shared, checked, bounded, and never in the way."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from hnpretrain.data import cache as cache_module
from hnpretrain.data.cache import ShardCache
from hnpretrain.data.loader import Position
from hnpretrain.data.mixture import read_mixture
from hnpretrain.data.plan import Run
from hnpretrain.data.streams import ShardSet, StoredSample
from hnpretrain.shards import storage
from hnpretrain.shards.index import Index, ShardEntry, read_index
from tests.support.datasets import tile, write_dataset
from tests.support.loading import batches, loader, same

FORK = multiprocessing.get_context("fork")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiles")
    write_dataset(folder, (tile(i) for i in range(96)), per_shard=12)
    return folder


@pytest.fixture(scope="module")
def index(folder: Path) -> Index:
    return read_index(str(folder))


@pytest.fixture
def reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """What was read of tars so far, by any process, as "NAME START"."""
    log = tmp_path / "reads"
    log.touch()
    original = storage.read_range

    def read_range(path: str, start: int, end: int) -> bytes:
        if path.endswith(".tar"):
            with log.open("a") as file:
                file.write(f"{Path(path).name} {start}\n")
        return original(path, start, end)

    monkeypatch.setattr(storage, "read_range", read_range)
    return lambda: log.read_text().splitlines()


def take(cache: ShardCache, folder: Path, entry: ShardEntry, end: int = 1000) -> bytes | None:
    return cache.read_range(str(folder / entry.name), entry.bytes, entry.sha256, 500, end)


def kept(place: Path) -> set[str]:
    return {path.name for path in place.iterdir()} - {"lock"}


def test_a_shard_is_read_once(
    tmp_path: Path, folder: Path, index: Index, reads: Callable[[], list[str]]
) -> None:
    entry = index.shards[0]
    data = (folder / entry.name).read_bytes()
    for _ in range(2):  # another process finds it, too
        cache = ShardCache(str(tmp_path / "cache"), 10**9)
        assert take(cache, folder, entry) == data[500:1000]
        assert take(cache, folder, entry, len(data)) == data[500:]
        assert cache.notes() == []
    assert reads() == [f"{entry.name} 0"]
    assert kept(tmp_path / "cache") == {f"{entry.sha256}.tar"}


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_the_same_and_the_next_epoch_reads_nothing(
    tmp_path: Path, folder: Path, reads: Callable[[], list[str]], workers: int
) -> None:
    plain = batches(loader(folder))
    before = len(reads())
    cached = batches(loader(folder, workers=workers, cache=str(tmp_path / "cache")))
    assert all(same(a, b) for (_, a, _), (_, b, _) in zip(plain, cached, strict=True))
    assert all(tally.is_plain for _, _, tally in cached)
    assert len(reads()) - before == 8  # each shard, once


def test_processes_and_threads_share_one_download(
    tmp_path: Path, folder: Path, index: Index, reads: Callable[[], list[str]]
) -> None:
    def read_all(number: int) -> None:
        cache = ShardCache(str(tmp_path / "cache"), 10**9)
        for place in range(8):
            entry = index.shards[(place + number // 2) % 8]
            data = (folder / entry.name).read_bytes()
            assert take(cache, folder, entry) == data[500:1000]

    processes = [FORK.Process(target=read_all, args=(number,)) for number in range(6)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
        assert process.exitcode == 0
    assert sorted(reads()) == [f"{entry.name} 0" for entry in index.shards]
    assert kept(tmp_path / "cache") == {f"{entry.sha256}.tar" for entry in index.shards}


def test_the_least_recently_used_makes_room(
    tmp_path: Path, folder: Path, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_module, "_IN_USE_SECONDS", 0.0)
    size = max(entry.bytes for entry in index.shards)
    place = tmp_path / "cache"
    cache = ShardCache(str(place), 3 * size)
    for number in (0, 1, 2, 0):
        assert take(cache, folder, index.shards[number]) is not None
        time.sleep(0.02)
    with (place / f"{index.shards[1].sha256}.tar").open("rb") as reader:
        assert take(cache, folder, index.shards[3]) is not None
        # Whoever reads it meanwhile reads on.
        assert reader.read() == (folder / index.shards[1].name).read_bytes()
    assert kept(place) == {f"{index.shards[number].sha256}.tar" for number in (0, 2, 3)}
    assert sum(path.stat().st_size for path in place.glob("*.tar")) <= 3 * size


def test_what_is_being_read_is_not_removed_for_others(
    tmp_path: Path, folder: Path, index: Index, reads: Callable[[], list[str]]
) -> None:
    """Else a cache that is too small would be filled anew for every block."""
    size = max(entry.bytes for entry in index.shards)
    cache = ShardCache(str(tmp_path / "cache"), 2 * size)
    for _ in range(3):
        given = [take(cache, folder, index.shards[number]) is not None for number in range(4)]
        assert given == [True, True, False, False]
    assert len(reads()) == 2
    assert len(kept(tmp_path / "cache")) == 2
    assert cache.notes() == []


def test_no_limit(tmp_path: Path, folder: Path) -> None:
    cached = batches(loader(folder, cache=str(tmp_path / "cache"), cache_gb=float("inf")), epochs=1)
    assert all(tally.is_plain for _, _, tally in cached)
    assert len(kept(tmp_path / "cache")) == 8


def test_a_shard_larger_than_the_cache(tmp_path: Path, folder: Path, index: Index) -> None:
    cache = ShardCache(str(tmp_path / "cache"), 1000)
    for entry in index.shards:
        assert take(cache, folder, entry) is None
    (note,) = cache.notes()
    assert "shards larger than data.cache_gb=1e-06 are not kept" in note
    assert kept(tmp_path / "cache") == set()


def test_a_shard_of_other_bytes_is_not_kept_and_not_loaded_again(
    tmp_path: Path, folder: Path, index: Index, reads: Callable[[], list[str]]
) -> None:
    entry, other = index.shards[:2]
    cache = ShardCache(str(tmp_path / "cache"), 10**9)
    for _ in range(2):
        assert cache.read_range(str(folder / entry.name), entry.bytes, other.sha256, 0, 9) is None
    assert kept(tmp_path / "cache") == set()
    assert len(reads()) == 1
    assert cache.read_range(str(folder / "none.tar"), entry.bytes, entry.sha256, 0, 9) is None
    assert kept(tmp_path / "cache") == set()


@pytest.mark.parametrize("damage", ["flip", "cut"])
def test_a_damaged_copy_is_replaced(
    tmp_path: Path, folder: Path, index: Index, damage: str
) -> None:
    cache = ShardCache(str(tmp_path / "cache"), 10**9)
    shards = ShardSet(read_mixture({str(folder): 1}), cache)
    run = Run(shard=0, start=2, stop=7, passage=0)
    whole = shards.read(run)
    copy = tmp_path / "cache" / f"{index.shards[0].sha256}.tar"
    data = copy.read_bytes()
    place = len(data) // 3
    copy.write_bytes(data[:place] if damage == "cut" else data[:place] + b"?" + data[place + 1 :])
    assert shards.read(run) == whole
    assert all(isinstance(sample, StoredSample) for sample in whole)
    shards.read(run)
    assert copy.read_bytes() == data


def test_a_download_that_was_killed_begins_anew(
    tmp_path: Path, folder: Path, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry, place = index.shards[0], tmp_path / "cache"
    monkeypatch.setattr(cache_module, "_CHUNK_BYTES", 4096)
    original = storage.read_range

    def stuck(path: str, start: int, end: int) -> bytes:
        if start > 8000:
            time.sleep(1000)
        return original(path, start, end)

    def download() -> None:
        monkeypatch.setattr(storage, "read_range", stuck)
        take(ShardCache(str(place), 10**9), folder, entry)

    def start() -> multiprocessing.process.BaseProcess:
        process = FORK.Process(target=download)
        process.start()
        part = place / f"{entry.sha256}.part"
        deadline = time.monotonic() + 20
        while not part.exists() or part.read_bytes()[:8192] != data[:8192]:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        return process

    def kill(process: multiprocessing.process.BaseProcess) -> None:
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join(20)

    data = (folder / entry.name).read_bytes()
    running = start()
    ShardCache(str(place), 10**9)
    assert kept(place) == {f"{entry.sha256}.part"}  # it is alive
    kill(running)
    cache = ShardCache(str(place), 10**9)
    assert kept(place) == set()

    # Or it is killed while another process waits for it.
    running = start()
    waiting = FORK.Process(target=lambda: os._exit(take(cache, folder, entry) != data[500:1000]))
    waiting.start()
    time.sleep(0.2)
    assert waiting.is_alive()
    kill(running)
    waiting.join(20)
    assert waiting.exitcode == 0
    assert kept(place) == {f"{entry.sha256}.tar"}


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Lets the cache's clock go on by so many seconds."""
    gone = 0.0

    def wait(seconds: float) -> None:
        nonlocal gone
        gone += seconds

    clock = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: clock() + gone)
    return wait


def test_a_disk_that_was_full_is_tried_again(
    tmp_path: Path,
    folder: Path,
    index: Index,
    monkeypatch: pytest.MonkeyPatch,
    later: Callable[[float], None],
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    cache = ShardCache(str(tmp_path / "cache"), 10**9)
    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full)
        for _ in range(2):  # it is told each time, once
            assert take(cache, folder, index.shards[0]) is None
            assert take(cache, folder, index.shards[1]) is None
            (note,) = cache.notes()
            assert "nothing more is copied for 5 minutes: [Errno 28]" in note
            later(301)
    assert take(cache, folder, index.shards[0]) is not None
    assert cache.notes() == []


def test_a_shard_whose_download_failed_is_tried_again(
    tmp_path: Path,
    folder: Path,
    index: Index,
    monkeypatch: pytest.MonkeyPatch,
    later: Callable[[float], None],
) -> None:
    tried = []

    def fails(path: str, *_: int) -> bytes:
        tried.append(path)
        raise OSError("the store is busy")

    cache = ShardCache(str(tmp_path / "cache"), 10**9)
    with monkeypatch.context() as patch:
        patch.setattr(storage, "read_range", fails)
        for _ in range(2):
            assert take(cache, folder, index.shards[0]) is None
        assert len(tried) == 1
        (note,) = cache.notes()
        assert f"no copy of {folder / index.shards[0].name} for 5 minutes: the store is" in note
    assert take(cache, folder, index.shards[1]) is not None
    assert take(cache, folder, index.shards[0]) is None
    later(301)
    assert take(cache, folder, index.shards[0]) is not None


def test_threads_that_wait_for_a_shard_do_not_try_it_again(
    tmp_path: Path, folder: Path, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []

    def fails(path: str, *_: int) -> bytes:
        tried.append(path)
        time.sleep(0.3)
        raise OSError("the store is busy")

    monkeypatch.setattr(storage, "read_range", fails)
    cache = ShardCache(str(tmp_path / "cache"), 10**9)
    with ThreadPoolExecutor(6) as threads:
        taken = list(threads.map(lambda _: take(cache, folder, index.shards[0]), range(6)))
    assert taken == [None] * 6
    assert len(tried) == len(cache.notes()) == 1


def test_whoever_waits_too_long_reads_the_store(
    tmp_path: Path, folder: Path, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process is at the shard, and its store hangs."""
    monkeypatch.setattr(cache_module, "_PATIENCE_SECONDS", 0.1)
    cache = ShardCache(str(tmp_path / "cache"), 10**9)
    entry = index.shards[0]
    with cache_module._locked(tmp_path / "cache" / f"{entry.sha256}.part"):
        assert take(cache, folder, entry) is None
        assert take(cache, folder, index.shards[1]) is not None
    assert take(cache, folder, entry) is not None
    assert cache.notes() == []


def test_copies_are_read_where_no_further_ones_can_be_made(
    tmp_path: Path, folder: Path, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "cache"
    assert take(ShardCache(str(place), 10**9), folder, index.shards[0]) is not None
    opened = os.open

    def read_only(path: str | Path, flags: int, *rest: int) -> int:
        if flags & os.O_CREAT and str(path).startswith(str(place)):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return opened(path, flags, *rest)

    monkeypatch.setattr(os, "open", read_only)
    cache = ShardCache(str(place), 10**9)
    for _ in range(2):
        assert take(cache, folder, index.shards[1]) is None
        assert take(cache, folder, index.shards[2]) is None
        assert take(cache, folder, index.shards[0]) is not None
    (note,) = cache.notes()
    assert note.endswith("nothing more is copied for 5 minutes: [Errno 13] Permission denied")


def test_copies_of_another_user_are_read(
    tmp_path: Path, folder: Path, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their times cannot be changed."""

    def refused(*_: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "utime", refused)
    cache = ShardCache(str(tmp_path / "cache"), 10**9)
    for entry in index.shards[:2]:
        assert take(cache, folder, entry) == (folder / entry.name).read_bytes()[500:1000]
    assert cache.notes() == []


@pytest.mark.parametrize("where", ["posix_fallocate", "pwrite"])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_full_disk_is_said_once_and_left_alone(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, where: str, workers: int
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    plain = batches(loader(folder))
    monkeypatch.setattr(os, where, full)
    cached = batches(loader(folder, workers=workers, cache=str(tmp_path / "cache")))
    assert all(same(a, b) for (_, a, _), (_, b, _) in zip(plain, cached, strict=True))
    notes = [note for _, _, tally in cached for note in tally.notes]
    assert len(set(notes)) == 1  # of each worker; the run tells it once
    assert len(notes) <= max(1, workers)
    assert "nothing more is copied for 5 minutes: [Errno 28] No space left on device" in notes[0]
    assert sum(tally.ledger.lost for _, _, tally in cached) == 0
    assert kept(tmp_path / "cache") == set()


def test_a_folder_that_cannot_be_used_is_said_and_left_alone(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    _, _, tally = next(loader(folder, cache=str(tmp_path / "file")).batches(Position(), 1))
    assert len(tally.notes) == 1
    assert f"data.cache={tmp_path / 'file'} on " in tally.notes[0]


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"cache": "s3://photos/cache"}, "must be a folder on the node's own disk"),
        ({"cache_gb": 0}, r"data.cache_gb=0 must be above 0"),
        ({"cache_gb": float("nan")}, r"data.cache_gb=nan must be above 0"),
        ({"on_bad_shard": "ignore"}, "data.on_bad_shard='ignore' is not one of stop, skip"),
    ],
)
def test_wrong_settings(folder: Path, settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        loader(folder, **settings)
