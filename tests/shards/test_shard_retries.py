"""Retries are counted, those that the store's client makes by itself too."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import fsspec
import pytest

from hnpretrain.shards import retries, storage
from tests.support.faulty_store import (
    CUT,
    RESET,
    SILENT,
    SLOW,
    SLOW_DOWN,
    UNAVAILABLE,
    FaultyStore,
    before_the_bucket,
)

DATA = os.urandom(50_000)
URL = "s3://photos/retries/x.tar"


@pytest.fixture(params=["botocore, s3fs and we", "we alone"])
def store(
    bucket: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[FaultyStore]:
    assert bucket == "s3://photos"
    if request.param == "we alone":
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
        monkeypatch.setattr(fsspec.get_filesystem_class("s3"), "retries", 1)
    with before_the_bucket(monkeypatch) as proxy:
        storage.write_bytes(URL, DATA)
        yield proxy


@pytest.mark.parametrize("fault", [UNAVAILABLE, SLOW_DOWN, RESET, CUT, SILENT])
def test_each_repeated_read_is_one_retry(
    store: FaultyStore, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    times = 2
    if fault == SILENT:
        times = 1
        monkeypatch.setattr(fsspec.get_filesystem_class("s3"), "read_timeout", 1.5)
        fsspec.get_filesystem_class("s3").clear_instance_cache()
    store.plan = lambda request, number: (
        fault if request.operation == "read" and number < times else None
    )
    with retries.counted() as counter:
        assert storage.read_range(URL, 10, 40_000) == DATA[10:40_000]
        assert store.faults["read", fault] == times
        # aiohttp repeats by itself, once, what fails on a connection that it had kept open.
        assert counter.count == times or (fault == RESET and counter.count == times - 1)
        before = counter.count
        store.plan = lambda *_: None
        assert storage.read_range(URL, 20, 30_000) == DATA[20:30_000]
    assert counter.count == before


def test_what_goes_well_is_none(store: FaultyStore) -> None:
    store.plan = lambda *_: SLOW
    with retries.counted() as counter:
        for _ in range(3):
            assert storage.read_bytes(URL) == DATA
    assert counter.count == 0


def test_each_thread_counts_its_own(store: FaultyStore) -> None:
    store.plan = lambda request, number: (
        UNAVAILABLE if request.span == "bytes=0-999" and number < 3 else None
    )
    counts = {}

    def read(start: int) -> None:
        with retries.counted() as counter:
            storage.read_range(URL, start, start + 1000)
        counts[start] = counter.count

    threads = [threading.Thread(target=read, args=(1000 * number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counts == {0: 3, 1000: 0, 2000: 0, 3000: 0, 4000: 0, 5000: 0}
    storage.read_range(URL, 0, 1000)  # outside, nobody counts
