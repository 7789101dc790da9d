"""One shard from its source: read samples, check images, make negatives, write tar and marker."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hnpretrain.shards.images import BadImage, check_header, check_image
from hnpretrain.shards.marker import Marker, Reject
from hnpretrain.shards.schema import Sample
from shard_tools.folder import essentials_of
from shard_tools.negatives import CaptionedSample, NegativeMaker
from shard_tools.sources import SourceSample, SourceShard
from shard_tools.workers import Stopped, Tally
from shard_tools.writer import ShardWriter

# Samples that go through spaCy together (a worker stops between two batches), their captions (of
# one image there may be thousands) and their bytes.
_BATCH_SAMPLES = 64
_BATCH_CAPTIONS = 4096
_BATCH_BYTES = 64 * 2**20

# Columns of the tally: samples, captions, captions with negatives, rejects, and the work done: in
# samples and rejects, or in bytes where the source does not know how many samples it has.
COUNTS = 5


@dataclass(frozen=True)
class Task:
    """What a builder must know beside its source shard and its maker.

    Attributes:
        folder: folder or URL of the shards.
        max_pixels: largest width x height of an image.
        decode: whether each image is decoded to its end, or only its header read.
        configuration: fingerprint of the settings, for the markers.
    """

    folder: str
    max_pixels: int
    decode: bool
    configuration: str


class Builder:
    """Builds shards, one after the other, in one process.

    Args:
        task: what to build.
        maker: of the negatives.
        tally: one row a shard, COUNTS columns.
        after_batch: called when some samples are written.
    """

    def __init__(
        self,
        task: Task,
        maker: NegativeMaker,
        tally: Tally,
        after_batch: Callable[[], None] = lambda: None,
    ) -> None:
        self._task = task
        self._maker = maker
        self._tally = tally
        self._after_batch = after_batch
        self._check_image = check_image if task.decode else check_header

    def build(self, number: int, shard: SourceShard) -> Marker:
        """Builds one shard, counting in the tally's row of that number; the marker's essentials.

        Raises:
            Stopped: the tally says so; nothing is left behind.
            OSError: storage failed.
            ValueError: the source changed meanwhile.
        """
        fingerprint = shard.fingerprint()
        in_bytes = shard.samples is None
        keys: set[str] = set()
        batch: list[tuple[SourceSample, str]] = []  # with the image's extension
        held = captions = 0
        with ShardWriter() as writer:
            for item in shard.read():
                if self._tally.stopped():
                    raise Stopped
                checked = self._check(item, keys)
                if isinstance(checked, Reject):
                    writer.reject(checked)
                    self._tally.add(number, 0, 0, 0, 1, 0 if in_bytes else 1)
                    continue
                keys.add(checked[0].key)
                batch.append(checked)
                held += len(checked[0].image)
                captions += len(checked[0].captions)
                if (
                    len(batch) == _BATCH_SAMPLES
                    or captions >= _BATCH_CAPTIONS
                    or held >= _BATCH_BYTES
                ):
                    self._write(number, batch, held if in_bytes else len(batch), writer)
                    batch, held, captions = [], 0, 0
            self._write(number, batch, held if in_bytes else len(batch), writer)
            marker = writer.finish(
                self._task.folder, shard.name, self._task.configuration, shard.origin, fingerprint
            )
        if in_bytes:  # what is no image, and what was rejected
            *_, done = self._tally.row(number)
            self._tally.add(number, 0, 0, 0, 0, (shard.size or 0) - done)
        return essentials_of(marker)

    def _check(
        self, item: SourceSample | Reject, keys: set[str]
    ) -> tuple[SourceSample, str] | Reject:
        if isinstance(item, Reject):
            return item
        if item.key in keys:
            return Reject(item.key, "duplicate_key", "an earlier sample of the shard has this key")
        try:
            return item, self._check_image(item.image, self._task.max_pixels)
        except BadImage as error:
            return Reject(item.key, error.reason, error.detail)

    def _write(
        self,
        number: int,
        batch: Sequence[tuple[SourceSample, str]],
        work: int,
        writer: ShardWriter,
    ) -> None:
        made = self._maker.make([CaptionedSample(s.key, s.captions, s.objects) for s, _ in batch])
        for (source, extension), negatives in zip(batch, made, strict=True):
            writer.add(Sample(source.key, source.image, extension, negatives.captions, source.meta))
            writer.reject_candidates(negatives.rejects)
        captions = [caption for negatives in made for caption in negatives.captions]
        with_negatives = sum(bool(caption.negatives) for caption in captions)
        self._tally.add(number, len(batch), len(captions), with_negatives, 0, work)
        self._after_batch()
