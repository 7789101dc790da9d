"""The end of a job: the index, if all parts are done and not too much was left out."""

from __future__ import annotations

from collections.abc import Sequence

from hnpretrain.shards import storage
from hnpretrain.shards.index import INDEX_NAME, Index, write_index
from hnpretrain.shards.marker import Marker, marker_name
from shard_tools import folder
from shard_tools.settings import BuildSettings
from shard_tools.sources import BAD_CAPTION, BROKEN_TAR, SourceShard
from shard_tools.sources.tars import TarShard


def finish(
    settings: BuildSettings,
    shards: Sequence[SourceShard],
    mine: Sequence[Marker],
    configuration: str,
) -> tuple[Index, int]:
    """Writes the index, if no part owes a shard: the part that ends last finds that so.

    Args:
        settings: the job's.
        shards: of all parts.
        mine: the essentials of this part's markers, all of them.
        configuration: fingerprint of the settings, as in the markers.

    Returns:
        The index and 0; or the sum of this part's markers, and how many shards the others owe.

    Raises:
        ValueError: too much was left out.
    """
    others, owed = _markers_of_others(settings, shards, mine, configuration)
    if owed:
        return Index.of(mine), owed
    markers = [*mine, *others]
    index = Index.of(markers)
    path = storage.join(settings.output, INDEX_NAME)
    try:
        check_rejects(settings.max_reject_share, index, markers)
    except ValueError:
        storage.remove(path)
        raise
    if not storage.exists(path) or storage.read_bytes(path) != index.to_bytes():
        write_index(settings.output, index)
    return index, 0


def _markers_of_others(
    settings: BuildSettings,
    shards: Sequence[SourceShard],
    mine: Sequence[Marker],
    configuration: str,
) -> tuple[list[Marker], int]:
    """The essentials of the other parts' markers, and how many are missing or do not agree."""
    if settings.parts == 1:
        return [], 0
    names = {marker.name for marker in mine}
    others = [shard for shard in shards if shard.name not in names]
    sizes = folder.read_sizes(settings.output)
    missing = sum(marker_name(shard.name) not in sizes for shard in others)
    if missing:
        return [], missing  # known without reading any

    def look(shard: SourceShard) -> Marker | None:
        # A local tar is hashed by the part that it belongs to: the last would read all data.
        hashed = isinstance(shard, TarShard) and not shard.mark
        agree = folder.committed if hashed else folder.finished
        marker = agree(settings.output, shard, configuration, sizes)
        return None if marker is None else folder.essentials_of(marker)

    found = folder.in_threads(look, others)
    markers = [marker for marker in found if marker is not None]
    return markers, len(found) - len(markers)


def check_rejects(max_reject_share: float, index: Index, markers: Sequence[Marker]) -> None:
    """Raises ValueError if too large a share of the samples was left out, or all of them, or too
    large a share of the source tars is broken (how many samples those held can't be known).
    """
    reasons = {reason: n for reason, n in index.rejects.items() if reason != BAD_CAPTION}
    left_out = sum(reasons.values())
    total = index.samples + left_out
    broken = sum(BROKEN_TAR in marker.rejects for marker in markers)
    too_many = left_out > max_reject_share * total
    too_many_broken = broken > max_reject_share * len(markers)
    if index.samples and not too_many and not too_many_broken:
        return
    parts = []
    for reason, count in sorted(reasons.items(), key=lambda item: -item[1]):
        named = [
            f"{reject.key} in {marker.name}: {reject.detail}"
            for marker in sorted(markers, key=lambda marker: marker.name)
            for reject in marker.rejected
            if reject.reason == reason
        ]
        more = "; ..." if count > folder.NAMES_SHOWN else ""
        parts.append(f"{count} {reason} ({'; '.join(named[: folder.NAMES_SHOWN])}{more})")
    if too_many or not index.samples:
        what = f"{left_out} of {total} samples were rejected"
    else:
        what = f"{broken} of {len(markers)} source tars are broken"
    why, remedy = "so none is left", "mend the source"
    if index.samples:
        why = f"more than max_reject_share={max_reject_share} allows"
        remedy += " or raise max_reject_share"
    raise ValueError(
        f"{what}, {why}; no index was written: {remedy}, and start again. The markers name them "
        f"all: {', '.join(parts) or 'the source holds no sample'}"
    )
