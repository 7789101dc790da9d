"""What is wrong with input ends in one clear line and exit status 1, with nothing written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.shards.conftest import PHOTOS, Ran, write_jsonl, write_tar

Command = Callable[..., Ran]


def refused(ran: Ran, *parts: str) -> None:
    """One line on stderr, which holds all the parts; exit status 1."""
    assert ran.status == 1, ran.err
    (line,) = ran.err.splitlines()
    assert line.startswith("error: ")
    for part in parts:
        assert part in line, line


def coco(folder: Path, value: Any) -> list[str]:
    (folder / "captions.json").write_text(value if isinstance(value, str) else json.dumps(value))
    return [
        "shard", "build", "source.kind=coco", f"source.path={folder / 'captions.json'}",
        f"source.images={PHOTOS / 'images'}", f"output={folder / 'out'}",
    ]  # fmt: skip


def jsonl(folder: Path, lines: list[Any]) -> list[str]:
    path = write_jsonl(folder, lines, {})
    return [
        "shard", "build", "source.kind=jsonl", f"source.path={path}", f"output={folder / 'out'}",
    ]  # fmt: skip


IMAGE = {"id": 790, "file_name": "000000000790.jpg"}


@pytest.mark.parametrize(
    "value, parts",
    [
        ("not json", ("captions.json: not JSON",)),
        ([], ("holds a list", "a COCO captions json is")),
        ({"0": {"caption": "a"}}, ("no field 'annotations' (found 0)",)),
        ({"annotations": []}, ("no field 'images' (found annotations)",)),
        ({"images": {}, "annotations": []}, ("'images' must be a list",)),
        ({"images": [], "annotations": []}, ("not one image with a caption",)),
        (
            {"images": [IMAGE], "annotations": [{"image_id": 790, "category_id": 3}]},
            ("annotations[0] has no 'caption'",),
        ),
        (
            {"images": [IMAGE], "annotations": [{"image_id": 790, "caption": " \n"}]},
            ("annotations[0] (image 790): a caption is empty",),
        ),
        (
            {"images": [IMAGE], "annotations": [{"image_id": 790, "caption": 5}]},
            ("annotations[0] (image 790): a caption must be a string, got 5",),
        ),
        (
            {"images": [IMAGE], "annotations": [{"image_id": 791, "caption": "a"}]},
            ("captions of image 791, which 'images' lacks",),
        ),
        (
            {"images": [IMAGE, IMAGE], "annotations": [{"image_id": 790, "caption": "a"}]},
            ("images[0] and images[1] have one id, 790",),
        ),
        (
            {"images": [{"id": 1, "file_name": "../a.jpg"}], "annotations": []},
            ("images[0]: image '../a.jpg' is not inside the image folder",),
        ),
        (
            {"images": [{"id": 1, "file_name": "a\0b.jpg"}], "annotations": []},
            ("images[0]: image 'a\\x00b.jpg' is no file name",),
        ),
        (
            {"images": [{**IMAGE, "score": float("nan")}], "annotations": []},
            ("images[0]: Out of range float values are not JSON compliant",),
        ),
    ],
)
def test_coco_of_another_shape(
    tmp_path: Path, command: Command, value: Any, parts: tuple[str, ...]
) -> None:
    refused(command(*coco(tmp_path, value)), *parts)
    assert not (tmp_path / "out").exists()


LINE = {"image": "x.jpg", "caption": "a red car"}


@pytest.mark.parametrize(
    "lines, parts",
    [
        ([], ("data.jsonl: not one line",)),
        ([LINE, [1]], ("data.jsonl, line 2: holds a list",)),
        ([{"caption": "a"}], ("line 1: no field 'image'",)),
        ([{"image": "x.jpg"}], ("line 1: no field 'captions'",)),
        ([{"image": "x.jpg", "captions": "a"}], ("line 1: 'captions' must be a list",)),
        ([{"image": "x.jpg", "captions": ["a", ""]}], ("line 1: a caption is empty",)),
        ([{"image": "x.jpg", "caption": None}], ("a caption must be a string, got None",)),
        ([{"image": "x.jpg", "caption": "\ud800"}], ("a caption is no valid Unicode",)),
        ([{"image": "/etc/x.jpg", "caption": "a"}], ("is not inside the image folder",)),
        ([{"image": "s3://b/x.jpg", "caption": "a"}], ("is not inside the image folder",)),
        ([LINE, {**LINE, "image": "a\0b.jpg"}], ("line 2: image 'a\\x00b.jpg' is no file name",)),
        ([LINE, {**LINE, "image": "\ud800.jpg"}], ("line 2: image '\\ud800.jpg' is no file name",)),
        ([{**LINE, "score": float("inf")}], ("line 1: Out of range float values are not JSON",)),
        ([{**LINE, "key": 1.5}], ("'key' must be a string or an integer, got 1.5",)),
        ([{**LINE, "objects": "car"}], ("'objects' and 'instances' must be lists",)),
        ([LINE, {**LINE, "image": "b/x.jpg"}], ("lines 1 and 2 have one key, 'x'",)),
    ],
)
def test_jsonl_of_another_shape(
    tmp_path: Path, command: Command, lines: list[Any], parts: tuple[str, ...]
) -> None:
    refused(command(*jsonl(tmp_path, lines)), *parts)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "changes, part",
    [
        (["source.images=nowhere"], "source.images='nowhere' is not a folder"),
        (["source.path=nowhere.jsonl"], "source.path='nowhere.jsonl' is not a file"),
        (
            ["source.kind=json"],
            "source.kind='json' is not one of coco, jsonl,",
        ),
        (["source.kind=coco"], "source.images is empty"),
        (['output=""'], "output is empty"),
        (["wrokers=1"], "unknown key wrokers; did you mean 'workers'?"),
        (["source.pth=x"], "unknown key source.pth; did you mean 'path'?"),
        (["max_pixels=0"], "max_pixels=0: between 1 and"),
        (["workers=-1"], "workers=-1"),
        (["samples_per_shard=0"], "samples_per_shard=0"),
        (["max_reject_share=2"], "max_reject_share=2"),
        (["source.path=pipe:ls"], "run a shell and are refused"),
        (["nosuch.yaml"], "config 'nosuch.yaml' is not a file"),
    ],
)
def test_wrong_settings(tmp_path: Path, command: Command, changes: list[str], part: str) -> None:
    refused(command(*jsonl(tmp_path, [LINE]), *changes), part)
    assert not (tmp_path / "out").exists()


def test_two_config_files_are_wrong_use(command: Command) -> None:
    ran = command("shard", "build", "a.yaml", "b.yaml")
    assert ran.status == 2
    assert "one config file at most" in ran.err


def test_a_config_file_and_an_override(tmp_path: Path, command: Command, few_photos: Path) -> None:
    config = tmp_path / "build.yaml"
    config.write_text(
        f"source: {{kind: jsonl, path: {few_photos}, images: {PHOTOS}}}\nworkers: 1\noutput: out\n"
    )
    ran = command("shard", "build", str(config), f"output={tmp_path / 'out'}")
    assert ran.status == 0, ran.err
    assert f"1 shards built, 0 kept, in {tmp_path / 'out'}" in ran.out
    assert "shards 1/1 | 10 samples, 50 captions" in ran.err
    assert not Path("out").exists()


def test_tars_that_are_not_there(tmp_path: Path, command: Command) -> None:
    build = ["shard", "build", "source.kind=tar", f"output={tmp_path / 'out'}"]
    (tmp_path / "empty").mkdir()
    refused(command(*build, f"source.path={tmp_path / 'empty'}"), "no .tar found")
    refused(command(*build, f"source.path={tmp_path}/{{0..1}}.tar"), "there is no", "0.tar")
    (tmp_path / "x.tar.gz").touch()
    refused(command(*build, f"source.path={tmp_path}/x.tar.gz"), "compressed tars can't be used")
    for folder in "ab":
        write_tar(tmp_path / folder / "1.tar", [])
    refused(command(*build, f"source.path={tmp_path}/{{a,b}}"), "would both become 1.tar")
    assert not (tmp_path / "out").exists()


def test_the_source_s_own_folder_is_no_output(tmp_path: Path, command: Command) -> None:
    write_tar(tmp_path / "1.tar", [("a.txt", b"a")])
    before = (tmp_path / "1.tar").read_bytes()
    (tmp_path / "link").symlink_to(tmp_path)
    for output in (tmp_path, tmp_path / "link"):
        ran = command(
            "shard", "build", "source.kind=tar", f"source.path={tmp_path}", f"output={output}"
        )
        refused(ran, "is the source's own folder")
    assert (tmp_path / "1.tar").read_bytes() == before


def test_shards_of_another_source_are_not_mixed_in(tmp_path: Path, command: Command) -> None:
    write_tar(tmp_path / "out" / "other.tar", [("a.txt", b"a")])
    refused(
        command(*jsonl(tmp_path, [LINE])), "holds 1 files of shards that this source does not give"
    )


def test_too_many_rejects(tmp_path: Path, command: Command, photo: bytes) -> None:
    lines = [{"image": f"{i}.jpg", "caption": "a red car"} for i in range(6)]
    arguments = [*jsonl(tmp_path, lines), "workers=1"]
    (tmp_path / "0.jpg").write_bytes(photo)
    (tmp_path / "1.jpg").write_bytes(photo[:4000])
    ran = command(*arguments)
    assert ran.status == 1
    assert ran.err.splitlines()[-1].startswith(
        "error: 5 of 6 samples were rejected, more than max_reject_share=0.1 allows; no index was "
        "written: mend the source or raise max_reject_share, and start again. The markers name "
        "them all: 4 missing_image (2 in 00000.tar: no file "
    )
    assert "1 broken_image (1 in 00000.tar: OSError: image file is truncated" in ran.err
    assert not (tmp_path / "out" / "index.json").exists()
    assert command(*arguments, "max_reject_share=0.9").status == 0
    assert (tmp_path / "out" / "index.json").exists()


def test_no_sample_left(tmp_path: Path, command: Command) -> None:
    ran = command(*jsonl(tmp_path, [LINE]), "workers=1", "max_reject_share=1")
    assert ran.status == 1
    assert "1 of 1 samples were rejected, so none is left" in ran.err
    assert "mend the source, and start again" in ran.err
