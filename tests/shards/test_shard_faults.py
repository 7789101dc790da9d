"""A store that is busy, cuts connections and answers halfway: not a byte differs in the end."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from hnpretrain.shards import storage
from shard_tools.job import BuildSettings, build
from shard_tools.sources import SourceSettings, plan_source
from tests.shards.conftest import Ran, folder_bytes, img2dataset_members, write_tar
from tests.support.faulty_store import (
    CUT,
    FAULTS,
    LOST,
    RESET,
    SILENT,
    SLOW,
    SLOW_DOWN,
    UNAVAILABLE,
    FaultyStore,
    before_the_bucket,
    drawn,
)

DATA = os.urandom(300_000)


@pytest.fixture
def store(bucket: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyStore]:
    """The bucket's server behind a proxy. Only our code and s3fs try again, without long waits."""
    assert bucket == "s3://photos"
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with before_the_bucket(monkeypatch) as proxy:
        yield proxy


@pytest.fixture
def ours_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """s3fs tries once, so that what passes was tried again by our code."""
    monkeypatch.setattr(fsspec.get_filesystem_class("s3"), "retries", 1)


@pytest.fixture
def server(store: FaultyStore) -> Any:
    """The bucket's server without the proxy."""
    return fsspec.filesystem("s3", endpoint_url=store.upstream, use_listings_cache=False)


def files(server: Any, folder: str) -> dict[str, bytes]:
    """Name to bytes of what is under a folder's URL, as the server has it."""
    paths = server.find(folder)
    return {Path(path).name: server.cat_file(path) for path in paths}


def upload_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """5 MiB a part, the least that S3 takes, for s3fs's 50 MiB."""
    import s3fs.core

    monkeypatch.setattr(s3fs.core, "calculate_chunksize", lambda *_, **__: 5 * 2**20)


def read_all(path: str) -> bytes:
    with storage.open_read(path) as file:
        return file.read()


READS: dict[str, tuple[Callable[[str], Any], Any, str]] = {
    "is_file": (lambda url: storage.is_file(f"{url}/x.tar"), True, "head"),
    "exists": (lambda url: storage.exists(f"{url}/x.tar"), True, "head"),
    "exists_not": (lambda url: storage.exists(f"{url}/none"), False, "list"),
    "is_folder": (storage.is_folder, True, "list"),
    "size": (lambda url: storage.size(f"{url}/x.tar"), len(DATA), "head"),
    "list_sizes": (lambda url: storage.list_sizes(url, ""), {"x.tar": len(DATA)}, "list"),
    "find": (lambda url: list(storage.find(f"{url}/?.tar")), ["{url}/x.tar"], "list"),
    "read_bytes": (lambda url: storage.read_bytes(f"{url}/x.tar"), DATA, "read"),
    "read_range": (lambda url: storage.read_range(f"{url}/x.tar", 7, 99), DATA[7:99], "read"),
    "open_read": (lambda url: read_all(f"{url}/x.tar"), DATA, "read"),
}


@pytest.mark.parametrize(
    "name, fault",
    [(name, fault) for name in READS for fault in (UNAVAILABLE, CUT)]
    + [("open_read", fault) for fault in (SLOW_DOWN, RESET, LOST, SLOW)],
)
@pytest.mark.usefixtures("ours_alone")
def test_every_way_to_read_is_tried_again(store: FaultyStore, name: str, fault: str) -> None:
    read, expected, operation = READS[name]
    url = "s3://photos/read"
    storage.write_bytes(f"{url}/x.tar", DATA)
    store.plan = lambda request, number: (
        fault
        if number < 2 and "read" in request.target and request.operation == operation
        else None
    )
    got = read(url)
    assert got == ([text.format(url=url) for text in expected] if name == "find" else expected)
    harmless = fault == SLOW or (fault == CUT and operation == "head")  # that has no body
    assert store.faults[operation, fault] == (1 if harmless else 2)


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.usefixtures("ours_alone")
def test_writing_and_removing_is_tried_again(
    store: FaultyStore, server: Any, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    upload_in_parts(monkeypatch)
    large = DATA * 40  # 12 MB: three parts
    store.plan = lambda _, number: fault if number < 2 else None
    storage.write_bytes("s3://photos/write/small", DATA)
    # Each try of an upload in parts is another upload: two parts fail, whichever these are.
    store.plan = lambda request, _: (
        fault if request.operation == "part" and store.faults["part", fault] < 2 else None
    )
    storage.write_bytes("s3://photos/write/large", large)
    assert server.cat_file("photos/write/small") == DATA
    assert server.cat_file("photos/write/large") == large
    if fault not in (SLOW, CUT):  # of answers without a body there is nothing to cut
        assert store.faults["put", fault] == 2
    assert store.faults["part", fault] == 2

    store.plan = lambda request, number: (
        fault if request.operation == "remove" and number < 2 else None
    )
    storage.remove("s3://photos/write/small")
    storage.remove("s3://photos/write/none")
    assert storage.list_files("s3://photos/write", "") == ["large"]
    harmless = fault in (SLOW, CUT)
    assert store.faults["remove", fault] == (2 if harmless else 4)


@pytest.mark.usefixtures("ours_alone")
def test_reading_goes_on_at_the_byte_reached(
    store: FaultyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "_REQUEST_BYTES", 100_000)
    storage.write_bytes("s3://photos/resume/x.tar", DATA)
    store.plan = lambda request, number: (
        CUT if request.span == "bytes=100000-199999" and number < 3 else None
    )
    with storage.open_read("s3://photos/resume/x.tar") as file:
        assert file.read(150_000) == DATA[:150_000]  # the cut request is inside
        assert file.read() == DATA[150_000:]
    spans = [request.span for request in store.requests if request.operation == "read"]
    middle = ["bytes=100000-199999"] * 4
    assert spans == ["bytes=0-99999", *middle, "bytes=200000-299999"]


def test_a_file_that_changes_while_it_is_read_is_no_mix(
    store: FaultyStore, server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "_REQUEST_BYTES", 100_000)
    storage.write_bytes("s3://photos/changed/x.tar", DATA)
    message = "s3://photos/changed/x.tar changed while it was read; start again"
    with storage.open_read("s3://photos/changed/x.tar") as file:
        file.read(1000)
        server.pipe_file("photos/changed/x.tar", bytes(len(DATA)))
        with pytest.raises(OSError, match=message):
            file.read()
    assert store.faults.total() == 0


ASK: dict[str, Callable[[str], Any]] = {
    "exists": storage.exists,
    "list_sizes": lambda url: storage.list_sizes(url, ""),
    "find": lambda url: storage.find(f"{url}/*.tar"),
    "read_bytes": storage.read_bytes,
    "read_range": lambda url: storage.read_range(url, 0, 10),
    "open_read": read_all,
    "write_bytes": lambda url: storage.write_bytes(url, b"x"),
    "remove": storage.remove,
}


@pytest.mark.parametrize("name", ASK)
@pytest.mark.usefixtures("ours_alone")
def test_a_store_that_never_answers_is_an_error(
    store: FaultyStore, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    for limit in ("_TRY_SECONDS", "_LISTING_SECONDS"):
        monkeypatch.setattr(storage, limit, 1.5)  # a busy machine takes tenths to connect
    monkeypatch.setattr(storage, "_ATTEMPTS", 2)
    store.plan = lambda *_: SILENT
    start = time.monotonic()
    with pytest.raises(OSError, match=r"s3://photos/silent.* failed 2 times in \d+ s: no answer$"):
        ASK[name]("s3://photos/silent")
    assert time.monotonic() - start < 20
    assert store.faults.total() >= 1


def test_patience_ends_before_the_tries_do(
    store: FaultyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "_TRY_SECONDS", 0.2)
    monkeypatch.setattr(storage, "_PATIENCE_SECONDS", 0.1)
    store.plan = lambda *_: SILENT
    with pytest.raises(OSError, match="looking failed 1 times in"):
        storage.exists("s3://photos/silent")


def write_sources(server: Any, folder: Path, records: list[dict[str, Any]]) -> None:
    """Four tars of four photos, one of them cut, in a folder and on the server."""
    for number in range(4):
        path = folder / f"{number:05d}.tar"
        members = []
        for n in range(4 * number, 4 * number + 4):
            members += img2dataset_members(records[n], n)
        write_tar(path, members)
        if number == 3:
            path.write_bytes(path.read_bytes()[:-20_000])
        server.put_file(str(path), f"photos/source/{path.name}")


@pytest.mark.parametrize("pattern", ["source", "source/*.tar", "s?urce/0000[0-5].tar"])
@pytest.mark.usefixtures("ours_alone")
def test_no_tar_is_lost_where_listings_fail(
    store: FaultyStore,
    server: Any,
    tmp_path: Path,
    records: list[dict[str, Any]],
    pattern: str,
) -> None:
    """fsspec's own glob takes a listing that fails for an empty folder."""
    write_sources(server, tmp_path, records)
    source = SourceSettings("tar", f"s3://photos/{pattern}")
    expected = plan_source(source, 1)
    assert len(expected) == 4
    store.plan = lambda request, number: (
        # The first of each came before.
        UNAVAILABLE if number < 4 and request.operation == "list" else None
    )
    assert plan_source(source, 1) == expected
    assert store.faults["list", UNAVAILABLE] >= 3

    store.plan = lambda *_: UNAVAILABLE
    with pytest.raises(OSError, match="failed 5 times"):
        plan_source(source, 1)


def settings_of(source: str, output: str, workers: int) -> BuildSettings:
    return BuildSettings(
        SourceSettings("tar", source), output, workers=workers, max_reject_share=0.9
    )


def test_a_build_through_faults_gives_the_same_bytes(
    store: FaultyStore, server: Any, tmp_path: Path, records: list[dict[str, Any]]
) -> None:
    write_sources(server, tmp_path, records)
    build(settings_of("s3://photos/source/*.tar", "s3://photos/good", 1))
    assert store.faults.total() == 0

    # More in a row than s3fs repeats by itself.
    store.plan = drawn(seed=1, share=0.4, in_a_row=7)
    build(settings_of("s3://photos/source/*.tar", "s3://photos/faulty", 2))
    operations = {operation for operation, _ in store.faults}
    assert operations >= {"read", "head", "list", "put", "remove"}
    assert {fault for _, fault in store.faults} == set(FAULTS)
    good, faulty = (files(server, f"s3://photos/{name}") for name in ("good", "faulty"))
    assert good == faulty
    assert sum(name.endswith(".tar") for name in good) == 4
    assert not any(name.startswith(".") for name in good)


@pytest.mark.parametrize(
    "suffix, fault",
    [(".tar", SLOW_DOWN), (".tar", LOST), (".marker.json", RESET), ("index.json", UNAVAILABLE)],
)
def test_an_upload_that_fails_for_ever(
    store: FaultyStore,
    server: Any,
    tmp_path: Path,
    records: list[dict[str, Any]],
    command: Callable[..., Ran],
    monkeypatch: pytest.MonkeyPatch,
    suffix: str,
    fault: str,
) -> None:
    """One line, exit status 1, nothing half-visible; later the job goes on to the same bytes."""
    monkeypatch.setattr(fsspec.get_filesystem_class("s3"), "retries", 1)
    url = f"s3://photos/upload-{fault}-{suffix[1:]}"
    write_tar(tmp_path / "source" / "0.tar", img2dataset_members(records[0], 0))
    arguments = ("shard", "build", "source.kind=tar", f"source.path={tmp_path}/source", "workers=1")
    assert command(*arguments, f"output={tmp_path / 'out'}").status == 0

    store.plan = lambda request, _: (
        fault if request.operation == "put" and request.target.endswith(suffix) else None
    )
    ran = command(*arguments, f"output={url}")
    assert ran.status == 1
    error = ran.err.splitlines()[-1]
    assert error.startswith(f"error: {url}/")
    assert f"{suffix}: uploading failed 5 times in" in error
    assert "Traceback" not in ran.err

    expected = folder_bytes(tmp_path / "out")
    there = files(server, url)
    assert there.items() <= expected.items()
    if fault != LOST:  # then the store has it, whole
        assert not any(name.endswith(suffix) for name in there)

    store.plan = lambda *_: None
    assert command(*arguments, f"output={url}").status == 0
    assert files(server, url) == expected


def test_no_leftover_of_an_upload_stays_in_the_temporary_folder(
    store: FaultyStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has no name there, so that even kill -9 leaves nothing."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with storage.write_whole("s3://photos/unnamed/x") as file:
        file.write(DATA)
        file.flush()
        assert list(tmp_path.iterdir()) == []
    assert storage.read_bytes("s3://photos/unnamed/x") == DATA
    assert store.faults.total() == 0


def test_a_slow_store_is_waited_for(store: FaultyStore) -> None:
    store.plan = lambda *_: SLOW
    storage.write_bytes("s3://photos/slow/x", DATA)
    assert storage.read_bytes("s3://photos/slow/x") == DATA
    assert store.faults.keys() == {("put", SLOW), ("head", SLOW), ("read", SLOW)}
