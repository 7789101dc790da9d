"""What must be settled before a job builds: its lock, its negatives, the folder's settings."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from hnpretrain.shards import storage
from hnpretrain.shards.lock import Hold, Locked, holder, locked, waited
from shard_tools import folder, record
from shard_tools.counting import CountState, count_into, read_table, saved_table
from shard_tools.negatives import (
    FrequencyTable,
    NegativeMaker,
    NegativeSettings,
    frequency_counter,
    needs_frequencies,
)
from shard_tools.settings import BuildSettings
from shard_tools.sources import SourceShard

_SHARED_LOCK_NAME = ".shared.lock"
_LOCK_NAME = ".build-{part}-of-{parts}.lock"


def lock_path(settings: BuildSettings) -> str:
    """Where this part's lock is."""
    name = _LOCK_NAME.format(part=settings.part, parts=settings.parts)
    return storage.join(settings.output, name)


@dataclass(frozen=True)
class WaitState:
    """Another job does what is done for all: `owner` says which one."""

    owner: str
    stopping: bool = False


@contextlib.contextmanager
def shared(settings: BuildSettings, report: Callable[[WaitState], None]) -> Iterator[Hold]:
    """The lock of what is one for all parts: table, record and index. Waits while it is taken."""
    path = storage.join(settings.output, _SHARED_LOCK_NAME)
    with waited(path, lambda owner: report(WaitState(owner))) as hold:
        yield hold


@contextlib.contextmanager
def locked_part(settings: BuildSettings) -> Iterator[Hold]:
    """The lock of this part, while no array of another size works on the folder.

    Raises:
        ValueError: another job has it, or builds in other parts.
    """
    try:
        with locked(lock_path(settings)) as hold:
            refuse_other_arrays(settings)
            yield hold
    except Locked as error:
        raise ValueError(
            f"output={settings.output!r} is being built by {error.owner}; wait for it to end, or "
            "choose another folder"
        ) from error


def refuse_other_arrays(settings: BuildSettings) -> None:
    """Raises ValueError if jobs of another `parts` build into the folder."""
    ours = f"-of-{settings.parts}.lock"
    for name in folder.read_sizes(settings.output):
        if name.startswith(".build-") and name.endswith(".lock") and not name.endswith(ours):
            owner = holder(storage.join(settings.output, name))
            if owner is not None:
                what = name.removeprefix(".build-").removesuffix(".lock").replace("-", " ")
                raise ValueError(
                    f"output={settings.output!r} is being built in other parts ({what}, {owner}), "
                    f"not parts={settings.parts}; wait for them to end, or choose another folder"
                )


def known_table(settings: BuildSettings) -> FrequencyTable | None:
    """The table that the settings name, or the folder's own if it is of the same lexicons.

    None if there is neither; then words must be counted, unless the negatives need no table.
    """
    if not needs_frequencies(settings.negatives):
        return None
    path = settings.negatives.frequencies
    if not path:
        table = saved_table(settings.output)
        return table if table is not None and fits(table, settings.negatives) else None
    try:
        return read_table(path)
    except FileNotFoundError as error:
        raise ValueError(f"negatives.frequencies={path!r} is not a file") from error


@dataclass(frozen=True)
class Settled:
    """What is known before anything is written.

    Attributes:
        table: the frequencies, where there are some.
        counts: whether words are to be counted first: there is no table, or all is made anew, and
            the folder's own table may be of another source, too.
        maker: of the negatives, with that table.
        differences: between the folder's settings and these, which rebuild=true overrules.
    """

    table: FrequencyTable | None
    counts: bool
    maker: NegativeMaker
    differences: str


def settle(settings: BuildSettings, shards: Sequence[SourceShard]) -> Settled:
    """Looks at the folder and loads what makes the negatives; writes nothing.

    Raises:
        ValueError: the folder holds shards of another source or other settings, or the settings of
            the negatives are wrong.
    """
    sizes = folder.read_sizes(settings.output)
    if record.read_record(settings.output) is None:
        folder.refuse_others(settings.output, sizes, shards)
    table = known_table(settings)
    uncounted = table is None and needs_frequencies(settings.negatives)
    maker = NegativeMaker(settings.negatives, settings.seed, table)
    differences = record.differences(settings, sizes, maker, uncounted)
    record.refuse_differences(settings, differences)
    folder.refuse_others(settings.output, sizes, shards)
    is_own = table is not None and not settings.negatives.frequencies
    return Settled(table, uncounted or (is_own and bool(differences)), maker, differences)


def fits(table: FrequencyTable, settings: NegativeSettings) -> bool:
    """Whether a table was counted with the lexicons of these settings."""
    lexicons = frequency_counter(settings).lexicons
    try:
        for lexicon in lexicons:
            table.frequencies(lexicon)
    except ValueError:
        return False
    return True


def count_words(
    settings: BuildSettings,
    shards: Sequence[SourceShard],
    report: Callable[[CountState | WaitState], None],
) -> FrequencyTable:
    """The folder's own table; it is counted, unless it is there and of the same lexicons.

    Raises:
        ValueError: as `settle`: the folder's shards were made with another table, which stays.
    """
    with shared(settings, report):
        settled = settle(settings, shards)
        if settled.counts or settled.table is None:
            return _count(settings, shards, report)
        return settled.table


def _count(
    settings: BuildSettings, shards: Sequence[SourceShard], report: Callable[[CountState], None]
) -> FrequencyTable:
    return count_into(settings.output, shards, settings.negatives, settings.workers, report)


def prepare(
    settings: BuildSettings,
    shards: Sequence[SourceShard],
    report: Callable[[CountState | WaitState], None],
) -> tuple[NegativeMaker, FrequencyTable | None]:
    """The maker, and the table that it was given; the folder's record is that of these settings.

    Parts that begin together do this one after the other, so that the first counts for all.

    Raises:
        ValueError: as `settle`.
    """
    with shared(settings, report):
        settled = settle(settings, shards)
        table, maker = settled.table, settled.maker
        if settled.counts:
            table = _count(settings, shards, report)
            maker = NegativeMaker(settings.negatives, settings.seed, table)
            sizes = folder.read_sizes(settings.output)
            record.refuse_differences(settings, record.differences(settings, sizes, maker))
        record.keep_record(settings.output, record.record_of(settings, maker))
    return maker, table
