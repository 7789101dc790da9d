"""Makes candidates in one process: a few proposals' at a time, in full batches.

The unit of work is an `Assignment`: all that one editor owes to some proposals, so many that their
pictures fill whole batches. A picture is finished when its record is written; what is written stays
whatever happens next.
"""

from __future__ import annotations

import math
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from hnpretrain.inpaint import candidates
from hnpretrain.inpaint.candidates import BadInput, Cannot, Slot
from hnpretrain.inpaint.editors.base import CannotEdit, Edited, Editor, Task
from hnpretrain.inpaint.folder import Folder
from hnpretrain.inpaint.records import Candidate, Check, Proposal
from shard_tools.workers import Stopped, Tally

# Columns of the tally, one row an assignment: pictures made, not made, checked again; and those
# that were taken for finished, but are to be made.
COUNTS = 4
_NUMBER = re.compile(r"\d+(\.\d+)?")


class Checker(Protocol):
    """Measures pictures."""

    @property
    def settings(self) -> Mapping[str, object]:
        """All that decides what it finds beside photo and pictures; JSON values."""

    def __call__(
        self, task: Task, edited: Edited, earlier: Sequence[Edited], /
    ) -> Mapping[str, Check]:
        """Checks of a picture by name; `earlier` are its proposal's with lower numbers."""


@dataclass(frozen=True)
class Debt:
    """What an editor owes to a proposal.

    Attributes:
        proposal: the proposal.
        numbers: of candidates that are not finished.
        recheck: of those that are, but whose checks were made with other settings.
    """

    proposal: Proposal
    numbers: tuple[int, ...]
    recheck: tuple[int, ...] = ()


@dataclass(frozen=True)
class Assignment:
    """Work for one process.

    Attributes:
        editor: its place among the editors.
        debts: to whole proposals, since a candidate is compared with those before it.
    """

    editor: int
    debts: tuple[Debt, ...]

    @property
    def pictures(self) -> int:
        return sum(len(debt.numbers) for debt in self.debts)

    @property
    def rechecks(self) -> int:
        return sum(len(debt.recheck) for debt in self.debts)


@dataclass
class EditorCounts:
    """What an editor made.

    Attributes:
        made: candidates of this run.
        kept: of earlier runs, under the same settings.
        rechecked: of earlier runs, too, but checked anew, since the checks' settings are others.
        passed: of all three, how many pass all checks.
        failed: of all three, by check; one may fail several.
        cannot: candidates that it can't make, by reason, with N for its numbers; of all runs.
        seconds: that it took for `made`, without reading, checking and writing.
    """

    made: int = 0
    kept: int = 0
    rechecked: int = 0
    passed: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    cannot: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0

    @property
    def pictures(self) -> int:
        return self.made + self.kept + self.rechecked

    @property
    def seconds_each(self) -> float:
        """Seconds a picture of this run; 0 if it made none."""
        return self.seconds / self.made if self.made else 0.0

    def add(self, found: Candidate | Cannot) -> None:
        """Counts one, but not as made or kept."""
        if isinstance(found, Cannot):
            self.cannot[_NUMBER.sub("N", found.reason)] += 1
            return
        self.passed += found.passed
        self.failed.update(_failed(found))

    def take_back(self, found: Candidate) -> None:
        """Counts one less as kept: it is damaged. Below zero, until this joins the others."""
        self.kept -= 1
        self.passed -= found.passed
        self.failed.subtract(_failed(found))

    def join(self, other: EditorCounts) -> None:
        """Adds another's counts."""
        self.made += other.made
        self.kept += other.kept
        self.rechecked += other.rechecked
        self.passed += other.passed
        self.failed.update(other.failed)
        self.failed = +self.failed
        self.cannot += other.cannot
        self.seconds += other.seconds


def _failed(found: Candidate) -> list[str]:
    return [name for name, check in found.checks.items() if not check.passed]


@dataclass(frozen=True)
class Broken:
    """A proposal whose photo or mask cannot be used.

    Attributes:
        proposal: its id.
        reason: to count by, see `candidates.BadInput`.
        detail: which file, and what is wrong with it.
    """

    proposal: str
    reason: str
    detail: str


@dataclass
class Done:
    """What came of an assignment."""

    editor: int
    counts: EditorCounts = field(default_factory=EditorCounts)
    broken: list[Broken] = field(default_factory=list)


def assign(debts: Mapping[int, Sequence[Debt]], editors: Sequence[Editor]) -> Iterator[Assignment]:
    """Debts by editor's place, as assignments of whole batches, each editor's in their order."""
    for place, owed in debts.items():
        size, start = editors[place].batch_size, 0
        while start < len(owed):
            # As many proposals as fill whole batches, if all owe as much as the first.
            each = max(1, len(owed[start].numbers))
            end = start + size // math.gcd(size, each)
            yield Assignment(place, tuple(owed[start:end]))
            start = end


class Maker:
    """Makes what is assigned; a call returns when all of it is on disk.

    Args:
        root: the folder's.
        editors: all of the run.
        seed: of the run.
        max_pixels: largest width x height of a photo or mask.
        check: of each picture; see `generate`.
        tally: one row an assignment, COUNTS columns; its flag stops the work.
        after_batch: called when some pictures are done.
    """

    def __init__(
        self,
        root: Path,
        editors: Sequence[Editor],
        seed: int,
        max_pixels: int,
        check: Checker,
        tally: Tally,
        after_batch: Callable[[], None] = lambda: None,
    ) -> None:
        self._folder = Folder(root)
        self._editors = editors
        self._seed = seed
        self._max_pixels = max_pixels
        self._check = check
        self._checked_with = candidates.as_json(check.settings)
        self._tally = tally
        self._after_batch = after_batch

    def __call__(self, row: int, work: Assignment) -> Done:
        """Does an assignment, counting in the tally's row of that number.

        Raises:
            Stopped: the tally says so; pictures that are finished stay.
            ValueError: an editor is used wrongly, or breaks its promise.
            OSError: storage failed.
        """
        done = Done(work.editor)
        editor = self._editors[work.editor]
        # By proposal, then by number: what later candidates are compared with.
        earlier: dict[str, dict[int, Edited]] = {}
        batch: list[tuple[Slot, Task]] = []
        for debt in work.debts:
            proposal = debt.proposal
            try:
                task = candidates.read_task(self._folder, proposal, self._max_pixels)
            except BadInput as error:
                done.broken.append(Broken(proposal.id, error.reason, str(error)))
                self._tally.add(row, 0, len(debt.numbers) + len(debt.recheck), 0, 0)
                continue
            finished, edited, damaged = self._finished(debt, editor)
            earlier[proposal.id] = edited
            for number in damaged - set(debt.recheck):
                done.counts.take_back(finished[number])
                self._tally.add(row, 0, 0, 0, 1)
            for number in sorted(damaged | set(debt.numbers)):
                slot = Slot(proposal.id, editor.name, number)
                seed = slot.seed(self._seed)
                batch.append((slot, replace(task, seed=seed, number=number)))
                if len(batch) == editor.batch_size:
                    self._make(row, done, editor, batch, earlier)
                    batch = []
                    # Kept while a proposal is worked on, and no longer.
                    earlier = {proposal.id: edited}
            if recheck := sorted(set(debt.recheck) - damaged):
                if batch:  # pictures are compared with those that are being made, too
                    self._make(row, done, editor, batch, earlier)
                    batch = []
                for number in recheck:
                    self._recheck(row, done, replace(task, number=number), finished[number], edited)
                self._after_batch()
                earlier = {}
        if batch:
            self._make(row, done, editor, batch, earlier)
        return done

    def _finished(
        self, debt: Debt, editor: Editor
    ) -> tuple[dict[int, Candidate], dict[int, Edited], set[int]]:
        """The proposal's finished candidates of this editor that others are compared with.

        Returns:
            By number the candidates, and the pictures of those that are whole; the numbers of the
            others, which have to be made again.
        """
        finished, edited, damaged = {}, {}, set()
        last = max(debt.numbers + debt.recheck)
        for number in set(range(last + 1)) - set(debt.numbers):
            found = candidates.read(self._folder, Slot(debt.proposal.id, editor.name, number))
            if not isinstance(found, Candidate):
                continue
            finished[number] = found
            try:
                edited[number] = candidates.read_edited(self._folder, found, self._max_pixels)
            except BadInput:
                damaged.add(number)
        return finished, edited, damaged

    def _make(
        self,
        row: int,
        done: Done,
        editor: Editor,
        batch: Sequence[tuple[Slot, Task]],
        earlier: Mapping[str, dict[int, Edited]],
    ) -> None:
        if self._tally.stopped():
            raise Stopped
        start = time.perf_counter()
        results = editor.edit([task for _, task in batch])
        done.counts.seconds += time.perf_counter() - start
        for (slot, task), result in zip(batch, results, strict=True):
            candidates.clear(self._folder, slot)
            if isinstance(result, CannotEdit):
                self._note(done, editor, slot, task, str(result))
                self._tally.add(row, 0, 1, 0, 0)
                continue
            shape = task.photo_HWC.shape
            if result.image_HWC.shape != shape or result.changed_HW.shape != shape[:2]:
                raise ValueError(
                    f"the editor {editor.name} gave a picture of {result.image_HWC.shape} for a "
                    f"photo of {shape} ({slot.proposal})"
                )
            before = earlier[slot.proposal]
            lower = [before[number] for number in sorted(before) if number < slot.number]
            checks = self._check(task, result, lower)
            before[slot.number] = result
            candidate = Candidate(
                id=slot.id,
                proposal=slot.proposal,
                editor=slot.editor,
                image=slot.image,
                changed=slot.changed,
                seed=task.seed,
                settings=candidates.as_json(editor.settings_for(task.proposal)),
                details=candidates.as_json(result.details),
                checks=dict(checks),
                checked_with=self._checked_with,
            )
            candidates.write(self._folder, candidate, result)
            done.counts.made += 1
            done.counts.add(candidate)
            self._tally.add(row, 1, 0, 0, 0)
        self._after_batch()

    def _recheck(
        self, row: int, done: Done, task: Task, found: Candidate, edited: Mapping[int, Edited]
    ) -> None:
        """Measures a finished picture anew, and rewrites its record.

        Args:
            edited: it, `task.number`, and those before it.
        """
        if self._tally.stopped():
            raise Stopped
        lower = [edited[number] for number in sorted(edited) if number < task.number]
        checks = self._check(task, edited[task.number], lower)
        found = replace(found, checks=dict(checks), checked_with=self._checked_with)
        candidates.write_record(self._folder, found)
        done.counts.rechecked += 1
        done.counts.add(found)
        self._tally.add(row, 0, 0, 1, 0)

    def _note(self, done: Done, editor: Editor, slot: Slot, task: Task, reason: str) -> None:
        settings = candidates.as_json(editor.settings_for(task.proposal))
        cannot = Cannot(slot.id, slot.proposal, slot.editor, task.seed, settings, reason)
        candidates.write_cannot(self._folder, slot, cannot)
        done.counts.add(cannot)
