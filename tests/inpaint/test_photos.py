"""Photos of each kind of source, with their negatives, and what cannot be used."""

import dataclasses
import io
import json
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from hnpretrain.inpaint.photos import Photo, read_photos
from hnpretrain.shards.index import Index, write_index
from hnpretrain.shards.marker import Reject, read_marker
from hnpretrain.shards.schema import Caption
from shard_tools.sources import SourceSettings
from tests.support.shards import PHOTOS, photo_samples, write_shards

MOST = 1_000_000


def records(count):
    lines = (PHOTOS / "data.jsonl").read_text().splitlines()[:count]
    return [json.loads(line) for line in lines]


def jsonl(folder, rows):
    path = folder / "photos.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return SourceSettings("jsonl", str(path), str(PHOTOS))


def write_tar(path, members):
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def tar_of(path):
    return SourceSettings("tar", str(path))


def read(source, max_pixels=MOST):
    return list(read_photos(source, max_pixels))


def test_all_photos_with_what_is_known_of_them():
    photos = read(SourceSettings("jsonl", str(PHOTOS / "data.jsonl")))
    expected = records(73)
    assert len(photos) == 73
    assert {type(photo) for photo in photos} == {Photo}
    for photo, record in zip(photos, expected, strict=True):
        assert photo.key == Path(record["image"]).stem
        assert photo.image == (PHOTOS / record["image"]).read_bytes()
        assert photo.extension == "jpg"
        assert [c.text for c in photo.captions] == [
            " ".join(text.split()) for text in record["captions"]
        ]
        assert not any(caption.negatives for caption in photo.captions)
        assert set(photo.objects) == {i["category"] for i in record["instances"]}
        assert photo.meta["instances"] == record["instances"]
        assert photo.meta["license_url"] == record["license_url"]


def test_coco_leaves_the_id_by_which_instances_are_found(tmp_path):
    row = records(1)[0]
    name = Path(row["image"]).name
    (tmp_path / "captions.json").write_text(
        json.dumps(
            {
                "images": [{"id": 790, "file_name": name, "width": 340, "height": 224}],
                "annotations": [{"image_id": 790, "caption": c} for c in row["captions"]],
            }
        )
    )
    source = SourceSettings("coco", str(tmp_path / "captions.json"), str(PHOTOS / "images"))
    (photo,) = read(source)
    assert photo.meta == {"id": 790, "file_name": name, "width": 340, "height": 224}
    assert photo.objects == ()


def test_our_shards_keep_their_negatives(tmp_path):
    samples = photo_samples(12)
    folder = write_shards(tmp_path / "shards", samples[:5], samples[5:])
    photos = read(tar_of(folder))
    assert sum(len(c.negatives) for s in samples for c in s.captions) > 20
    for photo, sample in zip(photos, samples, strict=True):
        assert photo.key == sample.key
        assert photo.image == sample.image
        assert photo.captions == sample.captions
    assert read(tar_of(folder / "*.tar")) == photos


def test_a_caption_of_another_writer_keeps_the_places_of_its_changes(tmp_path):
    """Spans count its characters as they are, double spaces too."""
    negative = {"text": "a  blue dog", "concept": "color", "strategy": "x", "from": "red"}
    negative |= {"to": "blue", "span": [3, 6]}
    sample = {"captions": [{"text": "a  red dog", "negatives": [negative]}, "a  dog", {"text": ""}]}
    image = photo_samples(1)[0].image
    write_tar(tmp_path / "0.tar", {"a.jpg": image, "a.json": json.dumps(sample).encode()})
    reject, photo = read(tar_of(tmp_path))
    assert (reject.key, reject.reason) == ("a", "bad_caption")
    red, plain = photo.captions
    start, end = red.negatives[0].span
    assert red.text[start:end] == "red"
    assert plain == Caption("a dog")


def test_tars_of_others_have_captions_alone(tmp_path):
    image = photo_samples(1)[0].image
    write_tar(
        tmp_path / "0.tar",
        {
            **{"a.jpg": image, "a.txt": b"a cake", "a.json": b'{"width": 3, "caption": "x"}'},
            **{"b.jpg": image, "b.json": b'{"captions": ["a cake", "a party"]}'},
        },
    )
    a, b = read(tar_of(tmp_path))
    assert (a.captions, a.meta) == ((Caption("a cake"),), {"width": 3, "caption": "x"})
    assert b.captions == (Caption("a cake"), Caption("a party"))


def test_an_index_tells_which_tars_and_where(tmp_path):
    samples = photo_samples(6)
    tars = write_shards(tmp_path / "tars", samples[:2], samples[2:4], samples[4:])
    markers = [read_marker(str(tars), name) for name in ("0.tar", "2.tar")]
    (tmp_path / "index").mkdir()
    write_index(str(tmp_path / "index"), Index.of(markers, str(tars)))
    photos = read(tar_of(tmp_path / "index"))
    assert [p.key for p in photos] == [s.key for s in samples[:2] + samples[4:]]

    (tars / "2.tar").unlink()
    with pytest.raises(ValueError, match=r"index.json lists 2.tar, which .*tars lacks"):
        read_photos(tar_of(tmp_path / "index"), MOST)


def test_an_index_of_another_tool_is_passed_over(tmp_path):
    folder = write_shards(tmp_path, photo_samples(2))
    (folder / "index.json").write_text('{"__kind__": "wids-shard-index-v1", "shardlist": []}')
    assert len(read(tar_of(folder))) == 2


def png(width, height):
    file = io.BytesIO()
    Image.new("RGB", (width, height), "red").save(file, "PNG")
    return file.getvalue()


def test_what_cannot_be_used_is_told_and_survived(tmp_path):
    good = photo_samples(1)[0].image
    captions = b"a cake"
    bad = json.dumps({"captions": [{"text": "a cake", "negatives": [{"text": "a pie"}]}]}).encode()
    write_tar(
        tmp_path / "0.tar",
        {
            **{"0cut.jpg": good[: len(good) // 2], "0cut.txt": captions},
            **{"1text.jpg": b"no image", "1text.txt": captions},
            **{"2large.png": png(400, 300), "2large.txt": captions},
            **{"3bare.txt": captions},
            **{"4mute.jpg": good},
            **{"5json.jpg": good, "5json.json": b"{"},
            **{"6negatives.jpg": good, "6negatives.json": bad},
            **{"7good.jpg": png(30, 20), "7good.txt": captions},
        },
    )
    write_tar(tmp_path / "1.tar", {"7good.jpg": good, "7good.txt": captions})
    whole = (tmp_path / "1.tar").read_bytes()
    (tmp_path / "2.tar").write_bytes(whole[: len(good) // 2])
    found = read(tar_of(tmp_path), max_pixels=100_000)
    assert [(each.key, getattr(each, "reason", "")) for each in found] == [
        ("0cut", "broken_image"),
        ("1text", "not_an_image"),
        ("2large", "too_many_pixels"),
        ("3bare", "missing_image"),
        ("4mute", "no_caption"),
        ("5json", "bad_json"),
        ("6negatives", "bad_negatives"),
        ("7good", ""),
        ("7good", "duplicate_key"),
        ("2.tar", "broken_tar"),
    ]
    assert found[7].extension == "png"  # the actual format's
    assert "'concept'" in found[6].detail


def test_a_photo_that_is_not_there_is_a_reject(tmp_path):
    rows = records(2)
    rows[0]["image"] = "images/none.jpg"
    reject, photo = read(jsonl(tmp_path, rows))
    assert isinstance(reject, Reject)
    assert (reject.key, reject.reason) == ("none", "missing_image")
    assert photo.key == Path(rows[1]["image"]).stem


def test_wrong_settings_are_told_before_anything_is_read(tmp_path):
    for source, message in (
        (SourceSettings("jsonl", str(tmp_path / "none.jsonl")), "is not a file"),
        (tar_of(tmp_path), "no .tar found"),
        (SourceSettings("tar"), "source.path is empty"),
        (jsonl(tmp_path, [{"image": "a.jpg"}]), "line 1: no field 'captions'"),
    ):
        with pytest.raises(ValueError, match=message):
            read_photos(source, MOST)


def test_photos_are_immutable():
    photo = Photo("a", b"", "jpg", (Caption("a cake"),))
    with pytest.raises(dataclasses.FrozenInstanceError):
        photo.key = "b"
