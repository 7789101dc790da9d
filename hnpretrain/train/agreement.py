"""What all ranks must have alike before they train: the settings, and the indexes of the data.

A node with an older copy of one of them would train on other batches than the rest, or wait for
them in another collective operation, and nobody could tell why.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import zip_longest

from hnpretrain import config
from hnpretrain.data.mixture import Mixture, read_mixture
from hnpretrain.train.distributed import on_all, on_main
from hnpretrain.train.settings import TrainSettings

# How a node reads, and not what: of its data sets, the indexes count and not the places.
_NODES_OWN = ("data.shards", "data.mixture", "data.workers", "data.cache", "data.cache_gb")


def require_equal_settings(settings: TrainSettings) -> None:
    """Compares all ranks' settings; collective.

    Raises:
        ValueError: on all ranks: one has others than rank 0.
    """
    of_main = on_main(lambda: settings)

    def difference() -> str:
        for key, (other, own) in config.changes(of_main, settings).items():
            if not key.startswith(_NODES_OWN):
                return f"{key}={own!r}, rank 0 has {other!r}"
        return ""

    for rank, found in enumerate(on_all(difference)):
        if found:
            raise ValueError(
                f"rank {rank} has {found}: give all ranks the same config and overrides"
            )


def read_equal_mixture(weights: Mapping[str, float]) -> Mixture:
    """`read_mixture` on all ranks, which must find the same; collective.

    Raises:
        ValueError, OSError: on all ranks: one cannot read it, or finds another than rank 0.
    """
    mixtures: list[Mixture] = []

    def read() -> list[tuple[str, tuple[str, float]]]:
        mixtures.append(read_mixture(weights))
        sets = mixtures[0].data_sets
        return [(each.folder, (each.index.fingerprint, each.weight)) for each in sets]

    first, *others = on_all(read)
    for rank, found in enumerate(others, start=1):
        for one, other in zip_longest(first, found, fillvalue=("", None)):
            if one[1] != other[1]:
                raise ValueError(
                    f"rank {rank} finds another index or weight at {other[0] or 'no place'} than "
                    f"rank 0 at {one[0] or 'no place'}: give all ranks the same data.shards or "
                    "data.mixture, and the same copy of each data set"
                )
    return mixtures[0]
