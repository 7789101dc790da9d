"""`hnpretrain shard index`: tars of others become a data set; what is wrong is named."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import hnpretrain.shards.tar
import shard_tools.indexing
from hnpretrain.data.loader import DataSettings, Loader, Position, make_plan
from hnpretrain.data.mixture import read_mixture
from hnpretrain.data.texts import TextLayout
from hnpretrain.shards.index import read_index
from hnpretrain.shards.lock import locked
from hnpretrain.shards.marker import Marker, read_marker
from hnpretrain.shards.tar import checksum, decode_sample
from shard_tools.indexing import Indexed, index_tars
from shard_tools.job import build
from shard_tools.verify import verify
from tests.shards.conftest import (
    PHOTOS,
    Ran,
    folder_bytes,
    img2dataset_members,
    photos_settings,
    png_bomb,
    write_tar,
)

Members = list[tuple[str, bytes]]


def index(folder: Path | str, place: Path | str = "", **changes: Any) -> Indexed:
    fields = {"workers": 1, "max_pixels": 10**8, "max_reject_share": 1.0, **changes}
    return index_tars(str(folder), str(place), **fields)


@pytest.fixture
def tars(tmp_path: Path, records: list[dict[str, Any]]) -> Path:
    """Three tars of img2dataset's, of four photos each."""
    folder = tmp_path / "tars"
    for number in range(3):
        members: Members = []
        for photo in range(4):
            members += img2dataset_members(records[4 * number + photo], 4 * number + photo)
        write_tar(folder / f"{number:05d}.tar", members)
    return folder


def streamed(place: Path | str, workers: int = 0) -> dict[str, tuple[int, str]]:
    """An epoch: of each key, the sum of its image and its caption's tokens."""

    def transform(image: Any) -> torch.Tensor:
        return torch.tensor(sum(image.convert("L").histogram()[128:])).float().view(1, 1, 1)

    def tokenize(texts: list[str]) -> torch.Tensor:
        return torch.tensor([[sum(text.encode()), len(text)] for text in texts])

    settings = DataSettings(shards=str(place), streams=2, workers=workers)
    mixture = read_mixture(settings.weights)
    plan = make_plan(settings, mixture, batch_size=2, seed=0, world_size=1)
    loader = Loader(settings, mixture, plan, transform, tokenize, TextLayout("padded"), 0, 1)
    seen = {}
    for _, (batch,), tally in loader.batches(Position(), 1):
        assert tally.is_plain
        for key, image, tokens in zip(
            batch.keys, batch.image_BCHW, batch.texts.token_NL, strict=True
        ):
            seen[key] = (int(image), str(tokens.tolist()))
    return seen


def samples_of(folder: Path, marker: Marker) -> list[tuple[str, str]]:
    """Keys and first captions, read from the ranges that a marker tells."""
    data = (folder / marker.name).read_bytes()
    parts = [data[start:stop] for start, stop in pairwise(marker.offsets)]
    assert [checksum(part) for part in parts] == list(marker.crc32)
    raws = [decode_sample(part) for part in parts]
    return [(raw.key, raw.captions()[0].text) for raw in raws]


def test_tars_of_img2dataset_are_streamed_as_they_are(
    tars: Path, records: list[dict[str, Any]]
) -> None:
    before = folder_bytes(tars)
    done = index(tars, workers=2)
    assert (done.made, done.kept) == (3, 0)
    assert done.index.samples == done.index.captions == 12
    assert done.index.max_negatives == 0
    assert read_index(str(tars)) == done.index
    after = folder_bytes(tars)
    assert {name: after[name] for name in before} == before
    assert set(after) - set(before) == {
        "00000.marker.json", "00001.marker.json", "00002.marker.json", "index.json",
    }  # fmt: skip
    expected = [" ".join(record["captions"][0].split()) for record in records[:12]]
    found = [
        sample
        for name in sorted(before)
        for sample in samples_of(tars, read_marker(str(tars), name))
    ]
    assert found == [(f"{number:09d}", caption) for number, caption in enumerate(expected)]
    assert list(verify(str(tars), 10**8, workers=1)) == []

    seen = streamed(tars, workers=2)
    assert len(seen) == 12
    assert {tokens for _, tokens in seen.values()} == {
        str([sum(caption.encode()), len(caption)]) for caption in expected
    }


def test_markers_in_another_folder(tars: Path, tmp_path: Path) -> None:
    place = tmp_path / "markers"
    index(tars, place)
    assert not list(tars.glob("*.json"))
    assert read_index(str(place)).folder_of_tars(str(place)) == str(tars)
    assert list(verify(str(place), 10**8, workers=1)) == []
    elsewhere = streamed(place)
    index(tars)
    assert streamed(tars) == elsewhere


def test_what_is_finished_is_kept(tars: Path, records: list[dict[str, Any]]) -> None:
    index(tars)
    before = folder_bytes(tars)
    assert (index(tars).made, index(tars).kept) == (0, 3)
    assert folder_bytes(tars) == before

    (tars / "00001.marker.json").unlink()
    (tars / ".00001.marker.json.123.tmp").write_text("half")
    (tars / "index.json").unlink()
    done = index(tars)
    assert (done.made, done.kept) == (1, 2)
    assert folder_bytes(tars) == before

    write_tar(tars / "00002.tar", img2dataset_members(records[20], 20))
    (tars / "00000.tar").unlink()
    done = index(tars)
    assert (done.made, done.kept, done.index.samples) == (1, 1, 5)
    assert not (tars / "00000.marker.json").exists()
    # Other settings would reject other samples.
    assert index(tars, max_pixels=10**7).made == 2


def test_a_command_that_was_killed_goes_on(tars: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index(tars)
    before = folder_bytes(tars)
    for path in tars.glob("*.json"):
        path.unlink()
    read = shard_tools.indexing._read_tar

    def killed(folder: str, name: str, max_pixels: int, deep: bool = False) -> Marker:
        if name == "00001.tar":
            raise KeyboardInterrupt
        return read(folder, name, max_pixels, deep)

    monkeypatch.setattr(shard_tools.indexing, "_read_tar", killed)
    with pytest.raises(KeyboardInterrupt):
        index(tars)
    assert not (tars / "index.json").exists()
    monkeypatch.undo()
    done = index(tars)
    assert (done.made, done.kept) == (2, 1)
    assert folder_bytes(tars) == before


def foreign(number: int, photo: bytes, **members: bytes) -> Members:
    """A sample under a key with a folder and another's extensions."""
    given = {"jpg": photo, "txt": f"caption {number}".encode(), **members}
    return [(f"./a/{number}.{extension}", data) for extension, data in given.items() if data]


def test_what_cannot_be_used_is_named_and_left_out(tmp_path: Path, photo: bytes) -> None:
    members = [
        ("README", b"no key"),
        *foreign(0, b""),  # no image: the first offset lies behind it
        *foreign(1, photo),
        *foreign(2, photo, txt=b""),
        *foreign(3, photo, txt=b"  "),
        *foreign(4, photo, json=b'{"caption": "never read", "width": 3}'),
        *foreign(5, photo, json=b"[1]"),
        *foreign(6, photo, json=b"{"),
        *foreign(7, b"no image at all"),
        *foreign(8, png_bomb(60_000, 60_000)),
        *foreign(1, photo),
        *foreign(9, photo, txt=b"\xff\xfe"),
        ("./a/10.txt", b"its image comes later"),
        *foreign(11, photo),
        ("./a/10.jpg", photo),
        *foreign(12, photo, json=b'{"captions": [{"text": "half \\ud800 a pair"}]}'),
    ]
    write_tar(tmp_path / "0.tar", members)
    done = index(tmp_path)
    marker = read_marker(str(tmp_path), "0.tar")
    good = [("./a/1", "caption 1"), ("./a/4", "caption 4"), ("./a/11", "caption 11")]
    assert samples_of(tmp_path, marker) == good
    assert marker.offsets[0] > 0
    assert [(reject.key, reject.reason) for reject in marker.rejected] == [
        ("./a/0", "missing_image"),
        ("./a/2", "no_caption"),
        ("./a/3", "no_caption"),
        ("./a/5", "bad_json"),
        ("./a/6", "bad_json"),
        ("./a/7", "not_an_image"),
        ("./a/8", "too_many_pixels"),
        ("./a/1", "duplicate_key"),
        ("./a/9", "no_caption"),
        ("./a/10", "missing_image"),
        ("./a/10", "no_caption"),
        ("./a/12", "bad_json"),
    ]
    assert "a caption's 'text' is no valid Unicode" in marker.rejected[-1].detail
    assert done.index.rejects == marker.rejects
    assert sum(marker.rejects.values()) == 12


def test_names_that_are_no_utf_8_are_streamed(tmp_path: Path, photo: bytes) -> None:
    keys = [name.encode("latin-1").decode(errors="surrogateescape") for name in ("caf\xe9", "\xfc")]
    members = [
        (f"{key}.{ext}", data) for key in keys for ext, data in (("jpg", photo), ("txt", b"a"))
    ]
    write_tar(tmp_path / "0.tar", members)
    assert b"caf\xe9.jpg" in (tmp_path / "0.tar").read_bytes()
    assert index(tmp_path).index.samples == 2
    assert set(streamed(tmp_path)) == set(keys)
    assert set(streamed(tmp_path, workers=1)) == set(keys)


@pytest.mark.parametrize(
    "fields, expected",
    [
        ({"caption": " a red\n car "}, ["a red car"]),
        ({"text": "a car"}, ["a car"]),
        ({"caption": "a", "text": "b"}, ["a"]),
        ({"captions": ["a car", "", 3, "a bus"]}, ["a car", "a bus"]),
        ({"captions": [{"text": "a car", "negatives": []}]}, ["a car"]),
        ({"captions": [], "caption": "a"}, ["a"]),
    ],
)
def test_captions_without_txt(
    tmp_path: Path, photo: bytes, fields: dict[str, Any], expected: list[str]
) -> None:
    write_tar(tmp_path / "0.tar", foreign(1, photo, txt=b"", json=json.dumps(fields).encode()))
    assert index(tmp_path).index.captions == len(expected)
    marker = read_marker(str(tmp_path), "0.tar")
    raw = decode_sample((tmp_path / "0.tar").read_bytes()[slice(*marker.offsets)])
    assert [caption.text for caption in raw.captions()] == expected


def write_pax(path: Path, members: Members, headers: dict[str, str]) -> None:
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT, pax_headers=headers) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            info.mtime = 1_700_000_000.5  # type: ignore[assignment]  # PAX writes fractions
            archive.addfile(info, io.BytesIO(data))


def test_long_names_and_extended_headers(tmp_path: Path, photo: bytes) -> None:
    """What stands before a member belongs to it, also where a sample is read alone."""
    long = "f" * 90 + "/" + "k" * 180
    members = [
        (f"{long}{number}.{extension}", data)
        for number in range(3)
        for extension, data in (("jpg", photo), ("txt", f"caption {number}".encode()))
    ]
    write_tar(tmp_path / "gnu.tar", members)
    write_pax(tmp_path / "pax.tar", members, {"comment": "by git"})
    write_pax(tmp_path / "renames.tar", members, {"path": "x/1.jpg"})
    index(tmp_path)
    expected = [(f"{long}{number}", f"caption {number}") for number in range(3)]
    for name in ("gnu.tar", "pax.tar"):
        assert samples_of(tmp_path, read_marker(str(tmp_path), name)) == expected
    (reject,) = read_marker(str(tmp_path), "renames.tar").rejected
    assert reject.reason == "broken_tar"
    assert "renames or resizes" in reject.detail


def test_broken_tars_give_what_comes_before(tars: Path) -> None:
    whole = (tars / "00000.tar").read_bytes()
    (tars / "00000.tar").write_bytes(whole[: len(whole) // 2])
    (tars / "00001.tar").write_bytes(b"")
    with (tars / "00002.tar").open("ab") as file:
        file.write(whole)
    done = index(tars)
    assert done.index.rejects == {"broken_tar": 3}
    first = read_marker(str(tars), "00000.tar")
    assert 0 < first.samples < 4
    assert [key for key, _ in samples_of(tars, first)] == [
        f"{number:09d}" for number in range(first.samples)
    ]
    assert read_marker(str(tars), "00001.tar").offsets == (0,)
    assert read_marker(str(tars), "00002.tar").samples == 3
    assert first.rejected[0].key == "00000.tar"
    assert list(verify(str(tars), 10**8, workers=1)) == []
    with pytest.raises(ValueError, match=r"3 of 3 source tars are broken.*no index was written"):
        index(tars, max_reject_share=0.5)
    assert not (tars / "index.json").exists()


@pytest.mark.parametrize("is_sample", [True, False])
def test_what_is_not_of_use_is_bounded(
    tmp_path: Path, photo: bytes, monkeypatch: pytest.MonkeyPatch, is_sample: bool
) -> None:
    """It would be read with the sample before it."""
    monkeypatch.setattr(shard_tools.indexing, "MAX_SAMPLE_BYTES", 10**5)
    monkeypatch.setattr(shard_tools.indexing, "_READ_AHEAD", 2**14)
    monkeypatch.setattr(hnpretrain.shards.tar, "MAX_MEMBER_BYTES", 10**5)
    name = "2.mp4" if is_sample else "a file of another kind"
    junk = (name, bytes(2 * 10**5))
    members = [*foreign(0, photo), *foreign(1, photo), junk, *foreign(3, photo)]
    write_tar(tmp_path / "0.tar", members)
    index(tmp_path)
    marker = read_marker(str(tmp_path), "0.tar")
    found = [("./a/0", "caption 0"), ("./a/1", "caption 1")]
    assert samples_of(tmp_path, marker) == found[: 1 + is_sample]
    assert marker.rejected[-1].reason == "broken_tar"
    assert "too much that is of no use" in marker.rejected[-1].detail
    # Before all samples of use, it is passed over once.
    if is_sample:
        write_tar(tmp_path / "0.tar", members[4:])
        index(tmp_path)
        marker = read_marker(str(tmp_path), "0.tar")
        assert samples_of(tmp_path, marker) == [("./a/3", "caption 3")]


def test_a_tar_that_claims_too_much_ends(tmp_path: Path, photo: bytes) -> None:
    huge = tarfile.TarInfo("1.jpg")
    huge.size = 2**60
    (tmp_path / "0.tar").write_bytes(huge.tobuf(tarfile.GNU_FORMAT) + photo)
    with pytest.raises(ValueError, match="so none is left"):
        index(tmp_path)
    (reject,) = read_marker(str(tmp_path), "0.tar").rejected
    assert reject.reason == "broken_tar"


def test_verify_tells_what_has_changed(tars: Path) -> None:
    index(tars)
    path = tars / "00001.tar"
    data = bytearray(path.read_bytes())
    marker = read_marker(str(tars), path.name)
    data[marker.offsets[2] + 2000] ^= 1  # in the third photo
    path.write_bytes(data)
    (problem,) = verify(str(tars), 10**8, workers=1)
    assert problem == "00001.tar: its sha256, crc32 are not those in its marker"
    data[marker.offsets[2] + 512 : marker.offsets[2] + 520] = b"no image"
    path.write_bytes(data)
    problems = list(verify(str(tars), 10**8, workers=1))
    assert problems[0].startswith(
        "00001.tar: its samples, sha256, offsets, crc32, captions, rejects"
    )
    assert problems[1].startswith("00001.tar: sample 000000006: not_an_image")
    path.unlink()
    assert list(verify(str(tars), 10**8, workers=1)) == [f"00001.tar: {path} is missing"]


def test_verify_takes_the_bound_of_images_from_the_markers(
    tars: Path, records: list[dict[str, Any]]
) -> None:
    sizes = []
    for record in records[:12]:
        with Image.open(PHOTOS / record["image"]) as image:
            sizes.append(image.width * image.height)
    done = index(tars, max_pixels=max(sizes) - 1)
    assert 0 < done.index.samples < 12
    assert list(verify(str(tars), 10**8, workers=1)) == []


def test_a_built_data_set_is_left_alone(tmp_path: Path, few_photos: Path) -> None:
    build(photos_settings(tmp_path, few_photos, samples_per_shard=5))
    before = folder_bytes(tmp_path)
    with pytest.raises(ValueError, match="holds a data set that `shard build` made"):
        index(tmp_path)
    assert folder_bytes(tmp_path) == before
    (tmp_path / "build.json").unlink()
    with pytest.raises(ValueError, match=r"00000.marker.json was not made by `shard index`"):
        index(tmp_path)
    for path in tmp_path.glob("*.marker.json"):
        path.unlink()
    with pytest.raises(ValueError, match=r"index.json was not made by `shard index`"):
        index(tmp_path)
    # Its tars are a collection like any other, with all their negatives.
    place = tmp_path / "markers"
    index(tmp_path, place)
    (tmp_path / "index.json").write_bytes(before["index.json"])
    ours, theirs = read_index(str(tmp_path)), read_index(str(place))
    assert replace(theirs, tars="", rejects={}, candidates_rejected={}) == replace(
        ours, rejects={}, candidates_rejected={}
    )


@pytest.mark.parametrize("content", [b"", bytes(500), b'{"format": 2}', b"[]"])
def test_a_marker_that_cannot_be_read_is_made_again(tars: Path, content: bytes) -> None:
    index(tars)
    before = folder_bytes(tars)
    for names in (["00001"], ["00000", "00001", "00002"]):
        for name in names:
            (tars / f"{name}.marker.json").write_bytes(content)
        done = index(tars)
        assert (done.made, done.kept) == (len(names), 3 - len(names))
        assert folder_bytes(tars) == before
    (tars / "gone.marker.json").write_bytes(content)
    with pytest.raises(
        ValueError, match=r"gone\.marker\.json: .*there is no gone\.tar, so remove it"
    ):
        index(tars)


def test_two_at_a_time(tars: Path) -> None:
    with (
        locked(str(tars / ".index.lock")),
        pytest.raises(ValueError, match="is being indexed by process"),
    ):
        index(tars)


def test_tars_on_s3(bucket: str, tars: Path, tmp_path: Path) -> None:
    from hnpretrain.shards import storage

    for path in tars.iterdir():
        storage.write_bytes(f"{bucket}/foreign/{path.name}", path.read_bytes())
    place = tmp_path / "markers"
    index(f"{bucket}/foreign", place)  # a bucket that only is read
    assert index(f"{bucket}/foreign").index == replace(read_index(str(place)), tars=".")
    assert index(f"{bucket}/foreign").kept == 3
    index(tars)
    assert streamed(place, workers=2) == streamed(f"{bucket}/foreign") == streamed(tars)
    assert list(verify(str(place), 10**8, workers=1)) == []


def test_the_command(tars: Path, tmp_path: Path, command: Callable[..., Ran]) -> None:
    ran = command("shard", "index", str(tars), "--workers", "1")
    assert ran.status == 0
    assert f"3 tars indexed, 0 kept: data.shards={tars}" in ran.out
    assert command("shard", "verify", str(tars)).out.strip() == f"{tars}: all is well"
    assert "12" in command("shard", "stats", str(tars)).out
    for arguments, message in (
        ((str(tmp_path / "none"),), "is not a folder"),
        ((str(PHOTOS),), "holds no .tar"),
    ):
        ran = command("shard", "index", *arguments)
        assert ran.status == 1
        assert message in ran.err
        assert len(ran.err.splitlines()) == 1
