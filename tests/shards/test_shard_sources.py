"""What the sources make of their files."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from hnpretrain.shards import storage
from hnpretrain.shards.marker import Reject
from hnpretrain.shards.schema import clean_caption
from shard_tools.sources import SourceSample, SourceSettings, SourceShard, manifest, plan_source
from shard_tools.sources.base import clean_key
from tests.shards.conftest import PHOTOS, img2dataset_members, write_jsonl, write_tar


def read_all(shards: list[SourceShard]) -> list[SourceSample | Reject]:
    return [item for shard in shards for item in shard.read()]


def coco(folder: Path, records: list[dict[str, Any]], **changes: Any) -> SourceSettings:
    """The photos as COCO writes them: captions and instances apart, in no order."""
    images = [
        {"id": r["coco_id"], "file_name": Path(r["image"]).name, "license": r["license_id"]}
        for r in reversed(records)
    ]
    annotations = [
        {"image_id": r["coco_id"], "id": i, "caption": f" {c}\n"}
        for r in records
        for i, c in enumerate(r["captions"])
    ]
    names = sorted({i["category"] for r in records for i in r["instances"]})
    instances = [
        {"image_id": r["coco_id"], "category_id": names.index(i["category"])}
        for r in records
        for i in r["instances"]
    ]
    categories = [{"id": number, "name": name} for number, name in enumerate(names)]
    captions = {"images": images, "annotations": annotations, **changes}
    (folder / "captions.json").write_text(json.dumps(captions))
    (folder / "instances.json").write_text(
        json.dumps({"categories": categories, "annotations": instances})
    )
    return SourceSettings(
        "coco",
        str(folder / "captions.json"),
        str(PHOTOS / "images"),
        str(folder / "instances.json"),
    )


def test_coco_in_the_order_of_ids(tmp_path: Path, records: list[dict[str, Any]]) -> None:
    shards = plan_source(coco(tmp_path, records), 30)
    assert [(s.name, s.samples) for s in shards] == [
        ("00000.tar", 30), ("00001.tar", 30), ("00002.tar", 13),
    ]  # fmt: skip
    samples = read_all(shards)
    expected = {f"{r['coco_id']:012d}": r for r in records}
    assert [s.key for s in samples] == sorted(expected)
    for sample in samples:
        record = expected[sample.key]
        assert isinstance(sample, SourceSample)
        assert sample.image == (PHOTOS / record["image"]).read_bytes()
        assert sample.captions == tuple(" ".join(c.split()) for c in record["captions"])
        assert sample.objects == tuple(sorted({i["category"] for i in record["instances"]}))
        assert sample.meta["license"] == record["license_id"]
        assert sample.meta["objects"] == list(sample.objects)


def test_coco_names_an_image_without_caption(tmp_path: Path, records: list[dict[str, Any]]) -> None:
    images = [{"id": 1, "file_name": "1.jpg"}, {"id": 790, "file_name": "000000000790.jpg"}]
    annotations = [{"image_id": 790, "caption": "a cake"}]
    settings = coco(tmp_path, records, images=images, annotations=annotations)
    reject, sample = read_all(plan_source(settings, 10))
    assert isinstance(reject, Reject)
    assert isinstance(sample, SourceSample)
    assert (reject.key, reject.reason) == ("000000000001", "no_caption")


def test_the_photos_jsonl_as_it_stands(records: list[dict[str, Any]]) -> None:
    shards = plan_source(SourceSettings("jsonl", str(PHOTOS / "data.jsonl")), 30)
    samples = read_all(shards)
    assert len(samples) == 73
    for sample, record in zip(samples, records, strict=True):
        assert isinstance(sample, SourceSample)
        assert sample.key == Path(record["image"]).stem
        assert sample.image == (PHOTOS / record["image"]).read_bytes()
        assert sample.objects == tuple(sorted({i["category"] for i in record["instances"]}))
        assert sample.meta == {k: v for k, v in record.items() if k != "captions"}


def test_jsonl_fields(tmp_path: Path) -> None:
    lines = [
        {"image": "x.jpg", "caption": "one  two", "key": 7, "objects": ["b", "a"]},
        {"image": "y.jpg", "captions": ["three"], "key": "a/b", "note": None},
    ]
    path = write_jsonl(tmp_path, lines, {"x.jpg": b"X", "y.jpg": b"Y"})
    x, y = read_all(plan_source(SourceSettings("jsonl", str(path)), 10))
    meta = {"image": "x.jpg", "objects": ["b", "a"]}
    assert x == SourceSample("7", b"X", ("one two",), ("a", "b"), meta)
    assert isinstance(y, SourceSample)
    assert (y.key[:4], y.meta) == ("a_b-", {"image": "y.jpg", "note": None})


def test_a_manifest_that_changes_meanwhile_is_noticed(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path, [{"image": "x.jpg", "caption": "one"}], {"x.jpg": b"X"})
    shards = plan_source(SourceSettings("jsonl", str(path)), 10)
    path.write_text(path.read_text().replace("one", "two"))
    with pytest.raises(ValueError, match="changed while the job was running"):
        read_all(shards)


def test_tars_of_img2dataset(tmp_path: Path, records: list[dict[str, Any]]) -> None:
    for number in range(3):
        members = img2dataset_members(records[2 * number], 2 * number)
        members += img2dataset_members(records[2 * number + 1], 2 * number + 1)
        write_tar(tmp_path / f"{number:05d}.tar", members)
    (tmp_path / "00000_stats.json").write_text("{}")
    patterns = ("", "/*.tar", "/{00000..00002}.tar")
    plans = [plan_source(SourceSettings("tar", f"{tmp_path}{p}"), 1) for p in patterns]
    assert plans[0] == plans[1] == plans[2]
    assert [shard.name for shard in plans[0]] == ["00000.tar", "00001.tar", "00002.tar"]
    samples = read_all(plans[0])
    for number, (sample, record) in enumerate(zip(samples, records, strict=False)):
        assert isinstance(sample, SourceSample)
        assert sample.key == f"{number:09d}"
        assert sample.image == (PHOTOS / record["image"]).read_bytes()
        assert sample.captions == (" ".join(record["captions"][0].split()),)
        assert sample.meta["url"] == record["flickr_url"]


@pytest.mark.parametrize(
    "members, captions",
    [
        ({"json": b'{"captions": ["a", {"text": "b"}], "caption": "c"}', "txt": b"d"}, ("a", "b")),
        ({"json": b'{"caption": "c"}', "txt": b"d"}, ("d",)),
        ({"json": b'{"caption": "c", "captions": []}'}, ("c",)),
        ({"txt": "caf\u00e9".encode()}, ("caf\u00e9",)),
    ],
)
def test_where_a_tar_s_captions_come_from(
    tmp_path: Path, members: dict[str, bytes], captions: tuple[str, ...]
) -> None:
    write_tar(tmp_path / "a.tar", [("k.jpg", b"X"), *((f"k.{e}", d) for e, d in members.items())])
    (sample,) = read_all(plan_source(SourceSettings("tar", str(tmp_path)), 1))
    assert isinstance(sample, SourceSample)
    assert sample.captions == captions


@pytest.mark.parametrize(
    "members, reasons",
    [
        ({"jpg": b"X", "txt": b" \n"}, ["no_caption"]),
        ({"jpg": b"X", "txt": b"\xff"}, ["no_caption"]),
        ({"jpg": b"X"}, ["no_caption"]),
        ({"jpg": b"X", "json": b'{"captions": ["a", 5, ""]}'}, ["bad_caption", "bad_caption", ""]),
        ({"jpg": b"X", "json": b'{"captions": ["\\ud800"]}'}, ["no_caption"]),
        ({"jpg": b"X", "json": b"{", "txt": b"a"}, ["bad_json"]),
        ({"jpg": b"X", "json": b"[]", "txt": b"a"}, ["bad_json"]),
        ({"jpg": b"X", "json": b'{"caption": "a", "x": NaN}'}, ["bad_json"]),
        ({"jpg": b"X", "json": b'{"caption": "a", "x": -1e999}'}, ["bad_json"]),
        ({"gif": b"X", "txt": b"a"}, ["missing_image"]),
    ],
)
def test_what_is_wrong_in_a_tar_is_rejected(
    tmp_path: Path, members: dict[str, bytes], reasons: list[str]
) -> None:
    write_tar(tmp_path / "a.tar", [(f"k.{extension}", data) for extension, data in members.items()])
    items = read_all(plan_source(SourceSettings("tar", str(tmp_path)), 1))
    assert [getattr(item, "reason", "") for item in items] == reasons
    assert {item.key for item in items} == {"k"}


def test_a_cut_tar_gives_what_it_has_and_is_named(
    tmp_path: Path, records: list[dict[str, Any]]
) -> None:
    members = img2dataset_members(records[0], 0) + img2dataset_members(records[1], 1)
    path = tmp_path / "00000.tar"
    write_tar(path, members)
    path.write_bytes(path.read_bytes()[: len(members[0][1]) + 5000])
    sample, reject = read_all(plan_source(SourceSettings("tar", str(path)), 1))
    assert isinstance(sample, SourceSample)
    assert isinstance(reject, Reject)
    assert (sample.key, reject.key, reject.reason) == ("000000000", "00000.tar", "broken_tar")


def test_a_tar_with_another_behind_it_is_named(tmp_path: Path) -> None:
    for name in "ab":
        write_tar(tmp_path / f"{name}.tar", [(f"{name}.jpg", b"X"), (f"{name}.txt", b"a car")])
    both = (tmp_path / "a.tar").read_bytes() + (tmp_path / "b.tar").read_bytes()
    (tmp_path / "both.tar").write_bytes(both)
    items = read_all(plan_source(SourceSettings("tar", str(tmp_path / "both.tar")), 1))
    assert [getattr(item, "reason", "") for item in items] == ["broken_tar"]


def test_the_image_folder_is_part_of_a_manifest_s_fingerprint(
    tmp_path: Path, records: list[dict[str, Any]]
) -> None:
    manifest = write_jsonl(tmp_path, [{"image": "x.jpg", "caption": "one"}], {})
    for settings in (SourceSettings("jsonl", str(manifest)), coco(tmp_path, records)):
        fingerprints = []
        for folder in ("1", "2", "1"):
            (tmp_path / folder).mkdir(exist_ok=True)
            settings.images = str(tmp_path / folder)
            fingerprints.append(plan_source(settings, 100)[0].fingerprint())
        assert fingerprints[0] == fingerprints[2] != fingerprints[1]


@pytest.mark.parametrize("name", ["0.jpg/b.jpg", "a" * 300 + ".jpg", "folder", "none.jpg"])
def test_a_name_that_no_file_has_is_a_missing_image(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    path = write_jsonl(tmp_path, [{"image": name, "caption": "a"}], {"0.jpg": b"X"})
    (reject,) = read_all(plan_source(SourceSettings("jsonl", str(path)), 1))
    assert isinstance(reject, Reject)
    assert reject.reason == "missing_image"


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files read, as they are read."""
    names: list[str] = []
    read = storage.read_range

    def read_range(path: str, start: int, end: int) -> bytes:
        if path.endswith(".jpg"):
            names.append(Path(path).name)
        return read(path, start, end)

    monkeypatch.setattr(storage, "read_range", read_range)
    return names


@pytest.mark.parametrize("size, ahead", [(10, 16), (11, 1)])
def test_only_small_images_are_read_ahead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reads: list[str], size: int, ahead: int
) -> None:
    monkeypatch.setattr(manifest, "_MAX_BYTES_AHEAD", 10)
    images = {f"{i:02d}.jpg": bytes(size) for i in range(40)}
    lines = [{"image": name, "caption": "a"} for name in images]
    path = write_jsonl(tmp_path, lines, images)
    samples = plan_source(SourceSettings("jsonl", str(path)), 40)[0].read()
    next(samples)
    deadline = time.monotonic() + 60
    while len(reads) < ahead and time.monotonic() < deadline:
        time.sleep(0.002)
    assert len(reads) == ahead
    assert all(isinstance(sample, SourceSample) for sample in samples)
    assert sorted(reads) == sorted(images)


def test_an_image_beyond_the_limit_is_named_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reads: list[str]
) -> None:
    monkeypatch.setattr(manifest, "_MAX_BYTES_AHEAD", 10)
    monkeypatch.setattr(manifest, "MAX_MEMBER_BYTES", 20)
    path = write_jsonl(tmp_path, [{"image": "x.jpg", "caption": "a"}], {"x.jpg": bytes(21)})
    (reject,) = read_all(plan_source(SourceSettings("jsonl", str(path)), 1))
    assert isinstance(reject, Reject)
    assert (reject.key, reject.reason, reads) == ("x", "too_large", [])


def test_foreign_meanings_of_objects_do_no_harm(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [("k.jpg", b"X"), ("k.json", b'{"caption":"a","objects":3}')])
    (sample,) = read_all(plan_source(SourceSettings("tar", str(tmp_path)), 1))
    assert isinstance(sample, SourceSample)
    assert (sample.objects, sample.meta["objects"]) == ((), 3)


def test_a_source_tar_s_fingerprint_is_that_of_its_content(tmp_path: Path) -> None:
    write_tar(tmp_path / "1" / "a.tar", [("k.jpg", b"X")])
    write_tar(tmp_path / "2" / "a.tar", [("k.jpg", b"X")])
    write_tar(tmp_path / "3" / "a.tar", [("k.jpg", b"Y")])
    first, same, other = (
        plan_source(SourceSettings("tar", str(tmp_path / n)), 1)[0].fingerprint() for n in "123"
    )
    assert first == same != other


def test_keys_become_the_allowed_letters_and_stay_apart() -> None:
    assert clean_key("a-B_9") == "a-B_9"
    keys = [clean_key(key) for key in ("a/b", "a.b", "a" * 81, "a" * 82, "\ud800", "")]
    assert len(set(keys)) == 6
    assert all(len(key) <= 80 and key.replace("-", "_").isascii() for key in keys)


def test_captions_are_cleaned() -> None:
    assert clean_caption(" a  red\ncar ") == "a red car"
