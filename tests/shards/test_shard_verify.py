"""`verify` finds every kind of damage, and every rule that a negative breaks."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hnpretrain.shards.index import Index, write_index
from hnpretrain.shards.marker import read_marker
from hnpretrain.shards.schema import Caption, Negative, Sample
from shard_tools.job import build
from shard_tools.verify import verify
from tests.shards.conftest import Ran, photos_settings
from tests.support.shards import exchange, write_shards

Command = Callable[..., Ran]


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory, few_photos: Path) -> Path:
    folder = tmp_path_factory.mktemp("pristine") / "shards"
    build(photos_settings(folder, few_photos, samples_per_shard=4))
    return folder


@pytest.fixture
def shards(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "shards"))


def change_marker(folder: Path, **changes: Any) -> None:
    marker = dataclasses.replace(read_marker(str(folder), "00001.tar"), **changes)
    (folder / "00001.marker.json").write_bytes(marker.to_bytes())


def flip(folder: Path, place: int) -> None:
    path = folder / "00001.tar"
    data = bytearray(path.read_bytes())
    data[place] ^= 0xFF
    path.write_bytes(data)


def problems(ran: Ran) -> list[str]:
    *lines, last = ran.err.splitlines()
    assert ran.status == 1
    assert last.endswith(" has the problems above")
    return lines


@pytest.mark.parametrize("options", [[], ["--deep"], ["--workers", "2"]])
def test_a_good_data_set(shards: Path, command: Command, options: list[str]) -> None:
    ran = command("shard", "verify", str(shards), *options)
    assert (ran.status, ran.out, ran.err) == (0, f"{shards}: all is well\n", "")


def test_damage_inside_a_tar(shards: Path, command: Command) -> None:
    flip(shards, read_marker(str(shards), "00001.tar").offsets[1] + 3)
    found = problems(command("shard", "verify", str(shards)))
    assert "00001.tar: sample 1" in found[0]
    assert "its crc32 is not that in the marker" in found[0]
    assert "broken header" in found[1]
    assert "00001.tar: sha256" in found[2]


def test_a_flipped_bit_of_a_picture(shards: Path, command: Command) -> None:
    flip(shards, 5000)
    assert any(
        "00001.tar: sha256" in line for line in problems(command("shard", "verify", str(shards)))
    )


def test_a_cut_tar_a_missing_marker_and_a_missing_tar(shards: Path, command: Command) -> None:
    with (shards / "00000.tar").open("r+b") as tar:
        tar.truncate(3000)
    (shards / "00001.marker.json").unlink()
    (shards / "00002.tar").unlink()
    found = problems(command("shard", "verify", str(shards)))
    assert found[0] == "00002.marker.json: its shard is missing"
    assert found[1].startswith("00000.tar: 3000 bytes, ")
    assert found[2].startswith("00001.tar: no marker, so it is unfinished")
    assert any(line.startswith("index.json: its shards do not agree") for line in found)


def test_markers_and_index_that_lie(shards: Path, command: Command) -> None:
    marker = read_marker(str(shards), "00001.tar")
    change_marker(shards, negatives=1, concepts={"color": 1})
    found = problems(command("shard", "verify", str(shards)))
    assert f"00001.tar: negatives: {marker.negatives} counted, 1 in its marker" in found
    assert any(line.startswith("00001.tar: concepts: ") for line in found)
    assert "index.json: its negatives do not agree with the markers" in found

    change_marker(shards, crc32=(*marker.crc32[:-1], 7))
    (line, *_) = problems(command("shard", "verify", str(shards)))
    assert line.startswith(f"00001.tar: sample {marker.samples - 1} (byte ")
    assert line.endswith("its crc32 is not that in the marker")

    change_marker(shards, offsets=(0, 512, *marker.offsets[2:]))
    assert any("expected the bytes of one sample" in p or "no image" in p or "not a whole" in p
               for p in problems(command("shard", "verify", str(shards))))  # fmt: skip
    change_marker(shards, offsets=marker.offsets[::-1])
    assert any(
        "offsets do not rise" in p for p in problems(command("shard", "verify", str(shards)))
    )


def test_an_unfinished_build(shards: Path, command: Command) -> None:
    (shards / "index.json").unlink()
    (line,) = problems(command("shard", "verify", str(shards)))
    assert "finish `hnpretrain shard build`" in line


def test_samples_that_are_wrong_in_themselves(
    tmp_path: Path, command: Command, photo: bytes
) -> None:
    text = "a red car"
    negatives = (
        Negative("a blue car", "color", "replace", "blue", "red", (2, 5)),
        Negative("a big car", "size", "replace", "red", "big", (2, 50)),
        Negative(text, "color", "replace", "red", "red", (2, 5)),
    )
    write_shards(
        tmp_path,
        [
            Sample("a", photo[:5000], "jpg", (Caption(text),)),
            Sample("b", photo, "png", (Caption(text, negatives),)),
            Sample("c", b"no photo", "jpg", (Caption(text),)),
        ],
    )
    found = problems(command("shard", "verify", str(tmp_path)))
    assert [line.removeprefix("0.tar: sample ") for line in found] == [
        "b: a jpg image under the name .png",
        "b: span [2, 5] of 'a red car' is not 'blue'",
        "b: span [2, 50] lies outside 'a red car'",
        "b: a negative equals its caption 'a red car'",
        "c: not_an_image: begins with b'no photo'",
    ]
    # Only decoding shows that the first photo is cut short.
    deep = problems(command("shard", "verify", str(tmp_path), "--deep"))
    assert deep[0].startswith("0.tar: sample a: broken_image: OSError: image file is truncated")
    assert deep[1:] == found


CUP = "a cup by an old bed"


@pytest.mark.parametrize(
    "negative, problem",
    [
        (exchange(CUP, "cup", "mug"), None),
        (exchange(CUP, "cup", "oar", text="an oar by an old bed"), None),
        (exchange(CUP, "cup", "SUV"), None),  # as a word or spelled out: both are said
        (exchange(CUP, "cup", "oar"), "'a' before 'oar' in 'a oar by an old bed'"),
        (exchange(CUP, "old", "big"), "'an' before 'big' in 'a cup by an big bed'"),
        (
            exchange(CUP, "cup", "mug", text="an mug by an old bed"),
            "'an' before 'mug' in 'an mug by an old bed'",
        ),
        (
            exchange(CUP, "cup", "mug", text="a mug by an old cat"),
            "'a mug by an old cat' is not 'a cup by an old bed' with 'mug' at [2, 5]",
        ),
        (exchange(CUP, "cup", "Cup!"), "a negative equals its caption 'a cup by an old bed'"),
        (
            exchange(CUP, "by an old bed", "in a hall"),
            "the negative 'a cup in a hall' equals another caption of the image",
        ),
        (exchange(CUP, "bed", "Dog."), "the negative 'a cup by an old Dog.' comes twice"),
        (exchange(CUP, "cup", "mug", concept="mood"), "unknown concept 'mood'"),
        (exchange(CUP, "cup", "mug", strategy="magic"), "unknown strategy 'magic'"),
    ],
)
def test_rules_of_negatives(
    tmp_path: Path, command: Command, photo: bytes, negative: Negative, problem: str | None
) -> None:
    first = exchange(CUP, "bed", "dog")
    captions = (Caption(CUP, (first, negative)), Caption("A cup in a  hall."))
    write_shards(tmp_path, [Sample("a", photo, "jpg", captions)])
    # The marker counts whatever concepts there are; a word that it lacks is unknown.
    marker = read_marker(str(tmp_path), "0.tar")
    known = {"concepts": {"object": 2}, "strategies": {"replace": 2}}
    marker = dataclasses.replace(marker, **known)
    (tmp_path / "0.marker.json").write_bytes(marker.to_bytes())
    write_index(str(tmp_path), Index.of([marker]))

    ran = command("shard", "verify", str(tmp_path))
    if problem is None:
        assert (ran.status, ran.err) == (0, "")
    else:
        assert problems(ran)[0] == f"0.tar: sample a: {problem}"


def test_concepts_of_ones_own_lexicon(tmp_path: Path, command: Command, photo: bytes) -> None:
    negative = exchange(CUP, "cup", "mug", concept="crockery")
    write_shards(tmp_path, [Sample("a", photo, "jpg", (Caption(CUP, (negative,)),))])
    assert command("shard", "verify", str(tmp_path)).status == 0


def test_an_article_that_the_caption_got_wrong_itself(
    tmp_path: Path, command: Command, photo: bytes
) -> None:
    caption = "a old red car"
    negative = exchange(caption, "old red", "old blue")
    write_shards(tmp_path, [Sample("a", photo, "jpg", (Caption(caption, (negative,)),))])
    assert command("shard", "verify", str(tmp_path)).status == 0


def test_many_problems_are_counted(tmp_path: Path, command: Command, photo: bytes) -> None:
    wrong = exchange(CUP, "cup", "mug", text="a cat")
    captions = (Caption(CUP, (wrong,)),)
    write_shards(tmp_path, [Sample(f"{n:03d}", photo, "jpg", captions) for n in range(50)])
    found = problems(command("shard", "verify", str(tmp_path)))
    assert len(found) == 21
    assert found[19].startswith("0.tar: sample 019: 'a cat' is not")
    assert found[20] == "0.tar: and 30 more"


@pytest.mark.parametrize("workers", [1, 2])
def test_progress_is_told_a_shard_at_a_time(shards: Path, workers: int) -> None:
    told: list[tuple[int, int]] = []
    found = verify(str(shards), 10**8, workers, progress=lambda *done: told.append(done))
    assert list(found) == []
    assert told == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize("name", ["verify", "preview", "stats"])
def test_a_folder_without_shards(tmp_path: Path, command: Command, name: str) -> None:
    for folder, part in ((tmp_path, "holds no "), (tmp_path / "none", "is not a folder")):
        ran = command("shard", name, str(folder))
        assert ran.status == 1
        assert part in ran.err
        assert len(ran.err.splitlines()) == 1
