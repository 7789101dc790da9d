"""`verify` finds every kind of damage; `stats` and `preview` show what is there."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hnpretrain.shards.index import Index, read_index, write_index
from hnpretrain.shards.marker import Marker, marker_name, read_marker
from hnpretrain.shards.schema import Caption, Negative, Sample
from shard_tools.job import build
from shard_tools.writer import ShardWriter
from tests.shards.conftest import Ran, photos_settings

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
    assert last.endswith(f"{len(lines)} problems")
    return lines


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_good_data_set(shards: Path, command: Command, workers: str) -> None:
    ran = command("shard", "verify", str(shards), "--workers", workers)
    assert (ran.status, ran.out, ran.err) == (0, f"{shards}: all is well\n", "")


def test_damage_inside_a_tar(shards: Path, command: Command) -> None:
    flip(shards, read_marker(str(shards), "00001.tar").offsets[1] + 3)
    found = problems(command("shard", "verify", str(shards)))
    assert "00001.tar: sample 1" in found[0]
    assert "broken header" in found[0]
    assert "00001.tar: sha256" in found[1]


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
    with ShardWriter() as writer:
        writer.add(Sample("a", photo[:5000], "jpg", (Caption(text),)))
        writer.add(Sample("b", photo, "png", (Caption(text, negatives),)))
        marker: Marker = writer.finish(str(tmp_path), "0.tar", "", "", "")
    write_index(str(tmp_path), Index.of([marker]))
    broken, *others = problems(command("shard", "verify", str(tmp_path)))
    assert broken.startswith("0.tar: sample a: broken_image: OSError: image file is truncated")
    assert [line.removeprefix("0.tar: sample ") for line in others] == [
        "b: a jpg image under the name .png",
        "b: span [2, 5] of 'a red car' is not 'blue'",
        "b: span [2, 50] lies outside 'a red car'",
        "b: a negative equals its caption 'a red car'",
    ]


@pytest.mark.parametrize("name", ["verify", "preview", "stats"])
def test_a_folder_without_shards(tmp_path: Path, command: Command, name: str) -> None:
    for folder, part in ((tmp_path, "holds no "), (tmp_path / "none", "is not a folder")):
        ran = command("shard", name, str(folder))
        assert ran.status == 1
        assert part in ran.err
        assert len(ran.err.splitlines()) == 1


def test_stats_count_what_is_there(shards: Path, command: Command) -> None:
    ran = command("shard", "stats", str(shards))
    index = read_index(str(shards))
    assert ran.status == 0
    assert f"{index.negatives:,}" in ran.out
    for concept, count in index.concepts.items():
        rows = [line for line in ran.out.splitlines() if f" {concept} " in line]
        assert any(f" {count} " in row for row in rows)
    (shards / "index.json").unlink()
    (shards / marker_name("00001.tar")).unlink()
    assert "unfinished" in command("shard", "stats", str(shards)).out


def test_preview_marks_what_changed(tmp_path: Path, command: Command, photo: bytes) -> None:
    negatives = (
        Negative("a green car.", "color", "replace", "red", "green", (2, 5)),
        Negative("a red tree.", "object", "replace", "car", "tree", (6, 9)),
        Negative("an orange car.", "color", "replace", "red", "orange", (2, 5)),
    )
    with ShardWriter() as writer:
        for key in "abc":
            writer.add(Sample(key, photo, "jpg", (Caption("a red car.", negatives),)))
        writer.finish(str(tmp_path), "0.tar", "", "", "")
    ran = command("shard", "preview", str(tmp_path), "--samples", "2", "--seed", "3")
    assert ran.status == 0
    assert ran.out.count("  + a red car.") == 2
    assert "    - a [green] car.  color/replace" in ran.out
    assert "    - a red [tree].  object/replace" in ran.out
    assert "    - [an orange] car.  color/replace" in ran.out
    again = command("shard", "preview", str(tmp_path), "--samples", "2", "--seed", "3")
    assert again.out == ran.out
    assert command("shard", "preview", str(tmp_path), "--samples", "9").out.count("  + ") == 3
