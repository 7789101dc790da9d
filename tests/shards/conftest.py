"""Sources of a few real photos in each form, and builds of them."""

from __future__ import annotations

import io
import json
import struct
import sys
import tarfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import shard_tools.prepare
from shard_tools.negatives import NegativeMaker, NegativeSettings
from shard_tools.negatives.frequencies import FrequencyTable
from shard_tools.settings import BuildSettings
from shard_tools.sources import SourceSettings

PHOTOS = Path(__file__).parents[1] / "assets" / "coco_ccby"


@pytest.fixture(scope="session")
def records() -> list[dict[str, Any]]:
    """The lines of the 73 photos' data.jsonl."""
    return [json.loads(line) for line in (PHOTOS / "data.jsonl").read_text().splitlines()]


@pytest.fixture(scope="session")
def photo() -> bytes:
    return (PHOTOS / "images" / "000000000790.jpg").read_bytes()


@pytest.fixture(autouse=True)
def one_maker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Builds inside this process share one loaded spaCy model."""
    monkeypatch.setattr(shard_tools.prepare, "NegativeMaker", _maker)


_MAKERS: dict[str, NegativeMaker] = {}


def _maker(
    settings: NegativeSettings, seed: int, frequencies: FrequencyTable | None
) -> NegativeMaker:
    name = f"{settings} {seed} {frequencies and frequencies.digest}"
    if name not in _MAKERS:
        _MAKERS[name] = NegativeMaker(settings, seed, frequencies)
    return _MAKERS[name]


def photos_settings(
    output: Path | str, manifest: Path = PHOTOS / "data.jsonl", **changes: Any
) -> BuildSettings:
    """A build of the photos in a manifest, by this process."""
    source = SourceSettings("jsonl", str(manifest), str(PHOTOS))
    return BuildSettings(source, str(output), **{"workers": 1, **changes})


@pytest.fixture(scope="session")
def few_photos(tmp_path_factory: pytest.TempPathFactory, records: list[dict[str, Any]]) -> Path:
    """A manifest of the first ten photos."""
    return write_jsonl(tmp_path_factory.mktemp("few"), records[:10], {})


def write_jsonl(folder: Path, lines: list[Any], images: dict[str, bytes]) -> Path:
    """A manifest and its images in a folder; returns the manifest's path."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in images.items():
        (folder / name).write_bytes(data)
    path = folder / "data.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> None:
    """A tar as others write them: GNU headers, with times."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(data), 1_700_000_000
            archive.addfile(info, io.BytesIO(data))


def img2dataset_members(record: dict[str, Any], number: int) -> list[tuple[str, bytes]]:
    """The members that img2dataset writes for one photo."""
    key, caption = f"{number:09d}", record["captions"][0]
    fields = {"caption": caption, "key": key, "status": "success", "url": record["flickr_url"]}
    return [
        (f"{key}.jpg", (PHOTOS / record["image"]).read_bytes()),
        (f"{key}.txt", caption.encode()),
        (f"{key}.json", json.dumps(fields).encode()),
    ]


def png_bomb(width: int, height: int) -> bytes:
    """A small PNG that claims to be huge."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(1000))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


def folder_bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@dataclass
class Ran:
    """What a command line did."""

    status: int
    out: str
    err: str


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Ran]:
    """Runs `hnpretrain ARGUMENTS` inside this process."""
    from hnpretrain import cli

    def run(*arguments: str) -> Ran:
        monkeypatch.setattr(sys, "argv", ["hnpretrain", *arguments])
        status = 0
        try:
            cli.main()
        except SystemExit as error:
            status = int(error.code or 0)
        return Ran(status, *capsys.readouterr())

    return run
