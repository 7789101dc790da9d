"""Takes decisions, and tells each reviewer what stands; never what others said of what is open.

The people who use one server have a file each, which the server holds from their first decision on:
who only looks, or mistypes a name, keeps nobody from it. Other people's files are read when they
have changed.
"""

from __future__ import annotations

import dataclasses
import threading
import time
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hnpretrain.inpaint.decisions import (
    JUDGEMENTS,
    Decisions,
    agreement,
    check_reviewer,
    decision_files,
    read_file,
    read_reviewer,
    standing,
)
from hnpretrain.inpaint.folder import Folder
from hnpretrain.inpaint.records import VERDICTS, Decision, from_json, to_json
from hnpretrain.inpaint.review.shelf import Item
from hnpretrain.inpaint.selection import check_captions

_MAX_CAPTION = 1000


class Conflict(Exception):
    """The decision was made of something else than what is on the disk now; says what is so."""


@dataclass(frozen=True)
class Asked:
    """A decision as the page asks for it.

    Attributes:
        proposal: its id.
        verdict: one of VERDICTS.
        candidate: id of the one that was looked at; may be empty, unless it is accepted.
        caption: of the photo.
        new_caption: of the candidate.
        note: why; may be empty.
        seen: how many decisions of this person on this proposal the page knows of, undone ones
            too. With it a request that is sent again, since its answer was lost, counts once, and
            two windows of one person do not decide over each other.
    """

    proposal: str
    verdict: str
    candidate: str
    caption: str
    new_caption: str
    note: str
    seen: int

    @classmethod
    def read(cls, value: object) -> Asked:
        """From JSON; ValueError says which field is wrong, or what of an accept's captions, which
        are taken without needless white space."""
        asked = from_json(cls, value, "decision")
        if asked.verdict not in VERDICTS:
            raise ValueError(
                f"decision: verdict {asked.verdict!r:.60}: must be one of {', '.join(VERDICTS)}"
            )
        for name in ("caption", "new_caption", "note"):
            text = getattr(asked, name)
            if len(text) > _MAX_CAPTION:
                raise ValueError(f"{name}: {len(text)} characters, at most {_MAX_CAPTION}")
            # Line ends and other controls, and halves of surrogate pairs, which are no text.
            if any(unicodedata.category(c) in ("Cc", "Cs") for c in text):
                raise ValueError(f"{name}: must be one line of text without control characters")
        if asked.verdict == "accept":
            if not asked.candidate:
                raise ValueError("accept: needs a candidate")
            # What the export would leave out is not to be called saved.
            caption, new_caption = check_captions(asked.caption, asked.new_caption)
            return dataclasses.replace(asked, caption=caption, new_caption=new_caption)
        return asked


class Desk:
    """Where decisions are handed in. Usable from several threads; a context manager."""

    def __init__(self, folder: Folder, tell: Callable[[str], None]) -> None:
        """
        Args:
            folder: of the proposals.
            tell: called with notes on damaged files.
        """
        self._folder = folder
        self._tell = tell
        self._mutex = threading.Lock()
        self._held: dict[str, Decisions] = {}
        self._others: dict[Path, tuple[tuple[int, int], Sequence[Decision]]] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Desk:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def admit(self, reviewer: str) -> None:
        """Holds a reviewer's decisions from here on, as the first decision does.

        Raises:
            ValueError: it is no name, or the file is damaged.
            Locked: another server has them.
            OSError: the storage failed.
        """
        with self._mutex:
            self._decisions(reviewer)

    def standing(self, reviewer: str) -> dict[str, Decision]:
        """What stands, by proposal; the errors are those of `admit`, and nothing is held."""
        with self._mutex:
            return standing(self._made(reviewer))

    def state(self, reviewer: str, proposal: str) -> dict[str, Any]:
        """What a reviewer may know of a proposal, and of the whole; JSON values.

        `decision`: what stands, or null. `seen`: see `Asked`. `latest`: the proposal that the
        reviewer decided last, if that stands, or null. `others`: reviewer to verdict, once this one
        has judged. `agreement`: with each other person, over what both judged. The errors are those
        of `admit`, and nothing is held.
        """
        with self._mutex:
            return self._state(reviewer, proposal)

    def agreement(self, reviewer: str) -> list[dict[str, Any]]:
        """Of a reviewer with each other one; errors as `admit`, and nothing is held."""
        with self._mutex:
            return _agreement(reviewer, self._all(reviewer, self._made(reviewer)))

    def decide(self, reviewer: str, item: Item, asked: Asked) -> dict[str, Any]:
        """Saves a decision; it is on the disk when this returns.

        Returns:
            The new `state`.

        Raises:
            Conflict: there is something else on the disk than the reviewer saw, or nothing to undo.
            ValueError: the candidate is unknown; or as `admit`.
            OSError: it could not be saved.
        """
        if asked.candidate and item.candidate(asked.candidate) is None:
            raise ValueError(f"{asked.proposal} has no candidate {asked.candidate!r:.60}")
        fields = dataclasses.asdict(asked)
        seen = fields.pop("seen")
        decision = Decision(**fields, reviewer=reviewer, time=time.time())
        with self._mutex:
            decisions = self._decisions(reviewer)
            its = [made for made in decisions.made if made.proposal == asked.proposal]
            sent_before = len(its) == seen + 1 and _same(its[-1], decision)
            if not sent_before:
                if len(its) != seen:
                    raise Conflict(
                        "it was decided elsewhere meanwhile (in another window?); shown is what is "
                        "on the disk"
                    )
                if asked.verdict == "undo" and asked.proposal not in standing(its):
                    raise Conflict("there is nothing to undo")
                decisions.append(decision)
            return self._state(reviewer, asked.proposal)

    def _decisions(self, reviewer: str) -> Decisions:
        if reviewer not in self._held:
            check_reviewer(reviewer)
            decisions = Decisions(self._folder, reviewer, self._tell)
            self._held[reviewer] = self._stack.enter_context(decisions)
        return self._held[reviewer]

    def _made(self, reviewer: str) -> Sequence[Decision]:
        if reviewer in self._held:
            return self._held[reviewer].made
        return read_reviewer(self._folder, reviewer, self._tell)

    def _all(self, reviewer: str, made: Sequence[Decision]) -> dict[str, Sequence[Decision]]:
        """All people's decisions, with what one of them made; a damaged file is told of, and left
        out.

        Nothing is raised, since a decision may just have been saved.
        """
        found: dict[str, Sequence[Decision]] = {n: d.made for n, d in self._held.items()}
        found[reviewer] = made
        try:
            for name, path in decision_files(self._folder).items():
                if name not in found:
                    found[name] = self._read(path)
        except (OSError, ValueError) as error:
            self._tell(f"{error}; nothing is said of agreement")
        return found

    def _read(self, path: Path) -> Sequence[Decision]:
        stat = path.stat()
        mark = stat.st_mtime_ns, stat.st_size
        if path not in self._others or self._others[path][0] != mark:
            try:
                # A last line may be on its way just now; it is seen the next time.
                made: Sequence[Decision] = read_file(path, tell=lambda _: None)
            except ValueError as error:
                self._tell(f"{error}; the reviewer is left out")
                made = ()
            self._others[path] = mark, made
        return self._others[path][1]

    def _state(self, reviewer: str, proposal: str) -> dict[str, Any]:
        made = self._made(reviewer)
        stands = standing(made)
        decision = stands.get(proposal)
        everyone = self._all(reviewer, made)
        others = {}
        if decision is not None and decision.verdict in JUDGEMENTS:
            for name, theirs in everyone.items():
                its = standing(each for each in theirs if each.proposal == proposal).get(proposal)
                if name != reviewer and its is not None:
                    others[name] = its.verdict
        return {
            "decision": None if decision is None else to_json(decision),
            "seen": sum(each.proposal == proposal for each in made),
            "latest": next(reversed(stands), None),
            "others": others,
            "agreement": _agreement(reviewer, everyone),
        }


def _same(made: Decision, decision: Decision) -> bool:
    return dataclasses.replace(made, time=decision.time) == decision


def _agreement(reviewer: str, everyone: Mapping[str, Sequence[Decision]]) -> list[dict[str, Any]]:
    found = []
    for name, made in everyone.items():
        if name != reviewer:
            for pair in agreement({reviewer: everyone[reviewer], name: made}).pairs:
                numbers = {"proposals": pair.proposals, "agreed": pair.agreed, "kappa": pair.kappa}
                found.append({"reviewer": name, **numbers})
    return found
