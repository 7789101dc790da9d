"""`s3://` as source and as output, against a server on this machine."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hnpretrain.shards import storage
from shard_tools.job import BuildSettings, build
from shard_tools.sources import SourceSettings
from shard_tools.verify import verify
from tests.shards.conftest import (
    PHOTOS,
    folder_bytes,
    img2dataset_members,
    photos_settings,
    write_tar,
)


def download(url: str) -> dict[str, bytes]:
    names = storage.list_files(url, "")
    return {name: storage.read_bytes(storage.join(url, name)) for name in names}


def without_source(files: dict[str, bytes]) -> dict[str, Any]:
    """Files of a data set, without the markers' fingerprint of where the photos came from."""
    read: dict[str, Any] = dict(files)
    for name in files:
        if name.endswith(".marker.json"):
            read[name] = json.loads(files[name])
            del read[name]["source_fingerprint"]
    return read


def test_storage_sees_what_other_processes_wrote(bucket: str) -> None:
    storage.write_bytes(f"{bucket}/seen/a.tar", b"a")
    assert storage.list_sizes(f"{bucket}/seen", ".tar") == {"a.tar": 1}
    assert not storage.exists(f"{bucket}/seen/b.tar")
    code = "import sys; from hnpretrain.shards.storage import *; write_bytes(sys.argv[1], b'bb')"
    subprocess.run([sys.executable, "-c", code, f"{bucket}/seen/b.tar"], check=True)
    assert storage.list_sizes(f"{bucket}/seen", ".tar") == {"a.tar": 1, "b.tar": 2}
    assert storage.exists(f"{bucket}/seen/b.tar")


def test_a_manifest_on_s3_gives_the_same_bytes(
    bucket: str, tmp_path: Path, few_photos: Path, records: list[dict[str, Any]]
) -> None:
    s3, _ = storage.filesystem(bucket)
    s3.put_file(str(few_photos), "photos/in/data.jsonl")
    for record in records[:10]:
        s3.put_file(str(PHOTOS / record["image"]), f"photos/in/{record['image']}")
    build(photos_settings(tmp_path, few_photos, samples_per_shard=4))

    source = SourceSettings("jsonl", f"{bucket}/in/data.jsonl")
    settings = BuildSettings(source, f"{bucket}/out", samples_per_shard=4, workers=2)
    assert build(settings).built == 3
    built = download(f"{bucket}/out")
    assert without_source(built) == without_source(folder_bytes(tmp_path))
    assert list(verify(f"{bucket}/out", 10**8, workers=1)) == []

    storage.remove(f"{bucket}/out/00001.marker.json")
    result = build(settings)
    assert (result.built, result.kept) == (1, 2)
    assert download(f"{bucket}/out") == built


def test_tars_on_s3(bucket: str, tmp_path: Path, records: list[dict[str, Any]]) -> None:
    s3, _ = storage.filesystem(bucket)
    for number in range(2):
        path = tmp_path / "tars" / f"{number:05d}.tar"
        write_tar(path, img2dataset_members(records[number], number))
        s3.put_file(str(path), f"photos/tars/{path.name}")
    source = SourceSettings("tar", f"{bucket}/tars/{{00000..00001}}.tar")
    settings = BuildSettings(source, str(tmp_path / "out"), workers=1)
    assert build(settings).index.samples == 2
    assert build(settings).kept == 2

    local = BuildSettings(SourceSettings("tar", str(tmp_path / "tars")), str(tmp_path / "local"))
    local.workers = 1
    build(local)
    for name in ("00000.tar", "00001.tar"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "local" / name).read_bytes()

    # Another content under the same name is noticed by its ETag.
    write_tar(tmp_path / "tars" / "00001.tar", img2dataset_members(records[5], 5))
    s3.put_file(str(tmp_path / "tars" / "00001.tar"), "photos/tars/00001.tar")
    assert build(settings).built == 1


def test_what_is_missing_on_s3(bucket: str) -> None:
    for path, message in (
        (f"{bucket}/none", "there is no 's3://photos/none'"),
        (f"{bucket}/none/1.tar", "there is no 's3://photos/none/1.tar'"),
    ):
        with pytest.raises(ValueError, match=message):
            build(BuildSettings(SourceSettings("tar", path), f"{bucket}/x"))
    manifest = SourceSettings("jsonl", f"{bucket}/none.jsonl")
    with pytest.raises(ValueError, match=r"source.path='s3://photos/none.jsonl' is not a file"):
        build(BuildSettings(manifest, f"{bucket}/x"))
    assert not storage.is_folder(f"{bucket}/x")
