"""Checks a built data set against its markers and index, byte by byte."""

from __future__ import annotations

import dataclasses
import hashlib
import multiprocessing
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import pairwise

from hnpretrain.shards import storage
from hnpretrain.shards.images import BadImage, check_image
from hnpretrain.shards.index import INDEX_NAME, Index, read_index
from hnpretrain.shards.marker import Marker, marker_name, read_marker
from hnpretrain.shards.schema import Caption, Sample
from hnpretrain.shards.tar import END_OF_ARCHIVE, decode_sample


def verify(folder: str, max_pixels: int, workers: int) -> Iterator[str]:
    """Checks every shard, its marker and the index.

    Args:
        folder: a folder or URL of shards.
        max_pixels: as in the build.
        workers: processes.

    Yields:
        one line a problem, as they are found; none if all is well.

    Raises:
        ValueError: there is no such folder, or no shard in it.
    """
    try:
        names = storage.list_files(folder, "")
    except FileNotFoundError as error:
        raise ValueError(f"{folder!r} is not a folder") from error
    tars = [name for name in names if name.endswith(".tar")]
    expected = {marker_name(tar) for tar in tars}
    found = {name for name in names if name.endswith(".marker.json")}
    if not tars and not found:
        raise ValueError(f"{folder!r} holds no shard (no .tar)")
    for marker in sorted(found - expected):
        yield f"{marker}: its shard is missing"
    check = partial(check_shard, folder, max_pixels=max_pixels)
    if workers == 1:
        for tar in tars:
            yield from check(tar)
    else:
        with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
            for problems in pool.map(check, tars):
                yield from problems
    yield from _check_index(folder)


def check_shard(folder: str, name: str, max_pixels: int) -> list[str]:
    """The problems of one shard."""
    try:
        marker = read_marker(folder, name)
    except FileNotFoundError:
        return [f"{name}: no marker, so it is unfinished; start the build again"]
    except ValueError as error:
        return [f"{name}: {error}"]
    return [f"{name}: {problem}" for problem in _check_content(folder, name, marker, max_pixels)]


def _check_content(folder: str, name: str, marker: Marker, max_pixels: int) -> Iterator[str]:
    path = storage.join(folder, name)
    size = storage.size(path)
    if marker.name != name:
        yield f"its marker is that of {marker.name}"
    if size != marker.bytes:
        yield f"{size} bytes, {marker.bytes} in its marker"
        return
    offsets = marker.offsets
    end = marker.bytes - len(END_OF_ARCHIVE)
    rising = all(start < stop for start, stop in pairwise(offsets))
    if offsets[0] != 0 or offsets[-1] != end or not rising:
        yield f"its marker's offsets do not rise from 0 to {end}"
        return

    digest = hashlib.sha256()
    samples: list[Sample] = []
    previous = ""
    with storage.open_read(path) as file:
        for number, (start, stop) in enumerate(pairwise(offsets)):
            data = file.read(stop - start)
            digest.update(data)
            try:
                sample = decode_sample(data).sample()
            except ValueError as error:
                yield f"sample {number} (byte {start}): {error}"
                continue
            for problem in _check_sample(sample, data, max_pixels):
                yield f"sample {sample.key}: {problem}"
            if sample.key <= previous:
                yield f"sample {sample.key}: stands behind {previous}; keys must be in order"
            previous = sample.key
            samples.append(dataclasses.replace(sample, image=b""))  # only counted from here on
        tail = file.read()
    digest.update(tail)
    if tail != END_OF_ARCHIVE:
        yield "does not end with an archive's two blocks of zeros"
    if digest.hexdigest() != marker.sha256:
        yield f"sha256 {digest.hexdigest()}, {marker.sha256} in its marker"
    if len(samples) == marker.samples:
        yield from _check_counts([c for sample in samples for c in sample.captions], marker)


def _check_sample(sample: Sample, data: bytes, max_pixels: int) -> Iterator[str]:
    try:
        extension = check_image(sample.image, max_pixels)
        if extension != sample.extension.replace("jpeg", "jpg"):
            yield f"a {extension} image under the name .{sample.extension}"
    except BadImage as error:
        yield str(error)
    text = decode_sample(data).members.get("txt")
    if text != sample.captions[0].text.encode():
        yield "its .txt is not its first caption"
    for caption in sample.captions:
        for negative in caption.negatives:
            start, end = negative.span
            if not 0 <= start < end <= len(caption.text):
                yield f"span {[start, end]} lies outside {caption.text!r}"
            elif caption.text[start:end] != negative.source:
                yield f"span {[start, end]} of {caption.text!r} is not {negative.source!r}"
            if negative.text == caption.text:
                yield f"a negative equals its caption {caption.text!r}"


def _check_counts(captions: list[Caption], marker: Marker) -> Iterator[str]:
    negatives = [negative for caption in captions for negative in caption.negatives]
    counted = {
        "captions": len(captions),
        "captions_with_negatives": sum(bool(caption.negatives) for caption in captions),
        "negatives": len(negatives),
        "max_negatives": max((len(caption.negatives) for caption in captions), default=0),
        "concepts": dict(Counter(negative.concept for negative in negatives)),
        "strategies": dict(Counter(negative.strategy for negative in negatives)),
    }
    for field, value in counted.items():
        if getattr(marker, field) != value:
            yield f"{field}: {value} counted, {getattr(marker, field)} in its marker"


def _check_index(folder: str) -> Iterator[str]:
    try:
        index = read_index(folder)
        markers = [
            read_marker(folder, name.removesuffix(".marker.json") + ".tar")
            for name in storage.list_files(folder, ".marker.json")
        ]
    except ValueError as error:
        yield f"{INDEX_NAME}: {error}"
        return
    expected = Index.of(markers)
    for field in dataclasses.fields(Index):
        if getattr(index, field.name) != getattr(expected, field.name):
            yield f"{INDEX_NAME}: its {field.name} do not agree with the markers"
