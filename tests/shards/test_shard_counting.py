"""The first pass: which captions are counted, by whom, and what becomes of the table."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hnpretrain.shards import storage
from shard_tools import counting
from shard_tools.counting import CountState, count_into, counting_order, read_table
from shard_tools.job import build
from shard_tools.negatives import NegativeSettings
from shard_tools.sources import SourceSample, SourceSettings, SourceShard, plan_source
from shard_tools.sources.base import SampleTexts
from tests.shards.conftest import (
    PHOTOS,
    Ran,
    folder_bytes,
    img2dataset_members,
    photos_settings,
    write_tar,
)

Command = Callable[..., Ran]
TABLE = "frequencies.json.gz"


@pytest.fixture(scope="module")
def shards() -> list[SourceShard]:
    """The photos in shards of 5, each with 25 captions but for the last."""
    return plan_source(SourceSettings("jsonl", str(PHOTOS / "data.jsonl")), 5)


def count(
    output: Path, shards: list[SourceShard], workers: int = 1, captions: int = 10**6
) -> tuple[bytes, list[CountState]]:
    states: list[CountState] = []
    settings = NegativeSettings(count_captions=captions)
    count_into(str(output), shards, settings, workers, states.append)
    return (output / TABLE).read_bytes(), states


def test_processes_do_not_change_the_table(
    tmp_path: Path, shards: list[SourceShard], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, _ = count(tmp_path / "one", shards, 1, captions=60)
    monkeypatch.setattr(counting, "_FEW_CAPTIONS", 0)  # so that there are processes
    two, states = count(tmp_path / "two", shards, 2, captions=60)
    assert one == two
    assert (states[0].captions, states[0].wanted) == (0, 60)
    assert read_table(str(tmp_path / "one" / TABLE)).captions == 75


@pytest.mark.parametrize("captions, counted", [(1, 25), (25, 25), (26, 50), (10**6, 365)])
def test_whole_shards_are_counted_until_there_are_enough(
    tmp_path: Path, shards: list[SourceShard], captions: int, counted: int
) -> None:
    count(tmp_path, shards, captions=captions)
    assert read_table(str(tmp_path / TABLE)).captions == counted


def test_the_order_is_a_draw_that_names_decide(shards: list[SourceShard]) -> None:
    ordered = counting_order(shards)
    assert ordered != shards
    assert ordered == counting_order(list(reversed(shards)))


def test_texts_are_those_of_the_samples(
    tmp_path: Path, shards: list[SourceShard], records: list[dict[str, Any]]
) -> None:
    members = [member for n in range(9) for member in img2dataset_members(records[n], n)]
    members += [("odd/a.jpg", b"x"), ("odd/a.JSON", b'{"caption": "a dog", "objects": ["dog"]}')]
    write_tar(tmp_path / "0.tar", members)
    tars = plan_source(SourceSettings("tar", str(tmp_path)), 1)
    for shard in (*shards, *tars):
        samples = [s for s in shard.read() if isinstance(s, SourceSample)]
        assert len(samples) == (shard.samples or 10)
        texts = [SampleTexts(s.captions, s.objects) for s in samples]
        assert list(shard.read_texts()) == texts


def test_a_tar_s_images_are_not_read_for_its_texts(
    tmp_path: Path, photo: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    members = [
        member
        for n in range(20)
        for member in ((f"{n}.jpg", photo * 10), (f"{n}.txt", b"a red car"))
    ]
    write_tar(tmp_path / "0.tar", members)
    read = 0
    (shard,) = plan_source(SourceSettings("tar", str(tmp_path)), 1)

    whole = (tmp_path / "0.tar").stat().st_size

    class Counting:
        def __init__(self, file: Any) -> None:
            self._file = file

        def read(self, size: int = -1) -> bytes:
            nonlocal read
            data = bytes(self._file.read(size))
            read += len(data)
            return data

        def __getattr__(self, name: str) -> Any:
            return getattr(self._file, name)

    @contextlib.contextmanager
    def open_read(path: str) -> Iterator[Any]:
        with Path(path).open("rb") as file:
            yield Counting(file)

    monkeypatch.setattr(storage, "open_read", open_read)
    assert [t.captions for t in shard.read_texts()] == [("a red car",)] * 20
    assert read < whole / 10


def test_what_is_broken_in_a_tar_does_not_stop_counting(
    tmp_path: Path, records: list[dict[str, Any]]
) -> None:
    """The build says what is wrong with it."""
    members = [member for n in range(3) for member in img2dataset_members(records[n], n)]
    write_tar(tmp_path / "cut.tar", members)
    data = (tmp_path / "cut.tar").read_bytes()
    (tmp_path / "cut.tar").write_bytes(data[: data.index(b"000000002.jpg") + 100])
    bad = [
        ("a.jpg", b"x"),
        ("a.json", b"{"),
        ("b.txt", b"\xff"),
        ("c.txt", b""),
        ("d.txt", b"a car"),
    ]
    write_tar(tmp_path / "bad.tar", bad)
    (tmp_path / "no.tar").write_bytes(b"no tar" * 1000)
    count(tmp_path / "out", plan_source(SourceSettings("tar", str(tmp_path)), 1))
    assert read_table(str(tmp_path / "out" / TABLE)).captions == 3


def test_nothing_to_count(tmp_path: Path, command: Command) -> None:
    write_tar(tmp_path / "in" / "0.tar", [("a.jpg", b"x")])
    arguments = ["source.kind=tar", f"source.path={tmp_path}/in", f"output={tmp_path}/out"]
    ran = command("shard", "build", *arguments)
    assert (ran.status, "no caption whose words could be counted" in ran.err) == (1, True)
    ran = command("shard", "count", *arguments, "negatives.mix={swap.noun: 1}")
    assert (ran.status, "error: nothing to count: no strategy" in ran.err) == (1, True)
    ran = command("shard", "count", *arguments, "negatives.frequencies=some.gz")
    assert (ran.status, "leave it out to count another" in ran.err) == (1, True)
    assert not (tmp_path / "out").exists()


def test_a_table_is_counted_once(
    tmp_path: Path, few_photos: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    arguments = [
        "source.kind=jsonl", f"source.path={few_photos}", f"source.images={PHOTOS}",
        f"output={out}", "workers=1",
    ]  # fmt: skip
    ran = command("shard", "count", *arguments)
    assert ran.out == f"50 captions counted, in {out / TABLE}\n"
    assert list(folder_bytes(out)) == [TABLE]

    def count_again(*_: object) -> None:
        raise AssertionError("it is there")

    monkeypatch.setattr("shard_tools.prepare.count_into", count_again)
    assert command("shard", "count", *arguments).status == 0
    build(photos_settings(out, few_photos))
    # More photos, or all of them in another folder with this table: nothing is counted.
    table = NegativeSettings(frequencies=str(out / TABLE))
    build(photos_settings(tmp_path / "other", negatives=table))
    assert TABLE not in folder_bytes(tmp_path / "other")


def test_a_table_of_other_lexicons_is_no_use(tmp_path: Path, few_photos: Path) -> None:
    build(photos_settings(tmp_path, few_photos))
    lexicon = tmp_path / "color.yaml"
    text = (Path(counting.__file__).parent / "lexicons/color.yaml").read_text()
    lexicon.write_text(text.replace("purple", "violet"))
    negatives = NegativeSettings(
        frequencies=str(tmp_path / TABLE), lexicons={"color": str(lexicon)}
    )
    with pytest.raises(ValueError, match="another lexicon of 'color'"):
        build(photos_settings(tmp_path / "other", few_photos, negatives=negatives))
    (tmp_path / TABLE).write_bytes(b"no table")
    negatives = NegativeSettings(frequencies=str(tmp_path / TABLE))
    with pytest.raises(ValueError, match=r"frequencies.json.gz: no table of word frequencies"):
        build(photos_settings(tmp_path / "other", few_photos, negatives=negatives))
