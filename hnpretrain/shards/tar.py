"""Samples to tar bytes and back.

Members are plain POSIX (ustar) with fixed mtime, owner and mode, so that the same samples give the
same bytes. A sample's members stand together, so a byte range between two offsets is itself a tar:
that is what lets the loader seek.
"""

from __future__ import annotations

import dataclasses
import io
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO

from hnpretrain.shards.schema import (
    IMAGE_EXTENSIONS,
    Caption,
    Sample,
    parse_metadata,
    read_captions,
)

# Two zero blocks end an archive (POSIX).
END_OF_ARCHIVE = bytes(2 * tarfile.BLOCKSIZE)
# A larger member is passed over rather than read into memory: no photo or caption comes near.
MAX_MEMBER_BYTES = 256 * 2**20
# For all members of one sample.
MAX_SAMPLE_BYTES = 2 * MAX_MEMBER_BYTES
# What a header for all that follows it must not change: without it, members would read otherwise.
_OF_ONE_MEMBER = frozenset(("path", "linkpath", "size"))
# A header extension larger than this is refused: tarfile searches them in quadratic time
# (CVE-2024-6232), 0.1 s for 8 KiB, hours for 1 MiB.
MAX_HEADER_BYTES = 8 * 2**10
HEADER_EXTENSIONS = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)


def encode_sample(sample: Sample) -> bytes:
    """The tar bytes of one sample, without the archive's end; members are sorted by name."""
    members = {
        sample.extension: sample.image,
        "json": sample.metadata_json(),
        "txt": sample.captions[0].text.encode(),
    }
    return b"".join(_member(f"{sample.key}.{ext}", members[ext]) for ext in sorted(members))


def checksum(data: bytes | memoryview, before: int = 0) -> int:
    """The CRC-32 of one sample's tar bytes, as markers hold it.

    A ranged read sees a part of the shard, whose sha256 cannot tell whether it arrived whole.

    Args:
        before: that of bytes that come before these.
    """
    return zlib.crc32(data, before)


def _member(name: str, data: bytes) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    info.mode = 0o644  # mtime, uid, gid and the names are 0 and empty already
    padding = -len(data) % tarfile.BLOCKSIZE
    return info.tobuf(format=tarfile.USTAR_FORMAT) + data + bytes(padding)


@dataclass(frozen=True)
class RawSample:
    """The members of one key.

    Attributes:
        key: the member's path up to the first dot of its base name.
        members: extension (lower case, without the dot) to bytes.
        too_large: extensions of the members that were passed over for their size.
        stop: where in the tar the next sample begins; what is passed over comes before.
    """

    key: str
    members: dict[str, bytes] = field(default_factory=dict)
    too_large: list[str] = field(default_factory=list)
    stop: int = 0

    def image(self) -> tuple[bytes, str]:
        """(bytes, extension) of the image; ValueError if there is none."""
        for extension in IMAGE_EXTENSIONS:
            if extension in self.members:
                return self.members[extension], extension
        raise ValueError(
            f"no image among its members ({', '.join(sorted(self.members))}); "
            f"known are {', '.join(IMAGE_EXTENSIONS)}"
        )

    def captions(self) -> tuple[Caption, ...]:
        """Captions, with negatives where there are some; ValueError if none can be used."""
        return read_captions(self.members)

    def sample(self) -> Sample:
        """The whole sample of format 1, checked; ValueError says what is wrong."""
        image, extension = self.image()
        if "json" not in self.members:
            raise ValueError("no .json member")
        captions, meta = parse_metadata(self.members["json"])
        return Sample(self.key, image, extension, captions, meta)


class _StrictInfo(tarfile.TarInfo):
    """Headers that fail loudly: tarfile takes a broken one in mid-archive for the archive's end."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _StrictInfo:
        try:
            info = super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if any(buf):
                raise tarfile.ReadError(f"a broken header: {error}") from error
            raise  # nothing, or zeros: the end
        if info.type in HEADER_EXTENSIONS and info.size > MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {info.size} bytes")
        return info


class _Ending(io.BufferedIOBase):
    """A file that may be read past its end a few times only.

    tarfile skips a member by reading as much as its header claims. A claim of exabytes in a small
    file would keep it at the file's end for years.
    """

    def __init__(self, file: IO[bytes] | io.BufferedIOBase) -> None:
        self._file = file
        self._reads_left = 8

    def read(self, size: int | None = -1, /) -> bytes:
        data = self._file.read(-1 if size is None else size)
        if not data:
            self._reads_left -= 1
            if not self._reads_left:
                raise tarfile.ReadError("cut short: a member is larger than what is left")
        return data


def iterate_samples(
    file: IO[bytes] | io.BufferedIOBase, whole: bool = False
) -> Iterator[RawSample]:
    """Groups the members of a tar, read once from front to back, into samples.

    Follows webdataset: the key is the member's path up to the first dot of its base name, and
    neighbours with one key are one sample (a second member of one name begins another, so that
    nothing is overwritten unseen). Folders, links and names without key or extension are passed
    over. Members beyond the size limits are not read, but named in `too_large`.

    Args:
        file: a tar, or the byte range between two offsets of one.
        whole: whether the archive's end must be there, with nothing but zeros behind it. Without
            that, a tar that was cut between two members reads as a shorter one, and so does one
            with a zeroed header in its middle; a byte range has no end.

    Raises:
        ValueError: the archive is broken or cut short. The sample that was being read then is not
            given, since it may lack members; the message names it.
    """
    sample: RawSample | None = None
    held = 0
    try:
        with tarfile.open(fileobj=_Ending(file), mode="r|", tarinfo=_StrictInfo) as archive:
            for info in archive:
                folder, slash, base = info.name.rpartition("/")
                stem, _, extension = base.partition(".")
                if _OF_ONE_MEMBER & archive.pax_headers.keys():
                    raise tarfile.ReadError("a global header that renames or resizes all members")
                if not (info.isfile() and stem and extension):
                    continue
                key, extension = folder + slash + stem, extension.lower()
                if sample is None or sample.key != key or extension in sample.members:
                    if sample is not None:
                        yield dataclasses.replace(sample, stop=info.offset)
                    sample, held = RawSample(key), 0
                if info.size > MAX_MEMBER_BYTES or held + info.size > MAX_SAMPLE_BYTES:
                    sample.too_large.append(extension)
                    continue
                held += info.size
                content = archive.extractfile(info)
                assert content is not None  # a regular file always has content
                sample.members[extension] = content.read()
            if whole:
                _check_end(archive)
            end = archive.offset
    # tarfile reads a header behind a header extension by recursion.
    except (tarfile.TarError, RecursionError) as error:
        # What follows it may have been its own members.
        last = "" if sample is None else f"; its last sample, {sample.key!a}, is left out"
        raise ValueError(f"not a whole tar: {error}{last}") from error
    if sample is not None:
        yield dataclasses.replace(sample, stop=end)


def _check_end(archive: tarfile.TarFile) -> None:
    """Reads what is behind the last member; ReadError unless it is the archive's end."""
    file = archive.fileobj
    assert file is not None
    # Where the next header would be, the end has zeros and a cut archive has nothing.
    if file.tell() == archive.offset:
        raise tarfile.ReadError("cut short: the zeros that end a tar are missing")
    while data := file.read(tarfile.RECORDSIZE):
        if behind := data.lstrip(b"\0"):
            position = file.tell() - len(behind)
            raise tarfile.ReadError(f"data behind the archive's end at byte {position}")


def decode_sample(data: bytes | memoryview) -> RawSample:
    """The sample that a byte range begins with, cut at a marker's offsets; ValueError if there is
    none. In tars that others wrote, samples that were rejected may follow it (see Marker).
    """
    for sample in iterate_samples(io.BytesIO(data)):
        return sample
    raise ValueError("expected the bytes of a sample, found none")
