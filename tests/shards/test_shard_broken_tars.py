"""Source tars that are cut, mixed up or damaged: what is lost is counted and named."""

from __future__ import annotations

import random
import tarfile
from pathlib import Path

import pytest

from hnpretrain.shards import storage
from hnpretrain.shards.marker import Reject, read_marker
from shard_tools.job import BuildSettings, build
from shard_tools.sources import SourceSample, SourceSettings, plan_source
from tests.shards.conftest import PHOTOS, write_tar

# Images of no, one and two blocks, and names beyond the 100 letters of a plain header.
MEMBERS = [
    ("a.jpg", b"A" * 100), ("a.txt", b"a car"), ("a.json", b'{"x": 1}'),
    ("b.jpg", b"B" * 512), ("b.txt", b"a dog"),
    ("c" * 120 + ".jpg", b"C" * 1000), ("c" * 120 + ".txt", b"a cat"),
    ("d.jpg", b"D" * 1024), ("d.txt", b"a bus"),
]  # fmt: skip


def read(path: Path) -> tuple[list[SourceSample], list[Reject]]:
    (shard,) = plan_source(SourceSettings("tar", str(path)), 1)
    items = list(shard.read())
    return (
        [item for item in items if isinstance(item, SourceSample)],
        [item for item in items if isinstance(item, Reject)],
    )


def test_a_tar_that_is_cut_anywhere(tmp_path: Path) -> None:
    """Inside headers and payloads, between members, and at both ends of each."""
    path = tmp_path / "x.tar"
    write_tar(path, MEMBERS)
    whole = path.read_bytes()
    with tarfile.open(path) as archive:
        infos = archive.getmembers()
    expected, rejects = read(path)
    assert (len(expected), rejects) == (4, [])
    end = infos[-1].offset_data + 512
    for start in (*(info.offset for info in infos), end):
        for cut in (start + more for more in (0, 1, 300, 511, 512, 513, 700, 1023)):
            path.write_bytes(whole[:cut])
            samples, rejects = read(path)
            if cut > end:  # no member begins with a zero
                assert (samples, rejects) == (expected, [])
                continue
            ((key, reason, detail),) = [(r.key, r.reason, r.detail) for r in rejects]
            assert (key, reason) == ("x.tar", "broken_tar")
            assert detail.startswith("not a whole tar: ")
            # Left out is the sample whose members were being read, and that is told.
            begun = {info.name.split(".")[0]: True for info in infos if info.offset_data <= cut}
            assert samples == expected[: max(0, len(begun) - 1)]
            assert not begun or f"; its last sample, '{[*begun][-1]}', is left out" in detail


@pytest.mark.parametrize("seed", range(8))
def test_a_tar_that_is_damaged_at_random(tmp_path: Path, seed: int) -> None:
    """Whatever was overwritten, moved or repeated, reading ends, and says so unless it was data."""
    draw = random.Random(seed)
    path = tmp_path / "x.tar"
    write_tar(path, MEMBERS)
    whole = path.read_bytes()
    for _ in range(100):
        data = bytearray(whole)
        for _ in range(draw.randint(1, 3)):
            start, size = draw.randrange(len(data)), draw.choice([1, 8, 512, 2000])
            end = min(len(data), start + size)
            match draw.randrange(4):
                case 0:
                    data[start:end] = draw.randbytes(end - start)
                case 1 if any(data[end:]):  # else it is a shorter tar, and nobody can tell
                    data[start:end] = bytes(end - start)
                case 2:
                    del data[start:end]
                case 3:
                    data[start:start] = data[start:end]
        path.write_bytes(data)
        samples, rejects = read(path)
        read_keys = {sample.key for sample in samples}
        named = {reject.key for reject in rejects}
        assert "x.tar" in named or read_keys | named >= {"a", "b", "d"}


def test_members_of_a_sample_that_stand_apart(tmp_path: Path) -> None:
    """A stream can't wait for the rest of a sample: both parts are named, with what they lack."""
    write_tar(
        tmp_path / "x.tar",
        [("a.jpg", b"A"), ("b.jpg", b"B"), ("b.txt", b"a dog"), ("a.txt", b"a car")],
    )
    samples, rejects = read(tmp_path / "x.tar")
    assert [sample.key for sample in samples] == ["b"]
    assert [(reject.key, reject.reason) for reject in rejects] == [
        ("a", "no_caption"), ("a", "missing_image"),
    ]  # fmt: skip
    # Any order within a sample is fine.
    write_tar(tmp_path / "x.tar", [("a.txt", b"a car"), ("a.json", b"{}"), ("a.jpg", b"A")])
    samples, rejects = read(tmp_path / "x.tar")
    assert ([sample.key for sample in samples], rejects) == (["a"], [])


def test_names_that_are_no_utf8(tmp_path: Path, photo: bytes) -> None:
    """They become keys of the allowed letters; in the marker they stand as escapes."""
    names = ["\udcff", "\udcfe"]  # what Python makes of the bytes ff and fe
    members = [(f"{names[0]}.jpg", photo), (f"{names[0]}.txt", b"a red car"),
               (f"{names[1]}.jpg", photo), (f"{names[1]}.\udcff", b"a"),
               (f"{names[1]}.json", b'{"x": "\\ud800"')]  # fmt: skip
    write_tar(tmp_path / "source" / "x.tar", members)
    settings = BuildSettings(
        SourceSettings("tar", str(tmp_path / "source")), str(tmp_path / "out"), workers=1
    )
    settings.max_reject_share = 0.5
    index = build(settings).index
    assert (index.samples, index.rejects) == (1, {"bad_json": 1})
    (reject,) = read_marker(str(tmp_path / "out"), "x.tar").rejected
    assert reject.key.startswith("_-")
    assert reject.detail.startswith("\udcfe.json: ")


def test_the_markers_name_what_each_broken_tar_lost(tmp_path: Path) -> None:
    photos = sorted((PHOTOS / "images").iterdir())[:3]
    good = [
        (f"{name}.{extension}", data)
        for name, photo in zip("abc", photos, strict=True)
        for extension, data in (("jpg", photo.read_bytes()), ("txt", b"a red car by a dog"))
    ]
    source = tmp_path / "source"
    for name in ("cut", "between", "header", "behind", "twice"):
        write_tar(source / f"{name}.tar", good)
    with tarfile.open(source / "cut.tar") as archive:
        last = archive.getmember("c.jpg")
    whole = (source / "cut.tar").read_bytes()
    (source / "cut.tar").write_bytes(whole[: last.offset_data + 1000])
    (source / "between.tar").write_bytes(whole[: last.offset])
    (source / "header.tar").write_bytes(whole[: last.offset + 100])
    (source / "behind.tar").write_bytes(whole + b"garbage")
    write_tar(source / "twice.tar", good + good[:2])
    settings = BuildSettings(SourceSettings("tar", str(source)), str(tmp_path / "out"), workers=2)
    settings.max_reject_share = 1
    index = build(settings).index
    assert index.samples == 2 + 1 + 1 + 2 + 3
    assert index.rejects == {"broken_tar": 4, "duplicate_key": 1}
    named = {}
    for shard in index.shards:
        (reject,) = read_marker(str(tmp_path / "out"), shard.name).rejected
        named[shard.name] = (reject.key, reject.detail.partition(": ")[2] or reject.detail)
    cut, header = "unexpected end of data", "a broken header: truncated header"
    end = "cut short: the zeros that end a tar are missing"
    assert named == {
        "cut.tar": ("cut.tar", f"{cut}; its last sample, 'c', is left out"),
        "between.tar": ("between.tar", f"{end}; its last sample, 'b', is left out"),
        "header.tar": ("header.tar", f"{header}; its last sample, 'b', is left out"),
        "behind.tar": (
            "behind.tar",
            f"data behind the archive's end at byte {len(whole)}; "
            "its last sample, 'c', is left out",
        ),
        "twice.tar": ("a", "an earlier sample of the shard has this key"),
    }
    assert storage.list_files(str(tmp_path / "out"), ".tar") == sorted(named)
