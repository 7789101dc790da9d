"""The first pass: how often words occur in the source's captions, for negatives drawn by that.

    1. The source shards are put in an order drawn from their names.
    2. Each is counted by one process, captions alone, until `count_captions` captions are reached.
    3. The sum is written into the output folder, whole.

Which shards are counted depends on neither time nor the number of processes, so the table is the
same each time. Later runs use it as it is, whatever the source gained since.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

from hnpretrain.shards import storage
from shard_tools.negatives import (
    FrequencyCounter,
    FrequencyTable,
    NegativeSettings,
    frequency_counter,
)
from shard_tools.sources import SourceShard
from shard_tools.workers import Stopped, Tally, alone, cores, spread

TABLE_NAME = "frequencies.json.gz"
_IMAGES_BETWEEN_REPORTS = 256
# With less than this to read, starting processes takes longer than counting.
_FEW_CAPTIONS = 10_000
_FEW_BYTES = 64 * 2**20


@dataclass(frozen=True)
class CountState:
    """How far the first pass is.

    Attributes:
        captions: counted so far.
        wanted: how many are to be counted, if the source has them.
        stopping: a signal came, and the pass ends once its workers have.
    """

    captions: int
    wanted: int
    stopping: bool


def table_path(output: str) -> str:
    return storage.join(output, TABLE_NAME)


def read_table(path: str) -> FrequencyTable:
    """A saved table; FileNotFoundError if there is none, ValueError if it is not one."""
    return FrequencyTable.from_bytes(storage.read_bytes(path), path)


def saved_table(output: str) -> FrequencyTable | None:
    """The output folder's own table, if it has one."""
    try:
        return read_table(table_path(output))
    except FileNotFoundError:
        return None


def captions_of(shards: Sequence[SourceShard]) -> int | None:
    """How many captions the shards have, or None where only reading tells."""
    known = [shard.captions for shard in shards if shard.captions is not None]
    return sum(known) if len(known) == len(shards) else None


def counting_order(shards: Sequence[SourceShard]) -> list[SourceShard]:
    """The shards in the order in which they are counted: a draw, but the same each time."""
    return sorted(shards, key=lambda shard: hashlib.sha256(shard.name.encode()).digest())


def count_into(
    output: str,
    shards: Sequence[SourceShard],
    settings: NegativeSettings,
    workers: int,
    report: Callable[[CountState], None],
) -> FrequencyTable:
    """Counts the source's words, and writes the table into the folder.

    Args:
        output: the shards' folder.
        shards: of the whole source.
        settings: of the negatives.
        workers: processes; 0 takes one for each core.
        report: called a few times a second.

    Raises:
        OSError: storage failed, or a worker died.
        ValueError: the source has no caption.
        KeyboardInterrupt: Ctrl-C or SIGTERM.
    """
    ordered = counting_order(shards)
    known = captions_of(shards)
    wanted = settings.count_captions if known is None else min(settings.count_captions, known)
    tally = Tally(len(ordered), 1)

    def tell() -> None:
        (captions,) = tally.sums()
        report(CountState(captions, wanted, stopping=tally.stopped()))

    total = frequency_counter(settings)
    tell()
    with contextlib.closing(_counted(ordered, settings, tally, workers, tell)) as counted:
        for each in counted:
            total.update(each)
            if total.captions >= settings.count_captions:
                break
    if not total.captions:
        raise ValueError("the source holds no caption whose words could be counted")
    table = total.table()
    storage.remove_leftovers(table_path(output))
    storage.write_bytes(table_path(output), table.to_bytes())
    return table


def _counted(
    ordered: Sequence[SourceShard],
    settings: NegativeSettings,
    tally: Tally,
    workers: int,
    tell: Callable[[], None],
) -> Generator[FrequencyCounter, None, None]:
    workers = min(workers or cores(), len(ordered))
    if workers == 1 or _are_few(ordered):
        return alone(ordered, _Reader(settings, tally, tell), tally)
    return spread(ordered, _Reader, (settings,), tally, workers, tell, in_order=True)


def _are_few(shards: Sequence[SourceShard]) -> bool:
    known = captions_of(shards)
    if known is not None:
        return known <= _FEW_CAPTIONS
    return sum(shard.size or 0 for shard in shards) <= _FEW_BYTES


class _Reader:
    """Counts one source shard after the other, in one process."""

    def __init__(
        self,
        settings: NegativeSettings,
        tally: Tally,
        tell: Callable[[], None] = lambda: None,
    ) -> None:
        self._lexicons = frequency_counter(settings).lexicons
        self._tally = tally
        self._tell = tell

    def __call__(self, number: int, shard: SourceShard) -> FrequencyCounter:
        counter = FrequencyCounter(self._lexicons)
        for image, texts in enumerate(shard.read_texts(), start=1):
            if self._tally.stopped():
                raise Stopped
            counter.add(texts.captions, texts.objects)
            self._tally.add(number, len(texts.captions))
            if image % _IMAGES_BETWEEN_REPORTS == 0:
                self._tell()
        return counter
