"""What stands in for broken samples: always something, the same from wherever a run begins."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from hnpretrain.data import streams
from hnpretrain.data.ledger import Ledger
from hnpretrain.data.loader import Position
from hnpretrain.shards import storage
from hnpretrain.shards.marker import read_marker
from tests.support.datasets import tile, write_members
from tests.support.loading import batches, loader, number_at, same


def cut_jpeg() -> bytes:
    """Its header is whole, so that `shard index` takes it."""
    buffer = io.BytesIO()
    Image.effect_noise((64, 64), 90).save(buffer, "JPEG")
    return buffer.getvalue()[:-300]


def write(folder: Path, count: int, per_shard: int, broken: Iterable[int] = ()) -> Path:
    samples = []
    for number in range(count):
        good = tile(number)
        samples.append((f"{number:06d}", {"json": good.metadata_json(), "png": good.image}))
    for number in broken:
        del samples[number][1]["png"]
        samples[number][1]["jpg"] = cut_jpeg()
    write_members(folder, samples, per_shard)
    return folder


def take(folder: Path, start: Position, epochs: int, **settings: Any) -> list[tuple]:
    return batches(loader(folder, on_bad_shard="skip", **settings), start, epochs)


def ledger_of(seen: list[tuple]) -> Ledger:
    ledger = Ledger()
    for _, _, tally in seen:
        ledger.add(tally.ledger)
    return ledger


def assert_goes_on(
    folder: Path, whole: list[tuple], starts: Iterable[int], **settings: Any
) -> None:
    """A run from each of these steps gives what one from the beginning gives there."""
    for step in starts:
        epochs = 1 + whole[-1][0].epoch
        rest = take(folder, whole[step][0], epochs, **settings)
        assert len(rest) == len(whole) - step
        for (_, a, told), (_, b, expected) in zip(rest, whole[step:], strict=True):
            assert same(a, b)
            assert told.ledger.rejected == expected.ledger.rejected


def test_the_only_sample_of_a_short_last_block(tmp_path: Path) -> None:
    plan = loader(write(tmp_path / "whole", 100, 13), batch_size=4).plan
    assert plan.block_at(0, 24) == (4, 24, 25)
    number = number_at(plan, 0, 0, 24)
    folder = write(tmp_path / "broken", 100, 13, [number])
    seen = take(folder, Position(), 1, batch_size=4)
    assert len(seen) == 25
    assert ledger_of(seen) == Ledger(read=100, rejected={"broken_image": 1})
    assert [(r.key, r.reason) for r in seen[24][2].rejects] == [(f"{number:06d}", "broken_image")]
    assert not any(f"{number:06d}" in batch.keys for _, batch, _ in seen)
    assert_goes_on(folder, seen, [24], batch_size=4)


@pytest.mark.parametrize("of_streams", [1, 4])
def test_a_shard_of_images_that_cannot_be_decoded(tmp_path: Path, of_streams: int) -> None:
    """Its bytes are whole. Each is told once an epoch, and others are shown in its place."""
    bad = range(50, 150)
    folder = write(tmp_path, 400, 100, bad)
    settings = {"streams": of_streams, "block_size": 16}
    whole = take(folder, Position(), 2, **settings)
    assert len(whole) == 100
    assert ledger_of(whole) == Ledger(read=800, rejected={"broken_image": 200})
    for epoch in range(2):
        named = [r.key for p, _, tally in whole if p.epoch == epoch for r in tally.rejects]
        assert sorted(named) == [f"{number:06d}" for number in bad]
    keys = {key for _, batch, _ in whole for key in batch.keys}
    assert not keys & {f"{number:06d}" for number in bad}
    # No other sample is shown over and over.
    shown = Counter(key for p, batch, _ in whole if p.epoch == 0 for key in batch.keys)
    assert max(shown.values()) <= 12
    assert_goes_on(folder, whole, [10, 21, 63], **settings)
    if of_streams > 1:
        for workers in (0, 2):
            parts = [
                take(folder, Position(), 2, rank=rank, world_size=2, workers=workers, **settings)
                for rank in (0, 1)
            ]
            for step, (_, batch, _) in enumerate(whole):
                keys = [key for part in parts for key in part[step][1].keys]
                assert sorted(keys) == sorted(batch.keys)


def test_broken_samples_are_not_decoded_over_and_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write(tmp_path, 400, 100, range(100, 300))
    tried = []
    original = streams._decode

    def decode(stored, decode):
        tried.append(stored.where)
        return original(stored, decode)

    monkeypatch.setattr(streams, "_decode", decode)
    seen = take(folder, Position(), 1, streams=1, block_size=20)
    assert ledger_of(seen).lost == 200
    # Once for each, once for what stands in for it, and 8 in each other block that is tried.
    assert len(tried) <= 400 + 200 + 10 * 8 * 9
    assert max(Counter(tried).values()) <= 30


@pytest.mark.parametrize("kind", ["missing", "cut"])
def test_a_run_goes_on_among_many_bad_shards(tmp_path: Path, kind: str) -> None:
    """30 in a row: one that begins there knows none of them."""
    settings = {"streams": 1, "block_size": 4, "batch_size": 2}
    plan = loader(write(tmp_path / "whole", 400, 4), **settings).plan
    line = [plan.block(0, 0, position).runs[0].shard for position in range(0, 400, 4)]
    bad = line[60:90]
    broken = [4 * shard + n for shard in bad for n in range(4)] if kind == "cut" else []
    folder = write(tmp_path / "broken", 400, 4, broken)
    if kind == "missing":
        for shard in bad:
            (folder / f"{4 * shard:06d}.tar").unlink()
    whole = take(folder, Position(), 1, **settings)
    ledger = ledger_of(whole)
    assert (ledger.read, ledger.lost) == (400, 120)
    assert_goes_on(folder, whole, [119, 131, 150, 162, 178], **settings)


def test_what_stands_in_does_not_depend_on_reads_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Looking for stand-ins may find out of a shard before its turn comes, or after that."""
    settings = {"streams": 1, "block_size": 10}
    folder = write(tmp_path, 200, 20)
    plan = loader(folder, **settings).plan
    shard = plan.block(0, 0, 60).runs[0].shard
    cut = plan.block(0, 0, 40).runs[0].shard
    folder = write(tmp_path, 200, 20, range(20 * cut, 20 * cut + 20))
    name = f"{20 * shard:06d}.tar"
    middle = read_marker(str(folder), name).offsets[10]
    original = storage.read_range

    def read_range(path: str, start: int, end: int) -> bytes:
        if path.endswith(name) and start >= middle:
            raise OSError("the second half is lost")
        return original(path, start, end)

    monkeypatch.setattr(storage, "read_range", read_range)
    runs = [take(folder, Position(), 1, workers=workers, **settings) for workers in (0, 1)]
    assert [ledger_of(run).rejected for run in runs] == [
        {"broken_image": 20, "shard_unreadable": 10}
    ] * 2
    assert all(same(a, b) for (_, a, _), (_, b, _) in zip(*runs, strict=True))


def test_nothing_to_stand_in_says_what_to_do(tmp_path: Path) -> None:
    folder = write(tmp_path, 40, 10, range(40))
    with pytest.raises(ValueError, match=r"^nothing can stand in .*\.tar sample \d: .*verify") as e:
        take(folder, Position(), 1)
    assert "\n" not in str(e.value)


def test_a_few_good_samples_are_enough(tmp_path: Path) -> None:
    """As long as data.max_reject_share allows for it."""
    good = range(3, 40, 8)
    folder = write(tmp_path, 40, 10, set(range(40)) - set(good))
    seen = take(folder, Position(), 1)
    assert ledger_of(seen).lost == 35
    keys = {key for _, batch, _ in seen for key in batch.keys}
    assert keys == {f"{number:06d}" for number in good}
