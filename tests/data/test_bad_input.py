"""Every kind of bad data, met while streaming: counted, named, replaced, the same everywhere."""

from __future__ import annotations

import io
import json
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import open_clip
import pytest
import torch
from PIL import Image

from hnpretrain.data import streams
from hnpretrain.data.ledger import Ledger
from hnpretrain.data.loader import DataSettings, Loader, Position, make_plan
from hnpretrain.data.mixture import read_mixture
from hnpretrain.data.streams import BadShard
from hnpretrain.models.tokenizer import fast_tokenizer
from hnpretrain.shards import storage
from hnpretrain.shards.marker import read_marker
from hnpretrain.shards.tar import END_OF_ARCHIVE
from shard_tools.indexing import index_tars
from tests.support.datasets import tar_bytes, tile, write_members
from tests.support.loading import PADDED, batches, loader, number_at, same, transform

PER_SHARD = 13
STEPS = 12
# One sample in the middle of a shard; each case damages this one.
BROKEN = 30
SHARD = "000026.tar"


def members(number: int) -> dict[str, bytes]:
    sample = tile(number)
    return {"json": sample.metadata_json(), "png": sample.image}


def jpeg() -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise((64, 64), 90).save(buffer, "JPEG")
    return buffer.getvalue()


def giant() -> bytes:
    """The header of a PNG of 10^10 pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    checked = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + checked + struct.pack(">I4sI", 0, b"IDAT", zlib.crc32(b"IDAT"))


def strip() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (16, 900)).save(buffer, "PNG")
    return buffer.getvalue()


@dataclass
class Case:
    """What is wrong with sample BROKEN.

    Attributes:
        change: its members, to what they are then.
        reason, detail: what is told of it.
    """

    change: Callable[[dict[str, bytes]], dict[str, bytes]]
    reason: str
    detail: str


def without(name: str) -> Callable[[dict[str, bytes]], dict[str, bytes]]:
    return lambda good: {key: good[key] for key in good if key != name}


SAMPLES = {
    "cut jpg": Case(
        lambda good: {**without("png")(good), "jpg": jpeg()[:-300]}, "broken_image", ""
    ),
    "empty image": Case(lambda good: {**good, "png": b""}, "empty_image", "0 bytes"),
    "no image": Case(without("png"), "bad_member", "no image among"),
    "other bytes": Case(lambda good: {**good, "png": b"<html>"}, "not_an_image", "<html>"),
    "giant image": Case(lambda good: {**good, "png": giant()}, "too_many_pixels", "100000"),
    "missing json": Case(without("json"), "bad_member", "neither .txt nor"),
    "broken json": Case(lambda good: {**good, "json": b'{"capt'}, "bad_member", "JSON"),
    "half a surrogate pair": Case(
        lambda good: {**good, "json": b'{"captions": [{"text": "a \\ud800 car"}]}'},
        "bad_member",
        "no valid Unicode",
    ),
    "no caption": Case(lambda good: {**good, "json": b'{"captions": []}'}, "bad_member", "caption"),
    "empty caption": Case(
        lambda good: {**good, "json": b'{"captions": [" "]}'}, "bad_member", "a caption is empty"
    ),
    "broken UTF-8": Case(
        lambda good: {**without("json")(good), "txt": b"a caf\xe9"}, "bad_member", "a string"
    ),
    "strip": Case(lambda good: {**good, "png": strip()}, "too_elongated", "16 x 900"),
    "format that runs programs": Case(
        lambda good: {**good, "png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"},
        "not_an_image",
        "PS-Adobe",
    ),
}

# What is odd, and none the worse.
ODD = {
    "long": ["car " * 25_000],
    "other scripts": ["\u732b\u304c\u5bdd\u3066\u3044\u308b", "\u0643\u0644\u0628", "\U0001f408"],
    "control characters": ["a\x00 red\x1b[31m\x07 car\u202e"],
    "ten thousand": [f"caption {number}" for number in range(10_000)],
}


def write(folder: Path, case: str = "") -> Path:
    samples = [(f"{number:06d}", members(number)) for number in range(100)]
    if case:
        samples[BROKEN] = (samples[BROKEN][0], SAMPLES[case].change(members(BROKEN)))
    write_members(folder, samples, PER_SHARD)
    return folder


def flip_header(folder: Path) -> None:
    """In the header of the sample's second member, so that tarfile would lose what follows."""
    place = read_marker(str(folder), SHARD).offsets[BROKEN - 26] + 1024
    data = bytearray((folder / SHARD).read_bytes())
    data[place + 150] ^= 0xFF
    (folder / SHARD).write_bytes(data)


def truncate(folder: Path) -> None:
    with (folder / SHARD).open("r+b") as file:
        file.truncate(5000)


def exchange_marker(folder: Path) -> None:
    (folder / "000026.marker.json").write_bytes((folder / "000039.marker.json").read_bytes())


SHARDS: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing shard": (lambda folder: (folder / SHARD).unlink(), "No such file"),
    "missing marker": (lambda folder: (folder / "000026.marker.json").unlink(), "No such file"),
    "broken marker": (lambda folder: (folder / "000026.marker.json").write_bytes(b"{"), "not JSON"),
    "wrong marker": (exchange_marker, "does not agree with the index"),
    "shorter than its marker": (truncate, "5000 bytes, "),
}


def read_all(folder: Path, world_size: int = 1, workers: int = 0) -> tuple[list[list], Ledger, set]:
    """(batches of each rank, the summed ledger, names of rejects) of two epochs."""
    ledger, named = Ledger(), []
    ranks = []
    for rank in range(world_size):
        seen = batches(loader(folder, rank, world_size, workers=workers, on_bad_shard="skip"))
        assert len(seen) == 2 * STEPS
        assert all(len(batch.keys) == 8 // world_size for _, batch, _ in seen)
        for position, _, tally in seen:
            ledger.add(tally.ledger)
            named += [(position.epoch, reject) for reject in tally.rejects]
        ranks.append(seen)
    assert len(named) == len(set(named))
    return ranks, ledger, set(named)


def shown(folder: Path, numbers: range) -> int:
    """How many of these samples two epochs show; some are left out of each."""
    plan = loader(folder).plan
    return sum(
        number_at(plan, epoch, stream, place) in numbers
        for epoch in range(2)
        for stream in range(plan.streams)
        for place in range(2 * STEPS)
    )


@pytest.mark.parametrize("name", SAMPLES)
def test_a_bad_sample(tmp_path: Path, name: str) -> None:
    folder, case = write(tmp_path, name), SAMPLES[name]
    times = shown(folder, range(BROKEN, BROKEN + 1))
    assert times
    for world_size in (1, 2):
        ranks, ledger, named = read_all(folder, world_size)
        assert ledger == Ledger(read=192, rejected={case.reason: times})
        assert len(named) == times
        for _, reject in named:
            assert (reject.key, reject.reason) == (f"{BROKEN:06d}", case.reason)
            assert reject.detail.startswith(f"{folder / SHARD} sample 4: ")
            assert case.detail in reject.detail
        assert not any(f"{BROKEN:06d}" in batch.keys for rank in ranks for _, batch, _ in rank)


@pytest.mark.parametrize("name", ODD)
def test_odd_captions_are_trained_on(tmp_path: Path, name: str) -> None:
    """By the tokenizer of the models."""
    samples = [(f"{number:06d}", members(number)) for number in range(16)]
    samples[5][1]["json"] = json.dumps({"captions": ODD[name]}).encode()
    write_members(tmp_path, samples, PER_SHARD)
    settings = DataSettings(shards=str(tmp_path), streams=1, workers=0)
    mixture = read_mixture(settings.weights)
    plan = make_plan(settings, mixture, batch_size=8, seed=0, world_size=1)
    tokenize = fast_tokenizer(open_clip.get_tokenizer("ViT-B-32"))
    reading = Loader(settings, mixture, plan, transform, tokenize, PADDED, 0, 1)
    seen = batches(reading, epochs=1)
    assert all(tally.is_plain for _, _, tally in seen)
    rows = {key: row for _, b, _ in seen for key, row in zip(b.keys, b.texts.token_NL, strict=True)}
    assert len(rows) == 16
    assert any(torch.equal(rows["000005"], tokenize([text])[0]) for text in ODD[name])


def cut_between_members(data: bytes) -> bytes:
    """Where a sample's .txt would begin, the last member of its sample."""
    return data[: data.index(b"000010.txt")]


CUTS: dict[str, Callable[[bytes], bytes]] = {
    "between members": cut_between_members,
    "in a header": lambda data: cut_between_members(data) + data[:100],
    "in a payload": lambda data: data[: data.index(b"000010.png") + 530],
}


@pytest.mark.parametrize("name", CUTS)
def test_tars_of_others_that_are_cut(tmp_path: Path, name: str) -> None:
    """The index tells what is lost; the rest is streamed, the same at every number of ranks."""
    folder = foreign(tmp_path, [(f"{number:06d}", number) for number in range(64)])
    first = folder / "0.tar"
    first.write_bytes(CUTS[name](first.read_bytes()))
    done = index_tars(str(folder), "", workers=1, max_pixels=10**8, max_reject_share=1)
    assert "000010" in str(read_marker(str(folder), "0.tar").rejected)
    check_streams(folder, {f"{number:06d}" for number in (*range(10), *range(32, 64))})
    assert done.index.samples == 42


def test_tars_of_others_in_disorder(tmp_path: Path) -> None:
    """A key that comes again, in a tar and in another one."""
    numbers = [5, 3, 9, 5, 1, *range(20, 50)]
    folder = foreign(tmp_path, [(f"{number:06d}", number) for number in numbers])
    index_tars(str(folder), "", workers=1, max_pixels=10**8, max_reject_share=1)
    check_streams(folder, {f"{number:06d}" for number in numbers})


def foreign(folder: Path, samples: list[tuple[str, int]]) -> Path:
    """Tars as img2dataset writes them, of 32 samples each, without markers."""
    for start in range(0, len(samples), 32):
        parts = []
        for key, number in samples[start : start + 32]:
            good = members(number)
            parts.append(tar_bytes(key, {"png": good["png"], "txt": b"tile %d" % number}))
        (folder / f"{start // 32}.tar").write_bytes(b"".join(parts) + END_OF_ARCHIVE)
    return folder


def check_streams(folder: Path, keys: set[str]) -> None:
    """Nothing is rejected on the way, and two epochs show all of these keys and no others."""
    for world_size in (1, 2):
        ranks = [
            batches(loader(folder, rank, world_size, negatives=0)) for rank in range(world_size)
        ]
        steps = {len(rank) for rank in ranks}
        assert len(steps) == 1
        assert all(tally.is_plain for rank in ranks for _, _, tally in rank)
        assert {key for rank in ranks for _, batch, _ in rank for key in batch.keys} == keys


def test_damaged_bytes(tmp_path: Path) -> None:
    """The sample is refused by its checksum, after a second read; its neighbours are not."""
    folder = write(tmp_path)
    flip_header(folder)
    times = shown(folder, range(BROKEN, BROKEN + 1))
    for world_size in (1, 2):
        _, ledger, named = read_all(folder, world_size)
        assert ledger.rejected == {"checksum_mismatch": times}
        assert ledger.retries >= times
        places = {reject.detail.split(":")[0] for _, reject in named}
        assert places == {f"{folder / SHARD} sample 4"}


def test_bytes_that_were_damaged_on_their_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second read finds them well: nothing is lost, and a retry is told."""
    folder = write(tmp_path)
    whole, _, _ = read_all(folder)
    original, damaged = storage.read_range, set()

    def read_range(path: str, start: int, end: int) -> bytes:
        data = original(path, start, end)
        if path.endswith(".tar") and (path, start, end) not in damaged:
            damaged.add((path, start, end))
            return data[:700] + bytes([data[700] ^ 1]) + data[701:]
        return data

    monkeypatch.setattr(storage, "read_range", read_range)
    seen, ledger, named = read_all(folder)
    assert (ledger.read, ledger.lost, named) == (192, 0, set())
    assert ledger.retries == len(damaged) > 20
    pairs = zip(whole[0], seen[0], strict=True)
    assert all(same(a, b) for (_, a, _), (_, b, _) in pairs)


@pytest.mark.parametrize("name", SHARDS)
def test_a_bad_shard(tmp_path: Path, name: str) -> None:
    folder = write(tmp_path)
    damage, why = SHARDS[name]
    damage(folder)
    times = shown(folder, range(26, 39))
    for world_size in (1, 2):
        ranks, ledger, named = read_all(folder, world_size)
        assert named == set()  # the shard is named, once
        assert ledger.rejected == {"shard_unreadable": times}
        assert list(ledger.quarantined) == [str(folder / SHARD)]
        assert why in ledger.quarantined[str(folder / SHARD)]
        keys = {key for rank in ranks for _, batch, _ in rank for key in batch.keys}
        assert not keys & {f"{number:06d}" for number in range(26, 39)}

    with pytest.raises(BadShard) as raised:
        batches(loader(folder))
    line = str(raised.value)
    assert line.startswith(f"shard {folder / SHARD}: ")
    assert why in line
    assert "\n" not in line


@pytest.fixture(scope="module")
def rotten(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All at once: a bad sample, damaged bytes, a shard that is missing and one that is short."""
    folder = write(tmp_path_factory.mktemp("rotten"), "cut jpg")
    data = bytearray((folder / "000000.tar").read_bytes())
    data[700] ^= 1
    (folder / "000000.tar").write_bytes(data)
    (folder / "000052.tar").unlink()
    with (folder / "000078.tar").open("r+b") as file:
        file.truncate(9000)
    return folder


@pytest.fixture(scope="module")
def alone(rotten: Path) -> tuple[list[list], Ledger, set]:
    return read_all(rotten)


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_ledger_and_batches_are_the_same_for_all_ranks_and_workers(
    rotten: Path, alone: tuple[list[list], Ledger, set], world_size: int, workers: int
) -> None:
    """What stands in for what is the same, too."""
    (whole,), ledger, named = alone
    parts, summed, seen = read_all(rotten, world_size, workers)
    assert ledger.rejected.keys() == {"broken_image", "checksum_mismatch", "shard_unreadable"}
    assert len(ledger.quarantined) == 2
    assert (summed.read, summed.rejected, summed.quarantined, seen) == (
        ledger.read, ledger.rejected, ledger.quarantined, named
    )  # fmt: skip
    for step, (_, batch, _) in enumerate(whole):
        keys = [key for part in parts for key in part[step][1].keys]
        assert sorted(keys) == sorted(batch.keys)


@pytest.mark.parametrize("start", [Position(0, 1), Position(0, 7), Position(1, 5)])
def test_resuming_among_bad_shards_gives_the_same_batches(
    rotten: Path, alone: tuple[list[list], Ledger, set], start: Position
) -> None:
    (whole,), _, _ = alone
    rest = batches(loader(rotten, on_bad_shard="skip"), start)
    expected = whole[start.epoch * STEPS + start.step :]
    assert all(same(a, b) for (_, a, _), (_, b, _) in zip(rest, expected, strict=True))
    lost = [sum(tally.ledger.lost for _, _, tally in seen) for seen in (rest, expected)]
    assert lost[0] == lost[1] > 0


def test_streams_that_lie_in_a_bad_shard_are_served_by_others(tmp_path: Path) -> None:
    samples = [(f"{number:06d}", members(number)) for number in range(100)]
    write_members(tmp_path, samples, per_shard=50)
    (tmp_path / "000050.tar").unlink()
    seen = batches(loader(tmp_path, on_bad_shard="skip"), epochs=1)
    assert len(seen) == STEPS
    assert sum(tally.ledger.lost for _, _, tally in seen) == 48
    assert all(key < "000050" for _, batch, _ in seen for key in batch.keys)
    # Those of one stream are different ones.
    assert all(batch.keys[i] != batch.keys[i + 1] for _, batch, _ in seen for i in (0, 2, 4, 6))


def test_nothing_that_can_be_read_is_an_error_that_names_shards(tmp_path: Path) -> None:
    folder = write(tmp_path)
    for path in folder.glob("*.tar"):
        path.unlink()
    with pytest.raises(ValueError, match=r"^nothing can stand in .*0000\d\d\.tar: .*No such file"):
        batches(loader(folder, on_bad_shard="skip"))


def test_a_shard_that_fails_is_tried_once_by_each_stream_and_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A read that failed after all its retries takes long: not for every block of the shard."""
    folder = write(tmp_path)
    original, tried = storage.read_range, []

    def read_range(path: str, start: int, end: int) -> bytes:
        if path.endswith(SHARD):
            tried.append(path)
            raise OSError("reading failed 5 times")
        return original(path, start, end)

    monkeypatch.setattr(streams.storage, "read_range", read_range)
    _, ledger, _ = read_all(folder)
    assert ledger.rejected == {"shard_unreadable": shown(folder, range(26, 39))}
    plan = loader(folder).plan
    touching = sum(
        any(
            run.shard == 2
            for place in range(2 * STEPS)
            for run in plan.block(epoch, stream, place).runs
        )
        for epoch in range(2)
        for stream in range(plan.streams)
    )
    assert len(tried) == touching
