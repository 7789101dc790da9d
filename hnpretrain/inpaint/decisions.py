"""What people decided: one file a person, one JSON line a decision, only ever appended to.

A decision is on the disk (fsync) before `append` returns, so whoever says "saved" after it says the
truth. A crash can leave no more than a last line cut short. That line was never said to be saved;
it is put aside into a file of its own, and told.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import sys
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Self

from hnpretrain.inpaint.folder import Folder
from hnpretrain.inpaint.records import VERDICTS, Decision, from_json, to_json
from hnpretrain.shards import storage
from hnpretrain.shards.lock import Locked, holder, locked

# With a letter, digit or _ in front it is neither a hidden file nor a path.
_REVIEWER = re.compile(r"(?=[^.\-])[A-Za-z0-9_.\-]{1,40}")
# Verdicts that judge; who skips does not.
JUDGEMENTS = ("accept", "reject")


def check_reviewer(name: str) -> str:
    """The name; ValueError if it is no reviewer's."""
    if not _REVIEWER.fullmatch(name):
        raise ValueError(
            f"reviewer {name!r:.60}: must be 1 to 40 letters (A-Z, a-z), digits, `_`, `-` or `.`, "
            "with a letter, digit or `_` in front"
        )
    return name


def _tell(note: str) -> None:
    print(note, file=sys.stderr)


class Decisions:
    """One reviewer's decisions, which no other process can add to meanwhile.

    Usable from several threads, and as a context manager that closes it.

    Attributes:
        path: of the file.
        reviewer: the person's name.
    """

    def __init__(self, folder: Folder, reviewer: str, tell: Callable[[str], None] = _tell) -> None:
        """Reads what is there, and puts a last line aside that was cut short.

        Args:
            folder: of the proposals.
            reviewer: the person's name.
            tell: called with a note if a line was put aside, and where it is now.

        Raises:
            ValueError: it is no name, or a line of the file is damaged and is not the last one.
            Locked: another process has this reviewer's decisions.
            OSError: the storage failed.
        """
        self.reviewer = check_reviewer(reviewer)
        self.path = _file_of(folder, reviewer)
        self._tell = tell
        self._mutex = threading.Lock()
        self._made: list[Decision] = []
        self._end = 0  # of what is known of the file, in bytes
        with contextlib.ExitStack() as stack:
            self._hold = stack.enter_context(locked(_lock_of(folder, reviewer)))
            self._recover()
            self._held = stack.pop_all()

    @property
    def made(self) -> Sequence[Decision]:
        """All that are on the disk, in the order in which they were made, undone ones too."""
        return tuple(self._made)

    def append(self, decision: Decision) -> None:
        """Adds a decision; it is on the disk when this returns.

        Raises:
            ValueError: it is another reviewer's, or its verdict is unknown.
            OSError: it could not be written, or the lock was lost; then it does not count.
        """
        _check(decision, self.reviewer, "decision")
        line = json.dumps(to_json(decision), allow_nan=False).encode() + b"\n"
        with self._mutex:
            self._hold.check()
            if self._size() != self._end:  # an append has failed, or somebody edited the file
                self._recover()
            self._add(line)
            self._end += len(line)
            self._made.append(decision)

    def _size(self) -> int:
        try:
            return self.path.stat().st_size
        except FileNotFoundError:
            return 0

    def _add(self, line: bytes) -> None:
        fresh = not self.path.exists()
        # Opened anew each time, so that it goes into the file that has the name. Unbuffered, so
        # that nothing of a failed write comes later.
        with self.path.open("ab", buffering=0) as file:
            try:
                _write(file, line)
                os.fsync(file.fileno())
            except OSError:
                # It will not be said to be saved, so no part of it may stay. Where that fails too,
                # the next append looks at what is there.
                with contextlib.suppress(OSError):
                    file.truncate(self._end)
                    os.fsync(file.fileno())
                raise
        if fresh:
            # A file's own sync does not make its name last, nor that of a new folder.
            for folder in (self.path.parent, self.path.parent.parent):
                _sync_folder(folder)

    def close(self) -> None:
        """Lets others have this reviewer's decisions."""
        with self._mutex:
            self._held.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _recover(self) -> None:
        """Reads the file, and makes it end with a whole line."""
        data = _read(self.path)
        self._made, end = _parse(self.path, data)
        if end < len(data):
            aside = self._aside()
            storage.write_bytes(str(aside), data[end:])  # synced, before it goes from the file
            _sync_folder(aside.parent)
            with self.path.open("r+b") as file:
                file.truncate(end)
                os.fsync(file.fileno())
            self._tell(f"{_cut_short(self.path)}; it is put aside in {aside.name}")
        elif data and not data.endswith(b"\n"):
            # A whole decision, as editors leave it that end files without a new line.
            with self.path.open("ab", buffering=0) as file:
                _write(file, b"\n")
                os.fsync(file.fileno())
            end += 1
        self._end = end

    def _aside(self) -> Path:
        names = (self.path.with_name(f"{self.reviewer}.broken-{n}") for n in itertools.count(1))
        return next(name for name in names if not name.exists())


def _write(file: FileIO, data: bytes) -> None:
    while data:
        data = data[file.write(data) :]


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _file_of(folder: Folder, reviewer: str) -> Path:
    return folder.decisions / f"{reviewer}.jsonl"


def _lock_of(folder: Folder, reviewer: str) -> str:
    return str(folder.decisions / f"{reviewer}.lock")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


def _cut_short(path: Path) -> str:
    return f"{path}: the last line was cut short, before it was said to be saved"


def _parse(path: Path, data: bytes) -> tuple[list[Decision], int]:
    """The decisions of a file, and where the whole ones end.

    A last line that is no JSON is what a crash leaves: of an object no beginning is JSON, and where
    blocks came to the disk out of order there are zeros. All else that is wrong was never written
    by `append`, and is an error.
    """
    made: list[Decision] = []
    lines = data.splitlines(keepends=True)
    start = 0
    for number, line in enumerate(lines, 1):
        where = f"{path}, line {number}"
        try:
            value = json.loads(line)
        except ValueError as error:
            if number == len(lines):
                return made, start
            raise ValueError(f"{where}: not JSON: {error}; mend or remove the line") from error
        made.append(_check(from_json(Decision, value, where), path.name[: -len(".jsonl")], where))
        start += len(line)
    return made, start


def _check(decision: Decision, reviewer: str, where: str) -> Decision:
    if decision.reviewer != reviewer:
        raise ValueError(f"{where}: of reviewer {decision.reviewer!r}, must be of {reviewer!r}")
    if decision.verdict not in VERDICTS:
        raise ValueError(
            f"{where}: verdict {decision.verdict!r}, must be one of {', '.join(VERDICTS)}"
        )
    return decision


def decision_files(folder: Folder) -> dict[str, Path]:
    """The files of decisions by reviewer, sorted; ValueError if one is not named as a reviewer."""
    found = {}
    for path in sorted(folder.decisions.glob("*.jsonl")):
        try:
            found[check_reviewer(path.name[: -len(".jsonl")])] = path
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    return found


def read_file(path: Path, tell: Callable[[str], None] = _tell) -> list[Decision]:
    """The decisions of one of `decision_files`; see `read_decisions`."""
    data = _read(path)
    made, end = _parse(path, data)
    if end < len(data):
        tell(f"{_cut_short(path)}; it is left out")
    return made


def read_reviewer(
    folder: Folder, reviewer: str, tell: Callable[[str], None] = _tell
) -> list[Decision]:
    """One reviewer's decisions, where none is to be added yet; nothing is changed or held.

    Args:
        folder: of the proposals.
        reviewer: the person's name.
        tell: called with a note if the last line was cut short, and is left out.

    Raises:
        ValueError: it is no name, or a line of the file is damaged.
        Locked: somebody has this reviewer's decisions, so that `Decisions` would be refused.
        OSError: the storage failed.
    """
    lock = _lock_of(folder, check_reviewer(reviewer))
    owner = holder(lock)
    if owner is not None:
        raise Locked(lock, owner)
    return read_file(_file_of(folder, reviewer), tell)


def read_decisions(
    folder: Folder, tell: Callable[[str], None] = _tell
) -> dict[str, list[Decision]]:
    """All decisions by reviewer, sorted by name; nothing is changed, and nobody is waited for.

    Args:
        folder: of the proposals.
        tell: called with a note for each file whose last line was cut short, and is left out.

    Raises:
        ValueError: a file is not named as a reviewer, or a line is damaged; it is named.
    """
    return {name: read_file(path, tell) for name, path in decision_files(folder).items()}


def standing(decisions: Iterable[Decision]) -> dict[str, Decision]:
    """What stands of one person's decisions, by proposal.

    The last one of a proposal stands; an `undo` takes it back, and the one before stands again. The
    result is in the order in which those that stand were made.
    """
    stacks: dict[str, list[tuple[int, Decision]]] = defaultdict(list)
    for place, decision in enumerate(decisions):
        if decision.verdict != "undo":
            stacks[decision.proposal].append((place, decision))
        elif stacks[decision.proposal]:
            stacks[decision.proposal].pop()
    last = sorted((stack[-1] for stack in stacks.values() if stack), key=lambda made: made[0])
    return {decision.proposal: decision for _, decision in last}


@dataclass(frozen=True)
class PairAgreement:
    """How far two people agree.

    Attributes:
        reviewers: the two, sorted.
        proposals: that both judged; at least 1.
        agreed: those of them on which they agree.
        kappa: Cohen's; None where chance alone would make them agree always.
    """

    reviewers: tuple[str, str]
    proposals: int
    agreed: int
    kappa: float | None

    @property
    def raw(self) -> float:
        """The share on which they agree."""
        return self.agreed / self.proposals


@dataclass(frozen=True)
class Agreement:
    """How far people agree on what two or more of them judged.

    Attributes:
        proposals: that two or more people judged.
        unanimous: those of them that all of their judges accept, or all reject.
        pairs: of each two people who judged a proposal in common, sorted by name.
    """

    proposals: int
    unanimous: int
    pairs: tuple[PairAgreement, ...]

    @property
    def raw(self) -> float | None:
        """The share of unanimous ones; None where no two people judged the same."""
        return self.unanimous / self.proposals if self.proposals else None


def agreement(decisions: Mapping[str, Iterable[Decision]]) -> Agreement:
    """Compares people's standing verdicts: accept or reject; whoever skips does not judge.

    Two people who accept different candidates agree: both say that the proposal gave a pair.

    Cohen's kappa is (p_o - p_e) / (1 - p_e) with p_o the share on which the two agree, and p_e the
    sum over verdicts of the product of the shares in which each gives it (J. Cohen, A coefficient
    of agreement for nominal scales, Educational and Psychological Measurement 20(1), 1960, 37-46).
    With p_e = 1 both gave one and the same verdict always, and it is undefined.

    Args:
        decisions: by reviewer, as `read_decisions` gives them.
    """
    accepted = {
        reviewer: {
            proposal: decision.verdict == "accept"
            for proposal, decision in standing(made).items()
            if decision.verdict in JUDGEMENTS
        }
        for reviewer, made in decisions.items()
    }
    verdicts: dict[str, list[bool]] = defaultdict(list)
    for judged in accepted.values():
        for proposal, accepts in judged.items():
            verdicts[proposal].append(accepts)
    shared = [given for given in verdicts.values() if len(given) > 1]
    pairs = []
    for first, second in itertools.combinations(sorted(accepted), 2):
        common = accepted[first].keys() & accepted[second].keys()
        if common:
            both = [(accepted[first][each], accepted[second][each]) for each in common]
            agreed = sum(a == b for a, b in both)
            pairs.append(PairAgreement((first, second), len(both), agreed, _kappa(both)))
    return Agreement(len(shared), sum(len(set(given)) == 1 for given in shared), tuple(pairs))


def _kappa(both: Sequence[tuple[bool, bool]]) -> float | None:
    count = len(both)
    first, second = (sum(column) for column in zip(*both, strict=True))
    agreed = sum(a == b for a, b in both)
    # In integers, times count^2, so that p_e = 1 is seen exactly.
    expected = first * second + (count - first) * (count - second)
    if expected == count**2:
        return None
    return (agreed * count - expected) / (count**2 - expected)
