"""Markers and an index for tars that others wrote, so that they are streamed as they are.

1. The folder's tars are listed. What else lies where markers go must have come from here.
2. Markers that agree with their tars are kept, without a look inside; the index is removed.
3. Each other tar is read once, front to back, by one process: where its samples begin, what of
   them cannot be used, its hash. The main process writes the marker.
4. The index is written last, unless too much was rejected.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import io
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import IO, Any

from hnpretrain.shards import storage
from hnpretrain.shards.images import BadImage, check_header, check_image
from hnpretrain.shards.index import INDEX_NAME, Index, write_index
from hnpretrain.shards.lock import Locked, locked
from hnpretrain.shards.marker import Marker, Reject, marker_name, read_marker
from hnpretrain.shards.schema import Caption, NoCaption
from hnpretrain.shards.tar import MAX_SAMPLE_BYTES, RawSample, checksum, iterate_samples
from shard_tools.caption_counts import CaptionCounts, sorted_counts
from shard_tools.finish import check_rejects
from shard_tools.folder import (
    essentials_of,
    in_threads,
    read_sizes,
    remove,
    remove_leftovers,
    same_place,
)
from shard_tools.parallel import Progress, each_shard
from shard_tools.record import RECORD_NAME
from shard_tools.sources.base import BROKEN_TAR, MISSING_IMAGE, too_large
from shard_tools.sources.tars import mark_of

_LOCK_NAME = ".index.lock"
# What the markers' `configuration` begins with. The number is raised by one whenever the same tar
# would get another marker.
_MADE_HERE = "shard index 1"
_MADE_WITH = f"{_MADE_HERE}, max_pixels="
# The end of a sample is known once the headers behind it are read, which are at most so long.
_READ_AHEAD = 2**20
# Samples of one tar that can't be used, though the marker has them, that are listed.
_LISTED = 20


@dataclass(frozen=True)
class Indexed:
    """What a run did.

    Attributes:
        index: as written.
        made: markers made now.
        kept: markers that were there and agreed.
    """

    index: Index
    made: int
    kept: int


def index_tars(
    folder: str,
    place: str,
    workers: int,
    max_pixels: int,
    max_reject_share: float,
    progress: Progress | None = None,
) -> Indexed:
    """Makes the markers that are missing or do not agree, then the index.

    Args:
        folder: a folder or URL of tars.
        place: a folder or URL for markers and index; empty: beside the tars.
        workers: processes.
        max_pixels: larger images are rejected.
        max_reject_share: of samples, and of tars that are broken.
        progress: is called with the number of tars read and that of all that are to be read.

    Raises:
        ValueError: there is no tar, or others' files are in the way (nothing was written then); or
            too much was rejected (markers stay, no index).
        OSError: storage failed, or a worker died; finished markers stay.
    """
    infos = _tars(folder)
    place = place or folder
    configuration = f"{_MADE_WITH}{max_pixels}"
    with _locked(place):
        there = _markers(place, [marker_name(name) for name in infos])
        kept = [
            marker
            for name, found in infos.items()
            if (marker := there.get(name)) is not None
            and (marker.bytes, marker.configuration) == (found["size"], configuration)
            and marker.source_fingerprint == mark_of(found)
        ]
        to_do = sorted(infos.keys() - {marker.name for marker in kept})
        stale = there.keys() - {marker.name for marker in kept}
        if to_do or stale:
            remove(place, [INDEX_NAME, *map(marker_name, stale)])
        markers = list(kept)
        read = partial(_read_tar, folder, max_pixels=max_pixels)
        for marker in each_shard(read, to_do, workers, progress):
            marker = dataclasses.replace(marker, configuration=configuration)
            storage.write_bytes(storage.join(place, marker_name(marker.name)), marker.to_bytes())
            markers.append(essentials_of(marker))
        index = Index.of(markers, _where_from(place, folder))
        try:
            check_rejects(max_reject_share, index, markers)
        except ValueError:
            remove(place, [INDEX_NAME])
            raise
        write_index(place, index)
    return Indexed(index, len(to_do), len(kept))


def problems_of_tar(folder: str, place: str, name: str, deep: bool) -> list[str]:
    """What is not as the marker in `place` says of a tar in `folder`; it is read as a whole.

    Args:
        deep: whether images are decoded, too; one that then is rejected is a problem.
    """
    try:
        marker = read_marker(place, name)
        max_pixels = int(marker.configuration.removeprefix(_MADE_WITH))
        found = _read_tar(folder, name, max_pixels, deep)
    except FileNotFoundError as error:
        return [f"{name}: {error.filename or error} is missing"]
    except (ValueError, OSError) as error:
        return [f"{name}: {error}"]
    # Of the same content elsewhere, the storage's mark is another.
    found = dataclasses.replace(
        found,
        configuration=marker.configuration,
        source_fingerprint=marker.source_fingerprint,
    )
    if found == marker:
        return []
    fields = [field.name for field in dataclasses.fields(Marker)]
    unlike = [field for field in fields if getattr(marker, field) != getattr(found, field)]
    new = [reject for reject in found.rejected if reject not in marker.rejected][:_LISTED]
    return [
        f"{name}: its {', '.join(unlike)} are not those in its marker",
        *(f"{name}: sample {reject.key}: {reject.reason}: {reject.detail}" for reject in new),
    ]


def _tars(folder: str) -> dict[str, dict[str, object]]:
    """Name to `info` of each tar."""
    try:
        infos = storage.list_infos(folder, ".tar")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ValueError(f"{folder!r} is not a folder") from error
    if not infos:
        raise ValueError(f"{folder!r} holds no .tar (compressed tars can't be streamed)")
    return dict(sorted(infos.items()))


def _where_from(place: str, folder: str) -> str:
    """How the index in `place` names the tars' folder."""
    if same_place(storage.join(place, INDEX_NAME), storage.join(folder, INDEX_NAME)):
        return "."
    return folder if storage.is_url(folder) else os.path.abspath(folder)  # noqa: PTH100


@contextlib.contextmanager
def _locked(place: str) -> Iterator[None]:
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(locked(storage.join(place, _LOCK_NAME)))
        except Locked as error:
            raise ValueError(
                f"{place!r} is being indexed by {error.owner}; wait for it to end"
            ) from error
        except OSError as error:
            if not isinstance(error, PermissionError) and error.errno != errno.EROFS:
                raise
            raise ValueError(
                f"{place!r} cannot be written to ({error}): let markers and index go to another "
                "folder with --markers"
            ) from error
        yield


def _markers(place: str, ours: Sequence[str]) -> dict[str, Marker]:
    """The essentials of the markers by the name of their tar, all made here.

    Args:
        ours: names of the markers of tars that are there. What killed commands left of them is
            removed; one that cannot be read is left out, to be made again.

    Raises:
        ValueError: there are markers or an index that were not.
    """
    remade = set(ours)
    files = read_sizes(place)
    if RECORD_NAME in files:
        raise ValueError(
            f"{place!r} holds a data set that `shard build` made, which has its own markers and "
            "index; for others' tars, choose another folder with --markers"
        )
    names = sorted(name for name in files if name.endswith(".marker.json"))

    def look(name: str) -> Marker | None:
        tar = name.removesuffix(".marker.json") + ".tar"
        try:
            marker = read_marker(place, tar)
        except ValueError as error:
            if name in remade:
                return None
            raise ValueError(f"{error}; there is no {tar}, so remove it") from error
        if marker.name != tar or not marker.configuration.startswith(_MADE_HERE):
            raise ValueError(
                f"{storage.join(place, name)} was not made by `shard index`; choose another folder "
                "with --markers, or remove it"
            )
        return essentials_of(marker)

    markers = [marker for marker in in_threads(look, names) if marker]
    if INDEX_NAME in files and not names:
        raise ValueError(
            f"{storage.join(place, INDEX_NAME)} was not made by `shard index`; choose another "
            "folder with --markers, or remove it"
        )
    remove_leftovers(place, files, ours)
    return {marker.name: marker for marker in markers}


class _Tape(io.BufferedIOBase):
    """A file read once from front to back, hashed on the way as a whole and by samples.

    What is not of use belongs to the bytes of the sample before. That it is not of use is known
    once it has passed by, so both sums are carried along: that of the bytes alone, and that of the
    sample before with them.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self._held = bytearray()  # the last that was read, of what is not cut yet
        self.size = 0
        self.offsets: list[int] = []  # where samples of use begin
        self._checksums: list[int] = []  # of those but the last
        self._end = 0  # of what is cut
        self._of_last = self._with_last = self._alone = 0

    def read(self, size: int | None = -1, /) -> bytes:
        data = self._file.read(-1 if size is None else size)
        self._digest.update(data)
        self._held += data
        self.size += len(data)
        self._pass(len(self._held) - _READ_AHEAD)
        return data

    def wind(self) -> None:
        """To the end."""
        while self.read(2**20):
            pass

    def cut(self, stop: int, is_sample: bool) -> None:
        """Bytes up to a position are a sample, or are not of use.

        Raises:
            ValueError: too much is not of use, and would be read with each sample; or too much was
                read since.
        """
        begin = self._end if is_sample or not self.offsets else self.offsets[-1]
        if stop - begin > MAX_SAMPLE_BYTES + _READ_AHEAD and (is_sample or self.offsets):
            raise ValueError(f"too much that is of no use at bytes {begin} to {stop}")
        spare = stop - (self.size - len(self._held))
        if spare < 0:
            raise ValueError(f"more than {_READ_AHEAD} bytes of headers at byte {stop}")
        self._pass(spare)
        if is_sample:
            if self.offsets:
                self._checksums.append(self._of_last)
            self.offsets.append(self._end)
            self._of_last = self._alone
        else:
            self._of_last = self._with_last
        self._with_last, self._alone, self._end = self._of_last, 0, stop

    def _pass(self, count: int) -> None:
        if count > 0:
            data = bytes(self._held[:count])
            del self._held[:count]
            self._with_last = checksum(data, self._with_last)
            self._alone = checksum(data, self._alone)

    def fields(self) -> dict[str, Any]:
        """What a marker says of the bytes."""
        return {
            "samples": len(self.offsets),
            "bytes": self.size,
            "sha256": self._digest.hexdigest(),
            "offsets": (*self.offsets, self._end),
            "crc32": (*self._checksums, *[self._of_last][: len(self.offsets)]),
        }


def _read_tar(folder: str, name: str, max_pixels: int, deep: bool = False) -> Marker:
    """The marker of a tar, but for its configuration; `deep` decodes images, else headers do."""
    path = storage.join(folder, name)
    mark = mark_of(storage.info(path))
    keys: set[str] = set()
    counts = CaptionCounts()
    rejected: list[Reject] = []
    with storage.open_read(path) as file:
        tape = _Tape(file)
        try:
            for raw in iterate_samples(tape, whole=True):
                found = _check(raw, keys, max_pixels, deep)
                tape.cut(raw.stop, is_sample=not isinstance(found, Reject))
                if isinstance(found, Reject):
                    rejected.append(found)
                else:
                    keys.add(raw.key)
                    counts.add(found)
        except ValueError as error:
            # How many samples the lost part held can't be known: the tar is named once.
            rejected.append(Reject(name, BROKEN_TAR, str(error)))
        tape.wind()
    return Marker(
        name=name,
        **tape.fields(),
        **counts.fields(),
        rejects=sorted_counts(Counter(reject.reason for reject in rejected)),
        rejected=tuple(rejected),
        source=name,
        source_fingerprint=mark,
    )


def _check(
    raw: RawSample, keys: set[str], max_pixels: int, deep: bool
) -> tuple[Caption, ...] | Reject:
    """The captions of a sample that training can use, or why it cannot."""
    if raw.too_large:
        return too_large(raw.key, f"member {raw.key}.{raw.too_large[0]}")
    if raw.key in keys:
        return Reject(raw.key, "duplicate_key", "an earlier sample of the tar has this key")
    try:
        image, _ = raw.image()
    except ValueError as error:
        return Reject(raw.key, MISSING_IMAGE, str(error))
    try:
        (check_image if deep else check_header)(image, max_pixels)
    except BadImage as error:
        return Reject(raw.key, error.reason, error.detail)
    try:
        return raw.captions()
    except NoCaption as error:
        return Reject(raw.key, "no_caption", str(error))
    except ValueError as error:
        return Reject(raw.key, "bad_json", f"{raw.key}.json: {error}")
