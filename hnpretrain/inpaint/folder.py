"""The folder that the steps share.

    proposals.jsonl          one Proposal a line, best first; appears whole, last
    left_out.jsonl           {"key", "caption", "concept", "reason", "detail"}, one a line
    photos/KEY-DIGEST.jpg    the source's bytes
    masks/DIGEST.png         of a thing; proposals of one thing share it
    donors.jsonl, donors/    things of photos that `replace` may paste
    candidates/ID/NAME.png, NAME-changed.png, NAME.json    the JSON appears last; or NAME.cannot
    decisions/REVIEWER.jsonl one Decision a line, in the order in which they were made

Local: people look at it, and a review saves each click.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from hnpretrain.inpaint.records import Candidate, Proposal, from_json
from hnpretrain.shards import storage

NAME = re.compile(r"[A-Za-z0-9_\-]{1,160}")


class Folder:
    """Where things are, and what is there.

    Attributes:
        root: the folder.
    """

    def __init__(self, root: str | Path) -> None:
        if storage.is_url(str(root)):
            raise ValueError(f"{root}: must be a local folder, since people look at its pictures")
        self.root = Path(root)

    @property
    def proposals_file(self) -> Path:
        return self.root / "proposals.jsonl"

    @property
    def left_out_file(self) -> Path:
        return self.root / "left_out.jsonl"

    @property
    def donors_file(self) -> Path:
        return self.root / "donors.jsonl"

    @property
    def decisions(self) -> Path:
        return self.root / "decisions"

    def path(self, name: str) -> Path:
        """The path of what a record names; ValueError if that lies outside the folder."""
        path = (self.root / name).resolve()
        if not path.is_relative_to(self.root.resolve()):
            raise ValueError(f"{name!r} lies outside {self.root}")
        return path

    def proposals(self) -> list[Proposal]:
        """All proposals, best first.

        Raises:
            ValueError: there are none yet, or the file is damaged.
        """
        if not self.proposals_file.is_file():
            raise ValueError(
                f"{self.root} holds no proposals.jsonl; `hnpretrain inpaint propose` makes it"
            )
        found = []
        seen = set()
        with self.proposals_file.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                where = f"{self.proposals_file}, line {number}"
                try:
                    value = json.loads(line)
                except json.JSONDecodeError as error:
                    raise ValueError(f"{where}: not JSON: {error}") from error
                proposal = from_json(Proposal, value, where)
                if not NAME.fullmatch(proposal.id) or proposal.id in seen:
                    raise ValueError(f"{where}: the id {proposal.id!r} is no name or there twice")
                seen.add(proposal.id)
                found.append(proposal)
        return found

    def candidates_of(self, proposal: str) -> list[Candidate]:
        """The finished candidates of a proposal, sorted by id; ValueError if one is damaged."""
        return [self.read_candidate(path) for path in self.candidate_files(proposal)]

    def candidate_files(self, proposal: str) -> list[Path]:
        """The JSON files of a proposal's finished candidates, sorted."""
        return sorted((self.root / "candidates" / proposal).glob("*.json"))

    @staticmethod
    def read_candidate(path: Path) -> Candidate:
        """The candidate of one of `candidate_files`; ValueError if it is damaged."""
        try:
            value = json.loads(path.read_bytes())
        except ValueError as error:
            raise ValueError(f"{path}: not JSON: {error}") from error
        return from_json(Candidate, value, str(path))
