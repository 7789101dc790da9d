"""Which candidate of a proposal becomes a pair: people's word, or else that of the checks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from hnpretrain.inpaint.candidates import Cannot, Slot, read
from hnpretrain.inpaint.folder import Folder
from hnpretrain.inpaint.maker import EditorCounts
from hnpretrain.inpaint.records import Candidate, Decision, Proposal
from hnpretrain.shards.schema import clean_caption

REQUIREMENTS = ("any", "majority", "all")


@dataclass(frozen=True)
class Pair:
    """A photo and the picture that goes with it.

    Attributes:
        proposal: that it was made for.
        candidate: that was taken.
        caption: true of the photo, as the last person who accepted the candidate left it.
        new_caption: true of the picture, likewise.
        workers: who accepted the candidate, in the order of their decisions; empty if nobody did.
        verdicts: of all who judged the proposal, by reviewer.
    """

    proposal: Proposal
    candidate: Candidate
    caption: str
    new_caption: str
    workers: tuple[str, ...] = ()
    verdicts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class NoPair:
    """A proposal that gives no pair, and why."""

    proposal: str
    reason: str
    detail: str


@dataclass(frozen=True)
class Candidates:
    """All candidates of a folder.

    Attributes:
        good: by proposal, sorted by id.
        damaged: what is wrong with a record, by proposal and candidate.
        cannot: how many an editor could not make, by editor and reason, with N for its numbers.
    """

    good: Mapping[str, Sequence[Candidate]]
    damaged: Mapping[tuple[str, str], str]
    cannot: Counter[tuple[str, str]] = field(default_factory=Counter)


def read_candidates(folder: Folder, proposals: Sequence[Proposal]) -> Candidates:
    """Reads them; one whose record is damaged is told, and passed over."""
    good: dict[str, list[Candidate]] = {}
    damaged = {}
    unmade: dict[str, EditorCounts] = {}
    for proposal in proposals:
        found = good.setdefault(proposal.id, [])
        for path in folder.candidate_files(proposal.id):
            try:
                candidate = folder.read_candidate(path)
                if (candidate.proposal, candidate.id) != (proposal.id, path.stem):
                    raise ValueError(
                        f"{path}: is of {candidate.proposal} {candidate.id}; remove it"
                    )
            except ValueError as error:
                damaged[proposal.id, path.stem] = str(error)
            else:
                found.append(candidate)
        for each in _unmade(folder, proposal.id):
            unmade.setdefault(each.editor, EditorCounts()).add(each)
    cannot = Counter(
        {
            (editor, reason): count
            for editor, counts in unmade.items()
            for reason, count in counts.cannot.items()
        }
    )
    return Candidates(good, damaged, cannot)


def _unmade(folder: Folder, proposal: str) -> Iterator[Cannot]:
    for path in sorted((folder.root / "candidates" / proposal).glob("*.cannot")):
        editor, _, number = path.stem.rpartition("-")
        if number.isdecimal():
            found = read(folder, Slot(proposal, editor, int(number)))
            if isinstance(found, Cannot):  # else it is damaged, or there is a picture by now
                yield found


def judgements(decisions: Mapping[str, Sequence[Decision]]) -> dict[str, list[Decision]]:
    """What stands of people's accepts and rejects, by proposal, in the order of their time.

    Args:
        decisions: by reviewer, as `read_decisions` gives them.
    """
    from hnpretrain.inpaint.decisions import JUDGEMENTS, standing

    by_proposal: dict[str, list[Decision]] = {}
    for made in decisions.values():
        for proposal, decision in standing(made).items():
            if decision.verdict in JUDGEMENTS:
                by_proposal.setdefault(proposal, []).append(decision)
    for judged in by_proposal.values():
        judged.sort(key=lambda decision: (decision.time, decision.reviewer))
    return by_proposal


def select(
    proposals: Sequence[Proposal],
    candidates: Candidates,
    judged: Mapping[str, Sequence[Decision]],
    require: str,
    unreviewed: bool,
) -> Iterator[Pair | NoPair]:
    """For each proposal its pair, or why there is none.

    A proposal is taken if enough of those who judged it accepted one of its candidates. Of several
    accepted candidates, that which most people accepted is taken; of equals, the last.

    Args:
        proposals: best first.
        candidates: of all of them.
        judged: of `judgements`.
        require: how many must have accepted: one of REQUIREMENTS.
        unreviewed: of a proposal that nobody judged, take the first candidate that passed all
            checks.

    Yields:
        in the order of the proposals; then what people judged that is no proposal any more.
    """
    for proposal in proposals:
        if decisions := judged.get(proposal.id):
            yield _of_people(proposal, candidates, decisions, require)
        elif unreviewed:
            yield _of_checks(proposal, candidates)
        else:
            yield NoPair(proposal.id, "not_judged", "nobody accepted or rejected it")
    known = {proposal.id for proposal in proposals}
    for name in sorted(judged.keys() - known):
        yield NoPair(name, "proposal_gone", "it was judged, and proposals.jsonl has it no more")


def _of_people(
    proposal: Proposal, candidates: Candidates, decisions: Sequence[Decision], require: str
) -> Pair | NoPair:
    accepts = [decision for decision in decisions if decision.verdict == "accept"]
    enough = {
        "any": len(accepts) > 0,
        "majority": 2 * len(accepts) > len(decisions),
        "all": len(accepts) == len(decisions),
    }
    if not enough[require]:
        detail = f"{len(accepts)} of {len(decisions)} accepted it"
        return NoPair(proposal.id, "rejected", detail)
    votes = Counter(decision.candidate for decision in accepts)
    # The last of the candidates with the most votes.
    chosen = max(reversed(accepts), key=lambda decision: votes[decision.candidate])
    found = [each for each in candidates.good[proposal.id] if each.id == chosen.candidate]
    if not found:
        damage = candidates.damaged.get((proposal.id, chosen.candidate))
        if damage is not None:
            return NoPair(proposal.id, "damaged_candidate", damage)
        return NoPair(proposal.id, "candidate_gone", f"{chosen.candidate} was accepted")
    workers = tuple(each.reviewer for each in accepts if each.candidate == chosen.candidate)
    verdicts = {decision.reviewer: decision.verdict for decision in decisions}
    return _pair(proposal, found[0], chosen.caption, chosen.new_caption, workers, verdicts)


def _of_checks(proposal: Proposal, candidates: Candidates) -> Pair | NoPair:
    made = candidates.good[proposal.id]
    passed = [candidate for candidate in made if candidate.passed]
    if not passed:
        detail = f"none of {len(made)} candidates passed all checks"
        return NoPair(proposal.id, "no_candidate_passed", detail)
    return _pair(proposal, passed[0], proposal.caption, proposal.new_caption, (), {})


def _pair(
    proposal: Proposal,
    candidate: Candidate,
    caption: str,
    new_caption: str,
    workers: tuple[str, ...],
    verdicts: Mapping[str, str],
) -> Pair | NoPair:
    try:
        caption, new_caption = check_captions(caption, new_caption)
    except ValueError as error:
        return NoPair(proposal.id, "bad_captions", str(error))
    return Pair(proposal, candidate, caption, new_caption, workers, verdicts)


def check_captions(caption: str, new_caption: str) -> tuple[str, str]:
    """Whether two captions can tell the pictures of a pair apart.

    They must differ in words: case, white space and punctuation are not seen in a picture, and a
    tie of equal captions is always scored as wrong.

    Returns:
        Both, with runs of white space made single spaces.

    Raises:
        ValueError: one is empty or no valid Unicode, or they are the same.
    """
    from shard_tools.negatives.english import plain

    caption, new_caption = clean_caption(caption), clean_caption(new_caption)
    if plain(caption) == plain(new_caption):
        raise ValueError(
            f"the captions are the same but for case, space and punctuation ({caption!r:.80}); "
            "they must tell the pictures apart"
        )
    return caption, new_caption
