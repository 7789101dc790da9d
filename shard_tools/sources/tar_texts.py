"""The texts of a tar without its images: what counting captions needs, at the speed of seeking."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from typing import IO

from hnpretrain.shards.tar import HEADER_EXTENSIONS, MAX_HEADER_BYTES, MAX_MEMBER_BYTES, RawSample

_TEXTS = ("txt", "json")


class _SmallHeaders(tarfile.TarInfo):
    """Refuses header extensions that tarfile would search for hours (see hnpretrain.shards.tar)."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _SmallHeaders:
        info = super().frombuf(buf, encoding, errors)
        if info.type in HEADER_EXTENSIONS and info.size > MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {info.size} bytes")
        return info


def read_texts(file: IO[bytes]) -> Iterator[RawSample]:
    """The samples of a tar, as `iterate_samples` gives them, with their texts alone.

    Args:
        file: a tar, opened for seeking.

    Raises:
        ValueError: the archive is broken or cut short.
    """
    sample: RawSample | None = None
    try:
        with tarfile.open(fileobj=file, mode="r:", tarinfo=_SmallHeaders) as archive:
            while info := archive.next():
                archive.members.clear()  # type: ignore[attr-defined]  # it would keep them all
                folder, slash, base = info.name.rpartition("/")
                stem, _, extension = base.partition(".")
                if not (info.isfile() and stem and extension.lower() in _TEXTS):
                    continue
                key = folder + slash + stem
                extension = extension.lower()
                if sample is None or sample.key != key or extension in sample.members:
                    if sample is not None:
                        yield sample
                    sample = RawSample(key)
                if info.size <= MAX_MEMBER_BYTES:
                    content = archive.extractfile(info)
                    assert content is not None  # a regular file always has content
                    sample.members[extension] = content.read()
    except (tarfile.TarError, RecursionError) as error:
        raise ValueError(f"not a whole tar: {error}") from error
    if sample is not None:
        yield sample
