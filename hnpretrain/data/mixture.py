"""The data sets that a run reads: one, or several with weights."""

from __future__ import annotations

import bisect
import functools
import hashlib
import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass

from hnpretrain.shards import storage
from hnpretrain.shards.index import Index, ShardEntry, read_index


@dataclass(frozen=True)
class DataSet:
    """What `shard build` or `shard index` wrote.

    Attributes:
        folder: local path or URL.
        index: its index.
        weight: how often an epoch shows it: 1 is once, 0.5 one half of it.
    """

    folder: str
    index: Index
    weight: float = 1.0


@dataclass(frozen=True, eq=False)
class Mixture:
    """Data sets in a fixed order; their shards are numbered through."""

    data_sets: tuple[DataSet, ...]

    @property
    def fingerprint(self) -> str:
        """Hash of what the plan depends on: all shards, and the weights."""
        if len(self.data_sets) == 1 and self.data_sets[0].weight == 1:
            return self.data_sets[0].index.fingerprint
        essentials = [[each.index.fingerprint, each.weight] for each in self.data_sets]
        return hashlib.sha256(json.dumps(essentials).encode()).hexdigest()

    @property
    def max_negatives(self) -> int:
        """The most negatives that one caption has."""
        return max(each.index.max_negatives for each in self.data_sets)

    def shard(self, number: int) -> tuple[str, ShardEntry]:
        """The folder of its marker and the entry of a shard."""
        place = bisect.bisect_right(self._starts, number) - 1
        data_set = self.data_sets[place]
        return data_set.folder, data_set.index.shards[number - self._starts[place]]

    def tar_path(self, number: int) -> str:
        """Where the tar of a shard lies."""
        data_set = self.data_sets[bisect.bisect_right(self._starts, number) - 1]
        _, entry = self.shard(number)
        return storage.join(data_set.index.folder_of_tars(data_set.folder), entry.name)

    @functools.cached_property
    def _starts(self) -> list[int]:
        counts = (len(each.index.shards) for each in self.data_sets)
        return [0, *itertools.accumulate(counts)][:-1]


def read_mixture(weights: Mapping[str, float]) -> Mixture:
    """The data sets at some places; where they lie does not change what is read of them when.

    Args:
        weights: of each folder or URL.

    Raises:
        ValueError: there is no index, or it is broken; or two places hold the same data set.
        OSError: it could not be read.
    """
    found: dict[str, DataSet] = {}
    for place, weight in weights.items():
        index = read_index(place)
        other = found.setdefault(index.fingerprint, DataSet(place, index, float(weight)))
        if other.folder != place:
            raise ValueError(
                f"data.mixture: {other.folder} and {place} hold the same shards; give one of them, "
                f"with weight {other.weight + weight:g} to show them as often as both would"
            )
    return Mixture(tuple(data_set for _, data_set in sorted(found.items())))
