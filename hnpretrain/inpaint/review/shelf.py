"""What there is to look at: proposals with their candidates, as they are in the folder now.

`generate` may still be at work, so the candidates are looked for again each time; what was read
once, and has not changed, is not read again. A damaged candidate is named, and hides no other.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from hnpretrain.config import require_one_of
from hnpretrain.inpaint.folder import NAME, Folder
from hnpretrain.inpaint.records import Candidate, Proposal

# Which candidates are shown: those whose checks pass, with the proposals that have one; or all.
SHOWN = ("passed", "all")


@dataclass(frozen=True)
class Item:
    """A proposal, and what was made for it.

    Attributes:
        proposal: what was to be made.
        candidates: those whose checks pass come first; each part sorted by id.
        damaged: of each candidate that cannot be read, what is wrong, in one line.
    """

    proposal: Proposal
    candidates: tuple[Candidate, ...]
    damaged: tuple[str, ...]

    def candidate(self, name: str) -> Candidate | None:
        """The candidate of an id, or None."""
        return next((each for each in self.candidates if each.id == name), None)


class Shelf:
    """The items of a folder. Usable from several threads.

    Attributes:
        folder: where they are.
        only: which are shown, of SHOWN.
    """

    def __init__(self, folder: Folder, only: str) -> None:
        """Reads the proposals, which do not change.

        Raises:
            ValueError: `only` is unknown, or there are no proposals, or their file is damaged.
        """
        require_one_of("only", only, SHOWN)
        self.folder = folder
        self.only = only
        self._proposals = {proposal.id: proposal for proposal in folder.proposals()}
        self._mutex = threading.Lock()
        # Of each file: its time and size, and what was read from it.
        self._read: dict[Path, tuple[tuple[int, int], Candidate | str]] = {}

    def __len__(self) -> int:
        """How many proposals there are, shown or not."""
        return len(self._proposals)

    def items(self, accepted: Mapping[str, str]) -> list[Item]:
        """The items that are shown, best first, as `shown` gives them.

        Args:
            accepted: of proposals the candidate that the reviewer accepted.
        """
        found = [
            self.shown(self._item(proposal), accepted.get(name, ""))
            for name, proposal in self._proposals.items()
        ]
        return [item for item in found if self.only == "all" or item.candidates]

    def shown(self, item: Item, accepted: str) -> Item:
        """An item with the candidates that are shown.

        Args:
            item: of `item`.
            accepted: the candidate that the reviewer accepted, which is shown even if it failed, so
                that one sees what one said; may be empty.
        """
        if self.only == "all":
            return item
        shown = [each for each in item.candidates if each.passed or each.id == accepted]
        return replace(item, candidates=tuple(shown))

    def item(self, proposal: str) -> Item | None:
        """The item of a proposal's id with all candidates; None if there is none."""
        known = self._proposals.get(proposal)
        return None if known is None else self._item(known)

    def _item(self, proposal: Proposal) -> Item:
        candidates: dict[str, Candidate] = {}
        damaged = []
        for path in self.folder.candidate_files(proposal.id):
            found = self._candidate(path)
            if isinstance(found, str):
                damaged.append(found)
            elif found.proposal != proposal.id or not NAME.fullmatch(found.id):
                damaged.append(f"{path}: {found.id!r} of {found.proposal!r} does not belong here")
            elif found.id in candidates:
                damaged.append(f"{path}: there is another candidate {found.id!r}")
            else:
                candidates[found.id] = found
        best_first = sorted(candidates.values(), key=lambda each: (not each.passed, each.id))
        return Item(proposal, tuple(best_first), tuple(damaged))

    def _candidate(self, path: Path) -> Candidate | str:
        """What a file says, or what is wrong with it."""
        try:
            stat = path.stat()
            mark = stat.st_mtime_ns, stat.st_size
            with self._mutex:
                known = self._read.get(path)
            if known is not None and known[0] == mark:
                return known[1]
            found: Candidate | str = self.folder.read_candidate(path)
        except OSError as error:
            return f"{path}: cannot be read: {error.strerror}"
        except (ValueError, RecursionError) as error:
            found = str(error)
        with self._mutex:
            self._read[path] = mark, found
        return found
