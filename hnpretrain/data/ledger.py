"""The ledger: what became of every sample whose turn came, and what reading it took.

A loader's worker tells of each step in a `Tally`; the training sums these up over ranks and steps,
writes the names into its log, and keeps the `Ledger` in its checkpoints.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hnpretrain.shards.marker import Reject


@dataclass
class Ledger:
    """Counts of samples; for the same faults, the same at every number of ranks and workers that
    read the same places: shards go by their paths.

    Attributes:
        read: samples whose turn came.
        rejected: those that could not be used, by reason; others stood in for them.
        quarantined: shards that could not be used, and why; their samples are among `rejected`.
        retries: reads that had to be repeated. What passes at the second try depends on the
            moment, so this is the one count that does.
    """

    read: int = 0
    rejected: dict[str, int] = field(default_factory=dict)
    quarantined: dict[str, str] = field(default_factory=dict)
    retries: int = 0

    @property
    def lost(self) -> int:
        """Samples that were rejected, for whatever reason."""
        return sum(self.rejected.values())

    @property
    def decoded(self) -> int:
        """Samples that were given out in their own place."""
        return self.read - self.lost

    def add(self, other: Ledger) -> None:
        self.read += other.read
        for reason, count in other.rejected.items():
            self.rejected[reason] = self.rejected.get(reason, 0) + count
        for shard, why in other.quarantined.items():
            self.quarantined.setdefault(shard, why)
        self.retries += other.retries

    def counts(self) -> dict[str, Any]:
        """For a log line."""
        return {
            "read": self.read,
            "decoded": self.decoded,
            "rejected": dict(sorted(self.rejected.items())),
            "retries": self.retries,
            "quarantined": len(self.quarantined),
        }

    def __str__(self) -> str:
        parts = [f"{self.read} samples read", f"{self.decoded} decoded", f"{self.lost} rejected"]
        if self.rejected:
            reasons = sorted(self.rejected.items(), key=lambda item: (-item[1], item[0]))
            parts[-1] += f" ({', '.join(f'{count} {reason}' for reason, count in reasons)})"
        parts.append(f"{self.retries} retries")
        parts.append(f"quarantined shards: {len(self.quarantined)}")
        if self.quarantined:
            parts[-1] += f" ({_few(self.quarantined)})"
        return ", ".join(parts)


@dataclass
class Tally:
    """What is told of a step, or of several.

    Attributes:
        ledger: the counts.
        rejects: each rejected sample by name, but for those of quarantined shards, which the
            ledger names.
        notes: what people should know of, once: the cache's disk is full, ...
    """

    ledger: Ledger = field(default_factory=Ledger)
    rejects: list[Reject] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        self.ledger.add(other.ledger)
        self.rejects += other.rejects
        self.notes += [note for note in other.notes if note not in self.notes]

    @property
    def is_plain(self) -> bool:
        """Whether there is nothing to tell but that samples were read."""
        ledger = self.ledger
        return not (ledger.rejected or ledger.quarantined or ledger.retries or self.notes)


_NAMES_SHOWN = 5


def _few(names: dict[str, str]) -> str:
    more = len(names) - _NAMES_SHOWN
    shown = ", ".join(sorted(names)[:_NAMES_SHOWN])
    return f"{shown} and {more} more" if more > 0 else shown
