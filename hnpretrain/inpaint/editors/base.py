"""What an editor is: it makes pictures in which a proposal's new caption is true."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hnpretrain.inpaint.records import Proposal


class CannotEdit(ValueError):
    """An editor can make no picture of a proposal; the message says why, in few words."""


@dataclass(frozen=True)
class Task:
    """One picture that is to be made.

    Attributes:
        proposal: says what is to change.
        photo_HWC: RGB, uint8.
        mask_HW: bool, true on the thing.
        seed: of all that the editor draws; another for each of a proposal's candidates.
        number: of the candidate, among those that the editor makes for the proposal: from 0. What
            is not drawn but taken in turn goes by it.
    """

    proposal: Proposal
    photo_HWC: np.ndarray
    mask_HW: np.ndarray
    seed: int
    number: int = 0


@dataclass(frozen=True)
class Edited:
    """A picture.

    Attributes:
        image_HWC: RGB, uint8, as large as the photo.
        changed_HW: bool, where the editor meant to change pixels: the mask, and what it had to
            change beside it (a soft edge, the ground that a thing uncovers or covers).
        details: what the editor tells of it; JSON values.
    """

    image_HWC: np.ndarray
    changed_HW: np.ndarray
    details: Mapping[str, Any] = field(default_factory=dict)


class Editor(ABC):
    """Makes pictures for proposals of some kinds.

    Attributes:
        name: in candidates' names; letters.
        edits: the kinds of proposals that it takes, of `records.EDITS`.
        batch_size: how many tasks it likes to be given at once.
        is_seeded: whether its pictures depend on the task's seed or number; else a proposal has
            one candidate of it.
    """

    name: str
    edits: tuple[str, ...]
    batch_size: int = 1
    is_seeded: bool = True

    @property
    @abstractmethod
    def settings(self) -> Mapping[str, Any]:
        """All that decides its pictures beside the task; JSON values."""

    def settings_for(self, proposal: Proposal) -> Mapping[str, Any]:  # noqa: ARG002
        """All that decides the pictures of a proposal beside its tasks; JSON values."""
        return self.settings

    @abstractmethod
    def edit(self, tasks: Sequence[Task]) -> list[Edited | CannotEdit]:
        """One result a task, in their order; each depends on its task alone."""
