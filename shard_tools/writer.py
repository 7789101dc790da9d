"""Writes one shard: samples in any order in, a sorted tar and its marker out.

1. Each sample is encoded and put into a spool: memory up to SPOOL_BYTES, then an anonymous
   temporary file (in TMPDIR), which vanishes with the process however that ends.
2. `finish` copies the spool in the order of the keys into the tar, hashing as it goes.
3. The tar appears under its name, then the marker: only the marker makes the shard finished.
"""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
from collections import Counter
from collections.abc import Mapping
from types import TracebackType

from hnpretrain.shards import storage
from hnpretrain.shards.marker import Marker, Reject, marker_name
from hnpretrain.shards.schema import Sample
from hnpretrain.shards.tar import END_OF_ARCHIVE, checksum, encode_sample
from shard_tools.caption_counts import CaptionCounts, sorted_counts

# Memory that one worker's spool may take.
SPOOL_BYTES = 128 * 2**20


class ShardWriter:
    """Collects the samples of one shard; a context manager."""

    def __init__(self) -> None:
        self._spool = tempfile.SpooledTemporaryFile(max_size=SPOOL_BYTES)  # noqa: SIM115
        self._places: dict[str, tuple[int, int]] = {}  # key -> start and size in the spool
        self._end = 0
        self._rejected: list[Reject] = []
        self._candidates_rejected: Counter[str] = Counter()
        self._captions = CaptionCounts()

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # Closing writes what is still buffered, though nobody wants it: a full disk may refuse.
        with contextlib.suppress(OSError):
            self._spool.close()

    def add(self, sample: Sample) -> None:
        """Adds a sample; its key must be new. OSError if the disk of TMPDIR is full."""
        assert sample.key not in self._places
        data = encode_sample(sample)
        self._places[sample.key] = (self._end, len(data))
        with storage.named_if_full(tempfile.gettempdir()):
            self._spool.write(data)
        self._end += len(data)
        self._captions.add(sample.captions)

    def reject(self, reject: Reject) -> None:
        """Puts a left-out sample or caption on record."""
        self._rejected.append(reject)

    def reject_candidates(self, counts: Mapping[str, int]) -> None:
        """Counts candidate negatives that a filter refused, by reason."""
        self._candidates_rejected.update(counts)

    def finish(
        self, folder: str, name: str, configuration: str, source: str, source_fingerprint: str
    ) -> Marker:
        """Writes the tar, then the marker; see `Marker` for the arguments that go into it."""
        path = storage.join(folder, name)
        marker_path = storage.join(folder, marker_name(name))
        # A marker of an earlier build must not stand beside the new tar, even for a moment.
        storage.remove(marker_path)

        digest = hashlib.sha256()
        offsets = [0]
        checksums = []
        with storage.write_whole(path) as tar:
            for key in sorted(self._places):
                start, size = self._places[key]
                with storage.named_if_full(tempfile.gettempdir()):
                    self._spool.seek(start)  # writes what is buffered
                data = self._spool.read(size)
                digest.update(data)
                tar.write(data)
                offsets.append(offsets[-1] + size)
                checksums.append(checksum(data))
            digest.update(END_OF_ARCHIVE)
            tar.write(END_OF_ARCHIVE)

        rejected = tuple(sorted(self._rejected, key=lambda r: (r.key, r.reason, r.detail)))
        marker = Marker(
            name=name,
            samples=len(self._places),
            bytes=offsets[-1] + len(END_OF_ARCHIVE),
            sha256=digest.hexdigest(),
            offsets=tuple(offsets),
            crc32=tuple(checksums),
            **self._captions.fields(),
            rejects=sorted_counts(Counter(reject.reason for reject in rejected)),
            rejected=rejected,
            candidates_rejected=sorted_counts(self._candidates_rejected),
            configuration=configuration,
            source=source,
            source_fingerprint=source_fingerprint,
        )
        storage.write_bytes(marker_path, marker.to_bytes())
        return marker
