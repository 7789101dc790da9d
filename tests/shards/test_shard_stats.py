"""`stats` counts what is in the markers at once, and what is in the texts with `--words`."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import pytest

from hnpretrain.shards import storage
from hnpretrain.shards.index import read_index
from hnpretrain.shards.marker import marker_name
from hnpretrain.shards.schema import Caption, Sample
from shard_tools import text_stats
from shard_tools.repeats import Repeats
from shard_tools.text_stats import read_text_stats
from tests.shards.conftest import Ran
from tests.support.shards import exchange, photo_samples, write_shards

Command = Callable[..., Ran]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten photos in three shards."""
    samples = photo_samples(10)
    return write_shards(tmp_path_factory.mktemp("stats"), samples[:4], samples[4:8], samples[8:])


@pytest.fixture
def small(tmp_path: Path, photo: bytes) -> Path:
    """Two shards whose counts are known."""
    cup, cat = "a red cup by a bed", "A cat."
    negatives = (
        exchange(cup, "cup", "mug", "object", "replace"),
        exchange(cup, "cup", "jar", "object", "fill"),
        exchange(cup, "red", "blue", "color", "replace"),
        exchange(cup, "red cup by a bed", "bed by a red cup", "object", "swap"),
        exchange(cup, "by", "not by", "negation", "negate"),
    )
    dog = (exchange(cat, "cat", "dog", "object", "replace"),)
    captions = {"a": Caption(cup, negatives), "b": Caption(cat, dog), "c": Caption("a  CAT")}
    samples = [Sample(key, photo, "jpg", (caption,)) for key, caption in captions.items()]
    last = Sample("d", photo, "jpg", (Caption("a dog!"),))
    return write_shards(tmp_path, samples[:2], [samples[2], last])


def words_of(command: Command, folder: Path, *options: str) -> Any:
    path = folder.parent / "stats.json"
    ran = command("shard", "stats", str(folder), "--words", "--json", str(path), *options)
    assert ran.status == 0
    return json.loads(path.read_text())["words"]


def test_counts_are_those_of_the_index(photos: Path, command: Command) -> None:
    ran = command("shard", "stats", str(photos))
    index = read_index(str(photos))
    assert ran.status == 0
    assert f"{index.negatives:,}" in ran.out
    for concept, count in index.concepts.items():
        rows = [line for line in ran.out.splitlines() if f" {concept} " in line]
        assert any(f" {count} " in row for row in rows)


def test_an_unfinished_data_set(small: Path, command: Command) -> None:
    whole = command("shard", "stats", str(small)).out
    (small / "index.json").unlink()
    ran = command("shard", "stats", str(small))
    assert ran.out == whole + "unfinished: no index.json yet; these are the finished shards\n"
    (small / marker_name("1.tar")).unlink()
    assert words_of(command, small)["samples"] == 2


def test_json_holds_the_counts_alone_too(small: Path, command: Command) -> None:
    path = small / "stats.json"
    assert command("shard", "stats", str(small), "--json", str(path)).status == 0
    written = json.loads(path.read_text())
    assert written["finished"] is True
    assert written["index"]["negatives"] == 6
    assert written["words"] is None


def test_what_the_texts_tell(small: Path, command: Command) -> None:
    words = words_of(command, small)
    assert {name: words[name] for name in ("shards", "samples", "captions", "negatives")} == {
        "shards": 2,
        "samples": 4,
        "captions": 4,
        "negatives": 6,
    }
    pairs = {(p["concept"], p["strategy"]): p["negatives"] for p in words["concept_and_strategy"]}
    assert pairs == {
        ("color", "replace"): 1,
        ("negation", "negate"): 1,
        ("object", "fill"): 1,
        ("object", "replace"): 2,
        ("object", "swap"): 1,
    }
    none = {"0": 4, "1": 0, "2": 0, "3": 0, "4 or more": 0}
    assert words["captions_by_number_of_negatives"] == {
        "any": none | {"0": 2, "1": 1, "4 or more": 1},
        "color": none | {"0": 3, "1": 1},
        "negation": none | {"0": 3, "1": 1},
        "object": none | {"0": 2, "1": 1, "3": 1},
    }
    assert words["words"] == {
        "captions": {"mean": 3.0, "p50": 2, "p90": 6, "p99": 6},
        "negatives": {"mean": pytest.approx(33 / 6), "p50": 6, "p90": 7, "p99": 7},
    }
    # The swap moved words: none was left and none was entered.
    exchanges = {(e["concept"], e["from"], e["to"]): e["negatives"] for e in words["exchanges"]}
    assert exchanges == {
        ("color", "red", "blue"): 1,
        ("negation", "by", "not by"): 1,
        ("object", "cat", "dog"): 1,
        ("object", "cup", "jar"): 1,
        ("object", "cup", "mug"): 1,
    }
    # "A cat." is "a  CAT"; the negative "A dog." is the caption "a dog!".
    assert words["repeats"] == {
        "captions_that_recur": 0.5,
        "negatives_that_recur": 0,
        "negatives_that_are_captions_elsewhere": pytest.approx(1 / 6),
        "share_of_texts_looked_at": 1,
    }


def test_tables_of_words(small: Path, command: Command) -> None:
    out = command("shard", "stats", str(small), "--words").out
    assert "read: 2 shards, 4 samples" in out
    assert "repeats (exact)" in out
    (row,) = [line for line in out.splitlines() if " cup " in line]
    assert [cell.strip() for cell in row.split("\u2502")][1:6] == [
        "cup", "2", "0", "0%", "jar 1, mug 1",
    ]  # fmt: skip


def test_workers_change_nothing(photos: Path, command: Command) -> None:
    assert words_of(command, photos, "--workers", "2") == words_of(command, photos)


def test_shards_are_drawn(photos: Path, command: Command) -> None:
    one = words_of(command, photos, "--samples", "3")
    assert one["shards"] == 1
    assert one == words_of(command, photos, "--samples", "3")
    assert words_of(command, photos, "--samples", "5")["shards"] == 2
    assert words_of(command, photos, "--samples", "500")["samples"] == 10
    others = [words_of(command, photos, "--samples", "1", "--seed", str(n)) for n in range(1, 6)]
    assert any(other["exchanges"] != one["exchanges"] for other in others)
    ran = command("shard", "stats", str(photos), "--samples", "3")
    assert ran.status == 1
    assert "--samples 3 draws shards for --words" in ran.err


def test_images_are_not_read(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = 0

    class Counting:
        def __init__(self, file: IO[bytes]) -> None:
            self.seek, self.seekable = file.seek, file.seekable
            self._file = file

        def read(self, size: int) -> bytes:
            nonlocal read
            read += size
            return self._file.read(size)

    opened = storage.open_read

    @contextlib.contextmanager
    def open_read(path: str) -> Iterator[Any]:
        with opened(path) as file:
            yield Counting(file)

    monkeypatch.setattr(storage, "open_read", open_read)
    index = read_index(str(photos))
    assert read_text_stats(str(photos), index, None, 0, 1).samples == 10
    assert read < sum(shard.bytes for shard in index.shards) / 3


def test_a_store_that_cannot_seek(photos: Path, bucket: str) -> None:
    for path in photos.iterdir():
        storage.write_bytes(f"{bucket}/stats/{path.name}", path.read_bytes())
    read = [
        read_text_stats(at, read_index(at), None, seed=0, workers=1).to_json()
        for at in (str(photos), f"{bucket}/stats")
    ]
    assert read[0] == read[1]


def test_samples_that_cannot_be_read(small: Path, command: Command) -> None:
    path = small / "1.tar"
    path.write_bytes(path.read_bytes().replace(b'{"captions":[{"text":"a dog', b'{"captions":' * 2))
    words = words_of(command, small)
    assert (words["samples"], words["unreadable"]) == (3, 1)
    assert words["unreadable_named"][0].startswith("1.tar: sample 1: not JSON")
    out = command("shard", "stats", str(small), "--words").out
    assert "1 samples cannot be read, `shard verify` names all" in out


def test_a_shard_that_is_gone(small: Path, command: Command) -> None:
    (small / "1.tar").unlink()
    ran = command("shard", "stats", str(small), "--words")
    assert ran.status == 1
    assert "1.tar" in ran.err
    assert len(ran.err.splitlines()) == 1


def test_repeats_are_estimated_when_there_are_too_many() -> None:
    exact, bounded, other = Repeats(), Repeats(most=500), Repeats(most=500)
    for number in range(6000):
        # A third of the captions come twice, and a quarter of the negatives are captions.
        for text in [f"c{number}"] * (2 if number % 2 == 0 else 1):
            exact.add(text, negative=False)
            (bounded if number % 4 else other).add(text, negative=False)
        text = f"c{number}" if number % 4 == 0 else f"n{number}"
        exact.add(text, negative=True)
        bounded.add(text, negative=True)
    bounded.update(other)
    shares, estimates = exact.shares(), bounded.shares()
    assert shares["captions_that_recur"] == pytest.approx(2 / 3)
    assert shares["negatives_that_are_captions_elsewhere"] == 0.25
    assert estimates.pop("share_of_texts_looked_at") <= 1 / 16
    for name, estimate in estimates.items():
        assert estimate == pytest.approx(shares[name], abs=0.1)


def test_rare_exchanges_are_dropped_and_counted(
    small: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_stats, "MOST_EXCHANGES", 4)
    words = words_of(command, small)
    kept = sum(exchange["negatives"] for exchange in words["exchanges"])
    assert words["exchanges_dropped"] > 0
    assert kept + words["exchanges_dropped"] == 5


def test_how_much_the_words_give_away(tmp_path: Path, photo: bytes) -> None:
    red, blue = "a red bed", "a blue bed"
    fair = [
        Caption(red, (exchange(red, "red", "blue", "color", "replace"),)),
        Caption(blue, (exchange(blue, "blue", "red", "color", "replace"),)),
        Caption(red, (exchange(red, "bed", "cot", "object", "replace"),)),
    ]
    write_shards(tmp_path, [Sample(f"{n:03d}", photo, "jpg", tuple(fair)) for n in range(100)])
    stats = read_text_stats(str(tmp_path), read_index(str(tmp_path)), None, 0, 1)
    assert stats.words("color") == {"blue": (100, 100), "red": (100, 100)}
    assert stats.guess("color") == 0.5
    assert stats.guess("object") == 1.0
    assert stats.guess("size") is None
