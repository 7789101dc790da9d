"""Small data sets in shard format 1, from the real photos or from plain tiles."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from PIL import Image

from hnpretrain.shards.index import Index, write_index
from hnpretrain.shards.marker import Marker, marker_name
from hnpretrain.shards.schema import Caption, Negative, Sample
from hnpretrain.shards.tar import END_OF_ARCHIVE, checksum
from shard_tools.writer import ShardWriter

PHOTOS = Path(__file__).parents[1] / "assets" / "coco_ccby"


def write_dataset(folder: Path | str, samples: Iterable[Sample], per_shard: int) -> Index:
    """Writes samples as shards with markers and an index, to a folder or URL."""
    samples = list(samples)
    markers = []
    for start in range(0, len(samples), per_shard):
        with ShardWriter() as writer:
            for sample in samples[start : start + per_shard]:
                writer.add(sample)
            markers.append(writer.finish(str(folder), f"{start:06d}.tar", "test", "test", "test"))
    index = Index.of(markers)
    write_index(str(folder), index)
    return index


def write_members(
    folder: Path, samples: Iterable[tuple[str, Mapping[str, bytes]]], per_shard: int
) -> Index:
    """Writes samples that need not be whole, as (key, extension to bytes), with markers."""
    samples = list(samples)
    markers = []
    folder.mkdir(parents=True, exist_ok=True)
    for start in range(0, len(samples), per_shard):
        parts = [tar_bytes(*sample) for sample in samples[start : start + per_shard]]
        tar = b"".join(parts) + END_OF_ARCHIVE
        marker = Marker(
            name=f"{start:06d}.tar",
            samples=len(parts),
            bytes=len(tar),
            sha256=hashlib.sha256(tar).hexdigest(),
            offsets=tuple(itertools.accumulate(map(len, parts), initial=0)),
            crc32=tuple(checksum(part) for part in parts),
        )
        (folder / marker.name).write_bytes(tar)
        (folder / marker_name(marker.name)).write_bytes(marker.to_bytes())
        markers.append(marker)
    index = Index.of(markers)
    write_index(str(folder), index)
    return index


def tar_bytes(key: str, members: Mapping[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for extension, data in members.items():
            info = tarfile.TarInfo(f"{key}.{extension}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        return file.getvalue()[: archive.offset]


def tile(number: int, negatives: int = 2) -> Sample:
    """A tiny image of one color with two captions; key and color tell the number."""
    buffer = io.BytesIO()
    color = (number % 256, number // 256 % 256, 90)
    Image.new("RGB", (16, 16), color).save(buffer, "PNG")
    captions = tuple(
        Caption(
            f"tile {number} {name}",
            tuple(
                Negative(f"tile {number} {name} not {k}", "object", "replace", "a", "b", (0, 1))
                for k in range(negatives)
            ),
        )
        for name in ("one", "two")
    )
    return Sample(f"{number:06d}", buffer.getvalue(), "png", captions)


def photo_samples() -> list[Sample]:
    """The 73 photos; each caption has one made-up negative."""
    samples = []
    for line in (PHOTOS / "data.jsonl").read_text().splitlines():
        record = json.loads(line)
        path = PHOTOS / record["image"]
        captions = tuple(
            Caption(text, (Negative(f"no {text}", "negation", "negate", "", "no", (0, 0)),))
            for text in record["captions"]
        )
        samples.append(Sample(path.stem, path.read_bytes(), "jpg", captions))
    return samples
