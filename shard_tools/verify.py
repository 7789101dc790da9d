"""Checks a built data set: bytes against markers and index, and every rule that texts can break.

1. Each shard is read once, front to back, beside its marker: size, offsets, hashes, end.
2. Each sample must be of format 1, in the order of the keys. Of its image the header is checked,
   or with `deep` all of it, by decoding it once: the larger the images, the longer that takes.
3. Each negative must be the edit that it says it is (`edits.locate`), agree with its article, and
   be neither a caption of its image nor another negative of its caption, in words.
4. The counts must be those in the marker, and the markers' sum the index.

Of tars that others wrote, whose index `shard index` made, 2. and 3. do not hold: each is read as it
was then, and must give the same marker.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping
from functools import partial
from itertools import pairwise
from typing import Any

from hnpretrain.shards import storage
from hnpretrain.shards.images import BadImage, check_header, check_image
from hnpretrain.shards.index import INDEX_NAME, Index, read_index
from hnpretrain.shards.marker import Marker, marker_name, read_marker
from hnpretrain.shards.schema import Caption, Negative, Sample
from hnpretrain.shards.tar import END_OF_ARCHIVE, RawSample, checksum, decode_sample
from shard_tools.caption_counts import CaptionCounts
from shard_tools.edits import Edit, locate, short
from shard_tools.indexing import problems_of_tar
from shard_tools.negatives import english
from shard_tools.parallel import Progress, each_shard
from shard_tools.summary import sum_markers

# The words of docs/architecture.md; a lexicon of the user's may add concepts, which the marker has.
CONCEPTS = frozenset(
    "object color size location attribute relation action count order negation".split()  # noqa: SIM905
)
STRATEGIES = frozenset("replace swap fill wordnet shuffle negate".split())  # noqa: SIM905

# Problems of one shard that are listed; the others are counted.
_LISTED = 20


def verify(
    folder: str,
    max_pixels: int,
    workers: int,
    deep: bool = False,
    progress: Progress | None = None,
) -> Iterator[str]:
    """Checks every shard, its marker and the index.

    Args:
        folder: a folder or URL of shards.
        max_pixels: as in the build; markers of tars that others wrote have it.
        workers: processes.
        deep: decode every image; else its header must do.
        progress: is called with the number of shards done and that of all.

    Yields:
        one line a problem, as they are found, at most 20 a shard and then how many more; none if
        all is well.

    Raises:
        ValueError: there is no such folder, or no shard in it.
    """
    try:
        names = storage.list_files(folder, "")
    except FileNotFoundError as error:
        raise ValueError(f"{folder!r} is not a folder") from error
    if INDEX_NAME in names and (index := _index_of_others(folder)):
        place = index.folder_of_tars(folder)
        look = partial(problems_of_tar, place, folder, deep=deep)
        for problems in each_shard(look, [s.name for s in index.shards], workers, progress):
            yield from problems
        yield from _check_index(folder)
        return
    tars = [name for name in names if name.endswith(".tar")]
    expected = {marker_name(tar) for tar in tars}
    found = {name for name in names if name.endswith(".marker.json")}
    if not tars and not found:
        raise ValueError(f"{folder!r} holds no shard (no .tar)")
    for marker in sorted(found - expected):
        yield f"{marker}: its shard is missing"
    check = partial(check_shard, folder, max_pixels=max_pixels, deep=deep)
    for problems in each_shard(check, tars, workers, progress):
        yield from problems
    yield from _check_index(folder)


def _index_of_others(folder: str) -> Index | None:
    """The index, if it is one of tars that others wrote, which `shard index` made."""
    try:
        index = read_index(folder)
    except ValueError:
        return None  # _check_index will say so
    return index if index.tars else None


def check_shard(folder: str, name: str, max_pixels: int, deep: bool) -> list[str]:
    """The problems of one shard: the first 20, and how many there are more."""
    try:
        marker = read_marker(folder, name)
    except FileNotFoundError:
        return [f"{name}: no marker, so it is unfinished; start the build again"]
    except ValueError as error:
        return [f"{name}: {error}"]
    listed: list[str] = []
    more = 0
    try:
        for problem in _check_content(folder, name, marker, max_pixels, deep):
            if len(listed) < _LISTED:
                listed.append(f"{name}: {problem}")
            else:
                more += 1
    except OSError as error:
        listed.append(f"{name}: cannot be read: {error}")
    return [*listed, f"{name}: and {more} more"] if more else listed


def _check_content(
    folder: str, name: str, marker: Marker, max_pixels: int, deep: bool
) -> Iterator[str]:
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
    captions = CaptionCounts()
    samples = 0
    previous = ""
    with storage.open_read(path) as file:
        for number, (start, stop) in enumerate(pairwise(offsets)):
            data = file.read(stop - start)
            digest.update(data)
            if checksum(data) != marker.crc32[number]:
                yield f"sample {number} (byte {start}): its crc32 is not that in the marker"
            try:
                raw = decode_sample(data)
                if raw.stop != len(data):
                    raise ValueError("expected the bytes of one sample, found more behind it")
                sample = raw.sample()
            except ValueError as error:
                yield f"sample {number} (byte {start}): {error}"
                continue
            for problem in _check_sample(sample, raw, marker, max_pixels, deep):
                yield f"sample {sample.key}: {problem}"
            if sample.key <= previous:
                yield f"sample {sample.key}: stands behind {previous}; keys must be in order"
            previous = sample.key
            captions.add(sample.captions)
            samples += 1
        tail = file.read()
    digest.update(tail)
    if tail != END_OF_ARCHIVE:
        yield "does not end with an archive's two blocks of zeros"
    if digest.hexdigest() != marker.sha256:
        yield f"sha256 {digest.hexdigest()}, {marker.sha256} in its marker"
    if samples == marker.samples:
        yield from differences(captions.fields(), marker)


def _check_sample(
    sample: Sample, raw: RawSample, marker: Marker, max_pixels: int, deep: bool
) -> Iterator[str]:
    check = check_image if deep else check_header
    try:
        extension = check(sample.image, max_pixels)
        if extension != sample.extension.replace("jpeg", "jpg"):
            yield f"a {extension} image under the name .{sample.extension}"
    except BadImage as error:
        yield str(error)
    if raw.members.get("txt") != sample.captions[0].text.encode():
        yield "its .txt is not its first caption"
    positives = {english.plain(caption.text) for caption in sample.captions}
    for caption in sample.captions:
        own = english.plain(caption.text)
        seen: set[str] = set()
        for negative in caption.negatives:
            yield from _check_edit(caption, negative)
            words = english.plain(negative.text)
            if words == own:
                yield f"a negative equals its caption {short(caption.text)}"
            elif words in positives:
                yield f"the negative {short(negative.text)} equals another caption of the image"
            elif words in seen:
                yield f"the negative {short(negative.text)} comes twice"
            seen.add(words)
            if negative.concept not in CONCEPTS and negative.concept not in marker.concepts:
                yield f"unknown concept {short(negative.concept)}"
            if negative.strategy not in STRATEGIES and negative.strategy not in marker.strategies:
                yield f"unknown strategy {short(negative.strategy)}"


def _check_edit(caption: Caption, negative: Negative) -> Iterator[str]:
    try:
        edit = locate(caption.text, negative)
    except ValueError as error:
        yield str(error)
    else:
        yield from _check_article(negative, edit)


def _check_article(negative: Negative, edit: Edit) -> Iterator[str]:
    """An article that the caption had there already is its author's, right or wrong."""
    if edit.article is None or not negative.target[:1].isalpha():
        return
    article = negative.text[slice(*edit.article)].lower()
    first, before = (text.split(None, 1)[:1] for text in (negative.target, negative.source))
    if first == before and not edit.article_changed:
        return
    # Capitals may be a word's own ("an SUV") or the caption's ("A SMALL CAR").
    allowed = {english.article(negative.target), english.article(negative.target.lower())}
    if article not in allowed:
        yield f"{article!r} before {short(negative.target)} in {short(negative.text)}"


def differences(found: Mapping[str, Any], marker: Marker) -> Iterator[str]:
    """A line for each field of a marker that is not what was found in the shard."""
    for field, value in found.items():
        if getattr(marker, field) != value:
            yield f"{field}: {value} counted, {getattr(marker, field)} in its marker"


def _check_index(folder: str) -> Iterator[str]:
    try:
        index, expected = read_index(folder), sum_markers(folder)
    except ValueError as error:
        yield f"{INDEX_NAME}: {error}"
        return
    for field in dataclasses.fields(Index):
        if field.name != "tars" and getattr(index, field.name) != getattr(expected, field.name):
            yield f"{INDEX_NAME}: its {field.name} do not agree with the markers"
