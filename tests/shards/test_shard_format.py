"""The format itself: tars, markers, index and storage."""

from __future__ import annotations

import dataclasses
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from hnpretrain.shards import storage, tar
from hnpretrain.shards.index import Index, read_index, write_index
from hnpretrain.shards.marker import Marker, Reject, marker_name
from hnpretrain.shards.schema import Caption, Negative, Sample, parse_metadata
from hnpretrain.shards.tar import END_OF_ARCHIVE, decode_sample, encode_sample, iterate_samples

RED_CAR = Caption("a red car", (Negative("a blue car", "color", "replace", "red", "blue", (2, 5)),))


def sample(key: str = "a", **changes: Any) -> Sample:
    return dataclasses.replace(Sample(key, b"image", "jpg", (RED_CAR,), {"id": 1}), **changes)


def test_a_sample_comes_back_from_its_bytes() -> None:
    assert decode_sample(encode_sample(sample())).sample() == sample()


def test_plain_tarfile_reads_the_members_in_order_of_their_names() -> None:
    data = encode_sample(sample("a")) + encode_sample(sample("b")) + END_OF_ARCHIVE
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        assert archive.getnames() == ["a.jpg", "a.json", "a.txt", "b.jpg", "b.json", "b.txt"]
        assert {info.mtime for info in archive} == {0}


def test_half_a_surrogate_pair_in_meta_survives() -> None:
    meta = {"title": "\ud800 caf\u00e9"}
    assert parse_metadata(sample(meta=meta).metadata_json())[1] == meta


@pytest.mark.parametrize("cut", [1, 512, 513, 700, 1024, 2048])
def test_a_tar_cut_anywhere_is_told_from_a_whole_one(cut: int) -> None:
    data = encode_sample(sample("a")) + encode_sample(sample("b"))
    assert len(list(iterate_samples(io.BytesIO(data + END_OF_ARCHIVE), whole=True))) == 2
    with pytest.raises(ValueError, match="not a whole tar"):
        list(iterate_samples(io.BytesIO(data[:-cut]), whole=True))


def test_a_broken_header_in_mid_archive_is_no_end() -> None:
    data = bytearray(encode_sample(sample("a")) + encode_sample(sample("b")) + END_OF_ARCHIVE)
    data[len(encode_sample(sample("a"))) + 5] ^= 0xFF
    with pytest.raises(ValueError, match="broken header"):
        list(iterate_samples(io.BytesIO(data)))


def test_data_behind_the_archive_s_end_is_told() -> None:
    """As `cat a.tar b.tar` leaves it, or a header that became zeros."""
    first, second = encode_sample(sample("a")), encode_sample(sample("b"))
    assert len(list(iterate_samples(io.BytesIO(first + bytes(50_000)), whole=True))) == 1
    for data, position in (
        (first + END_OF_ARCHIVE + second + END_OF_ARCHIVE, len(first) + len(END_OF_ARCHIVE)),
        (first + bytes(512) + second[512:] + END_OF_ARCHIVE, len(first) + 512),
        (first + bytes(50_000) + b"x", len(first) + 50_000),
    ):
        with pytest.raises(ValueError, match=f"data behind the archive's end at byte {position};"):
            list(iterate_samples(io.BytesIO(data), whole=True))


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE])
def test_header_extensions_without_end_are_refused(kind: bytes) -> None:
    """tarfile reads each inside the one before."""
    info = tarfile.TarInfo("x")
    info.type, info.size = kind, 10
    extension = info.tobuf(tarfile.GNU_FORMAT) + b"10 path=a\n".ljust(512, b"\0")
    with pytest.raises(ValueError, match="not a whole tar"):
        list(iterate_samples(io.BytesIO(extension * 2000 + encode_sample(sample()))))


def test_a_repeated_member_begins_another_sample() -> None:
    data = encode_sample(sample("a")) + encode_sample(sample("a", image=b"other"))
    assert [raw.members["jpg"] for raw in iterate_samples(io.BytesIO(data))] == [b"image", b"other"]


def test_names_without_key_or_extension_are_passed_over() -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in ("README", ".hidden", "folder/x.y.JPG"):
            archive.addfile(tarfile.TarInfo(name))
    buffer.seek(0)
    assert [(r.key, list(r.members)) for r in iterate_samples(buffer)] == [("folder/x", ["y.jpg"])]


def test_a_member_beyond_the_limit_is_named_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tar, "MAX_MEMBER_BYTES", 1000)
    data = encode_sample(sample("a", image=bytes(1001))) + encode_sample(sample("b"))
    large, small = iterate_samples(io.BytesIO(data))
    assert (large.too_large, "jpg" in large.members) == (["jpg"], False)
    assert small.sample() == sample("b")


def test_the_members_of_one_sample_are_bounded_together(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode_sample(sample("a", image=bytes(900)))
    monkeypatch.setattr(tar, "MAX_SAMPLE_BYTES", 905)
    (raw,) = iterate_samples(io.BytesIO(data))
    assert raw.too_large == ["json", "txt"]


def test_a_huge_extended_header_is_refused() -> None:
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, 2**40
    with pytest.raises(ValueError, match="a header of 1099511627776 bytes"):
        list(iterate_samples(io.BytesIO(info.tobuf(tarfile.GNU_FORMAT) + bytes(4096))))


def test_markers_and_index_come_back() -> None:
    marker = Marker(
        "00000.tar", 1, 10, "ab", (0, 5), (7,), concepts={"color": 2}, rejects={"bad": 1},
        rejected=(Reject("k", "bad", "why"),),
    )  # fmt: skip
    assert Marker.from_bytes(marker.to_bytes(), "here") == marker
    index = Index.of([dataclasses.replace(marker, name="1.tar"), marker])
    assert [shard.name for shard in index.shards] == ["00000.tar", "1.tar"]
    assert (index.samples, index.concepts, index.rejects) == (2, {"color": 4}, {"bad": 2})
    assert Index.from_bytes(index.to_bytes(), "here") == index
    assert marker_name("00000.tar") == "00000.marker.json"


@pytest.mark.parametrize(
    "data, message",
    [
        (b"\xff", "not JSON"),
        (b"[]", "not of format 1"),
        (b'{"format": 2}', "not of format 1"),
        (b'{"format": 1, "rejected": [], "offsets": [0]}', "not a marker"),
    ],
)
def test_a_broken_marker_says_what_is_wrong(data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=f"^here: {message}"):
        Marker.from_bytes(data, "here")


def test_offsets_must_fit_the_samples() -> None:
    data = json.loads(Marker("a.tar", 2, 10, "ab", (0, 5), (1, 2)).to_bytes())
    with pytest.raises(ValueError, match="2 samples need 3 offsets, found 2"):
        Marker.from_bytes(json.dumps(data).encode(), "here")


def test_a_missing_index_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="finish `hnpretrain shard build`"):
        read_index(str(tmp_path))


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    with pytest.raises(TypeError), storage.write_whole(str(path)) as file:
        file.write(b"half" + None)  # type: ignore[operator]
    assert list(path.parent.iterdir()) == []
    storage.write_bytes(f"file://{path}", b"whole")
    assert {p.name: p.read_bytes() for p in path.parent.iterdir()} == {"file": b"whole"}


def test_leftovers_of_killed_writers_go(tmp_path: Path) -> None:
    for name in (".a.tar.17.tmp", ".b.tar.17.tmp", "a.tar"):
        (tmp_path / name).touch()
    storage.remove_leftovers(str(tmp_path / "a.tar"))
    assert sorted(p.name for p in tmp_path.iterdir()) == [".b.tar.17.tmp", "a.tar"]


def test_ranges_and_sizes(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    path.write_bytes(b"0123456789")
    assert storage.read_range(str(path), 3, 6) == b"345"
    assert storage.list_sizes(str(tmp_path), ".tar") == {"x.tar": 10}
    with pytest.raises(OSError, match="ends at byte 10, but 12 bytes were expected"):
        storage.read_range(str(path), 8, 12)
    with pytest.raises(FileNotFoundError):
        storage.read_bytes(str(tmp_path / "none"))


def test_patterns_find_files_and_links_to_files(tmp_path: Path) -> None:
    for name in ("1/a.tar", "1/b.txt", "1/.c.tar", "2/a.tar", "2/deep/a.tar"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "3").symlink_to(tmp_path / "1")
    (tmp_path / "2" / "link.tar").symlink_to(tmp_path / "1" / "a.tar")
    (tmp_path / "2" / "nowhere.tar").symlink_to(tmp_path / "none")
    (tmp_path / "2" / "folder.tar").mkdir()

    def found(pattern: str) -> list[str]:
        return [path.partition(f"{tmp_path}/")[2] for path in storage.find(pattern)]

    both = ["1/.c.tar", "1/a.tar", "2/a.tar", "2/link.tar", "3/.c.tar", "3/a.tar"]
    assert found(f"{tmp_path}/*/*.tar") == found(f"file://{tmp_path}/*/*.tar") == both
    assert found(f"{tmp_path}/[12]/?.tar") == ["1/a.tar", "2/a.tar"]
    assert found(f"{tmp_path}/*/deep/a.*") == ["2/deep/a.tar"]
    assert found(f"{tmp_path}/none/*.tar") == found(f"{tmp_path}/1/a.tar/*") == []
    with pytest.raises(ValueError, match=r"\*\* is not known; give each level of folders its \*"):
        storage.find(f"{tmp_path}/**/*.tar")
    assert storage.list_sizes(str(tmp_path / "2"), ".tar") == {"a.tar": 7, "link.tar": 7}


def test_failed_reads_are_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"0123456789")
    read, calls = fsspec.implementations.local.LocalFileSystem.cat_file, []

    def flaky(self: object, *arguments: object, **options: object) -> bytes:
        calls.append(1)
        if len(calls) < 3:
            raise OSError("connection reset")
        return bytes(read(self, *arguments, **options))

    monkeypatch.setattr(fsspec.implementations.local.LocalFileSystem, "cat_file", flaky)
    monkeypatch.setattr(storage.time, "sleep", lambda _: None)
    assert storage.read_bytes(str(path)) == b"0123456789"
    calls.clear()
    monkeypatch.setattr(storage, "_ATTEMPTS", 2)
    with pytest.raises(OSError, match="reading at byte 0 failed 2 times in 0 s: connection reset"):
        storage.read_range(str(path), 0, 10)


def test_shells_and_unknown_schemes_are_refused() -> None:
    with pytest.raises(ValueError, match="run a shell and are refused"):
        storage.read_bytes("pipe:cat /etc/hostname")
    with pytest.raises(ValueError, match="nosuch"):
        storage.read_bytes("nosuch://x")


def test_a_member_that_claims_exabytes_is_refused_at_once() -> None:
    for name in ("a.jpg", "folder", "a.bin"):
        info = tarfile.TarInfo(name)
        info.size = 2**60
        header = info.tobuf(format=tarfile.GNU_FORMAT)
        with pytest.raises(ValueError, match="not a whole tar: cut short"):
            list(iterate_samples(io.BytesIO(header + b"x" * 100)))


def test_a_header_of_digits_does_not_keep_tarfile_busy() -> None:
    """CVE-2024-6232: quadratic time in the size of a pax header."""
    info = tarfile.TarInfo("pax")
    info.type, info.size = tarfile.XHDTYPE, 2**20
    data = info.tobuf(format=tarfile.USTAR_FORMAT) + b"1" * info.size
    with pytest.raises(ValueError, match="a header of 1048576 bytes"):
        list(iterate_samples(io.BytesIO(data)))


@pytest.mark.parametrize(
    "change",
    [
        {"samples": None}, {"samples": "1"}, {"samples": -1}, {"samples": True},
        {"offsets": [5, 2]}, {"offsets": [0, float("inf")]}, {"offsets": [0, "10"]}, {"offsets": 5},
        {"crc32": None}, {"crc32": []}, {"crc32": [-1]}, {"crc32": [1, 2]},
        {"negatives": 1.5}, {"captions_with_negatives": "x"}, {"concepts": 5},
        {"strategies": {"replace": "x"}}, {"rejects": 5}, {"candidates_rejected": []},
        {"rejected": 5}, {"rejected": [5]},
        {"rejected": [{"key": 5, "reason": "x", "detail": "x"}]},
        {"name": 5}, {"sha256": None}, {"source_fingerprint": 5}, {"unknown": 5},
    ],
)  # fmt: skip
def test_a_damaged_marker_is_a_value_error(change: dict[str, Any]) -> None:
    marker = Marker("a.tar", samples=1, bytes=10, sha256="0", offsets=(0, 10), crc32=(7,))
    value = {**json.loads(marker.to_bytes()), **change}
    with pytest.raises(ValueError, match="where: "):
        Marker.from_bytes(json.dumps(value).encode(), "where")


@pytest.mark.parametrize(
    "change", [{"samples": "1"}, {"samples": -1}, {"bytes": None}, {"name": 5}]
)
def test_a_damaged_index_is_a_value_error(change: dict[str, Any]) -> None:
    marker = Marker("a.tar", samples=1, bytes=10, sha256="0", offsets=(0, 10), crc32=(7,))
    value = json.loads(Index.of([marker]).to_bytes())
    value["shards"][0].update(change)
    with pytest.raises(ValueError, match="where: "):
        Index.from_bytes(json.dumps(value).encode(), "where")


@pytest.mark.parametrize(
    "change",
    [
        {"shards": 5}, {"shards": [5]}, {"captions": float("inf")},
        {"captions_with_negatives": "x"}, {"concepts": 5}, {"rejects": {"x": None}}, {"unknown": 5},
    ],
)  # fmt: skip
def test_a_damaged_count_of_an_index_is_a_value_error(change: dict[str, Any]) -> None:
    value = {**json.loads(Index.of([]).to_bytes()), **change}
    with pytest.raises(ValueError, match="where: "):
        Index.from_bytes(json.dumps(value).encode(), "where")


def test_leftovers_of_a_killed_index_write_are_removed(tmp_path: Path) -> None:
    leftover = tmp_path / ".index.json.123.tmp"
    leftover.write_bytes(b"half")
    write_index(str(tmp_path), Index.of([]))
    assert not leftover.exists()
    assert read_index(str(tmp_path)) == Index.of([])


def test_a_store_out_of_reach_is_an_os_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "none")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "none")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr(storage.time, "sleep", lambda _: None)
    monkeypatch.setattr(storage, "_ATTEMPTS", 1)
    forget = fsspec.get_filesystem_class("s3").clear_instance_cache
    forget()
    try:
        for talk in (storage.exists, storage.read_bytes, storage.size, storage.remove):
            with pytest.raises(OSError, match="s3://bucket/x"):
                talk("s3://bucket/x")
    finally:
        forget()


def test_a_store_that_fails_while_reading_is_an_os_error(monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing(MemoryFileSystem):
        protocol = "failing"

        def cat_file(self, *_: object, **__: object) -> bytes:
            raise RuntimeError("the connection was cut")

    monkeypatch.setattr(storage.time, "sleep", lambda _: None)
    fsspec.register_implementation("failing", Failing, clobber=True)
    fsspec.filesystem("failing").pipe_file("failing://x.tar", b"x")
    message = "failing://x.tar: reading at byte 0 failed 5 times in 0 s: the connection was cut"
    with pytest.raises(OSError, match=message), storage.open_read("failing://x.tar") as file:
        file.read()
