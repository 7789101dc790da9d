"""`hnpretrain inpaint export`: what people accepted becomes a data set, with its card.

    pairs.parquet        in InpaintCOCO's schema; or, as shards, pairs-000000.tar ... and index.json
    attributions.tsv     of each photo: key, licence, its URL, page, author, as the source has them
    left_out.jsonl       {"proposal", "reason", "detail"}, one a line
    README.md            the data card; appears last
    export.json          that the folder is an export, which the next one may replace; appears first

Each file appears whole. The same folder and settings give the same bytes.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hnpretrain.config import require_one_of
from hnpretrain.inpaint.folder import Folder
from hnpretrain.inpaint.licences import Licence
from hnpretrain.inpaint.pictures import Pictures, check_pictures, read_pictures
from hnpretrain.inpaint.records import Proposal
from hnpretrain.inpaint.selection import (
    REQUIREMENTS,
    NoPair,
    Pair,
    judgements,
    read_candidates,
    select,
)
from hnpretrain.shards import storage
from hnpretrain.shards.images import DEFAULT_MAX_PIXELS, require_max_pixels

FORMATS = ("parquet", "shards")
CARD = "README.md"
PARQUET = "pairs.parquet"
ATTRIBUTIONS = "attributions.tsv"
LEFT_OUT = "left_out.jsonl"
MARK = "export.json"
_MADE_BY = "hnpretrain inpaint export"
# Folders of the steps before, which hold nothing else.
_OF_OTHER_STEPS = ("photos", "masks", "donors", "candidates", "decisions")


@dataclass
class ExportSettings:
    """All settings of the export.

    Attributes:
        format: `parquet` (a benchmark, as InpaintCOCO) or `shards` (for training: each picture
            with the other's caption as its negative).
        require: how many of those who judged a proposal must have accepted it: any, majority (more
            than half) or all.
        unreviewed: of proposals that nobody judged, take the first candidate that passed all
            checks.
        anonymous: call reviewers reviewer-1, reviewer-2, ...; their notes stay as they are.
        max_per_photo: pairs of one photo, the best ones; 0 for all.
        balance: as many pairs of each concept, the best ones.
        pairs_per_shard: two samples each.
        max_pixels: largest width x height of a picture.
        title: of the data card.
    """

    format: str = "parquet"
    require: str = "majority"
    unreviewed: bool = False
    anonymous: bool = False
    max_per_photo: int = 0
    balance: bool = False
    pairs_per_shard: int = 500
    max_pixels: int = DEFAULT_MAX_PIXELS
    title: str = "Minimal image pairs"

    def __post_init__(self) -> None:
        require_one_of("format", self.format, FORMATS)
        require_one_of("require", self.require, REQUIREMENTS)
        if self.max_per_photo < 0:
            raise ValueError(f"max_per_photo={self.max_per_photo}: 0 (all) or more")
        if self.pairs_per_shard < 1:
            raise ValueError(f"pairs_per_shard={self.pairs_per_shard}: at least 1")
        require_max_pixels(self.max_pixels)
        if not self.title.strip():
            raise ValueError("title='': the data card needs one")


@dataclass(frozen=True)
class ExportResult:
    """What was written.

    Attributes:
        out: the folder.
        pairs: how many.
        concepts: pairs by concept.
        editors: pairs by editor.
        left_out: the proposals without a pair, and why.
        damaged: records of candidates that could not be read, whether or not a pair was lost.
    """

    out: Path
    pairs: int
    concepts: Mapping[str, int]
    editors: Mapping[str, int]
    left_out: tuple[NoPair, ...]
    damaged: tuple[str, ...]

    @property
    def reasons(self) -> dict[str, int]:
        """Proposals without a pair, by reason."""
        return dict(sorted(Counter(each.reason for each in self.left_out).items()))


def export(folder: Folder, out: Path, settings: ExportSettings) -> ExportResult:
    """Writes the data set; an earlier export in the same format is replaced.

    Args:
        folder: with proposals, candidates and, but for `unreviewed`, decisions.
        out: made if missing; an empty folder, or an earlier export.
        settings: what and how.

    Raises:
        ValueError: no pair is left, `out` holds something else, or proposals or decisions are
            damaged.
        OSError: the storage failed.
    """
    from hnpretrain.inpaint.card import write_card
    from hnpretrain.inpaint.decisions import read_decisions

    _check_place(folder, out, settings.format)
    proposals = folder.proposals()
    decisions = read_decisions(folder)
    if settings.anonymous:
        names = {name: f"reviewer-{number}" for number, name in enumerate(sorted(decisions), 1)}
        decisions = {
            names[name]: [dataclasses.replace(each, reviewer=names[name]) for each in made]
            for name, made in decisions.items()
        }
    candidates = read_candidates(folder, proposals)
    chosen = select(
        proposals, candidates, judgements(decisions), settings.require, settings.unreviewed
    )
    pairs, left_out = _usable(folder, chosen, settings)
    # The set may be published; where it was made is nobody's business.
    left_out = [dataclasses.replace(e, detail=_without(folder, e.detail)) for e in left_out]
    damaged = tuple(_without(folder, each) for each in candidates.damaged.values())
    result = ExportResult(
        out,
        len(pairs),
        _sorted_counts(pair.proposal.concept for pair in pairs),
        _sorted_counts(pair.candidate.editor for pair in pairs),
        tuple(left_out),
        damaged,
    )
    if not pairs:
        why = ", ".join(f"{count} {reason}" for reason, count in result.reasons.items())
        raise ValueError(
            f"{folder.root}: no pair is left ({why or 'there is no proposal'}); accept some with "
            "`hnpretrain inpaint review`, or set unreviewed=true"
        )
    storage.write_bytes(str(out / MARK), _mark(settings.format))
    storage.remove(str(out / CARD))  # it must not outlive what it tells of
    _write(folder, out, pairs, proposals, settings)
    storage.write_bytes(str(out / ATTRIBUTIONS), _attributions(pairs))
    storage.write_bytes(str(out / LEFT_OUT), _lines(left_out))
    write_card(out / CARD, folder, settings, result, pairs, candidates, decisions)
    return result


def pairs_of(folder: Folder, require: str, unreviewed: bool) -> list[Pair]:
    """The pairs that would be exported, were all of their pictures good; best first.

    Args:
        folder, require, unreviewed: see `ExportSettings`.

    Raises:
        ValueError: proposals or decisions are missing or damaged.
    """
    from hnpretrain.inpaint.decisions import read_decisions

    require_one_of("require", require, REQUIREMENTS)
    proposals = folder.proposals()
    candidates = read_candidates(folder, proposals)
    judged = judgements(read_decisions(folder))
    chosen = select(proposals, candidates, judged, require, unreviewed)
    return [each for each in chosen if isinstance(each, Pair)]


def _check_place(folder: Folder, out: Path, wanted: str) -> None:
    if storage.is_url(os.fspath(out)):
        raise ValueError(f"{out}: must be a local folder; copy it to the store afterwards")
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; name a folder")
    if out.resolve() == folder.root.resolve():
        raise ValueError(f"{out} is the folder of the proposals; name another one")
    for name in _OF_OTHER_STEPS:
        if out.resolve().is_relative_to((folder.root / name).resolve()):
            raise ValueError(f"{out} lies in {folder.root / name}, which is of another step")
    # Nothing is replaced that was not made here; a mark of the other format is none either, since
    # its files would stay.
    if out.is_dir() and any(out.iterdir()):
        try:
            mark = (out / MARK).read_bytes()
        except FileNotFoundError:
            mark = b""
        if mark != _mark(wanted):
            raise ValueError(
                f"{out} is not empty, and no earlier export with format={wanted}; name another "
                "folder, or empty this one"
            )


def _mark(wanted: str) -> bytes:
    return json.dumps({"made_by": _MADE_BY, "format": wanted}).encode() + b"\n"


def _usable(
    folder: Folder, chosen: Iterable[Pair | NoPair], settings: ExportSettings
) -> tuple[list[Pair], list[NoPair]]:
    """The pairs whose pictures are good, as many as wanted; the others with their reasons."""
    pairs: list[Pair] = []
    left_out: list[NoPair] = []
    of_photo: Counter[str] = Counter()
    for each in chosen:
        if isinstance(each, NoPair):
            left_out.append(each)
            continue
        name, key = each.proposal.id, each.proposal.key
        if settings.max_per_photo and of_photo[key] == settings.max_per_photo:
            detail = f"max_per_photo={settings.max_per_photo}"
            left_out.append(NoPair(name, "more_of_the_photo", detail))
            continue
        try:
            check_pictures(read_pictures(folder, each), settings.max_pixels)
        except (ValueError, OSError) as error:
            detail = f"{each.candidate.id}: {error}"
            left_out.append(NoPair(name, "damaged_picture", detail))
            continue
        of_photo[key] += 1
        pairs.append(each)
    return _balanced(pairs, left_out) if settings.balance else (pairs, left_out)


def _balanced(pairs: Sequence[Pair], left_out: list[NoPair]) -> tuple[list[Pair], list[NoPair]]:
    most = min(Counter(pair.proposal.concept for pair in pairs).values(), default=0)
    of_concept: Counter[str] = Counter()
    kept = []
    for pair in pairs:
        of_concept[pair.proposal.concept] += 1
        if of_concept[pair.proposal.concept] <= most:
            kept.append(pair)
        else:
            detail = f"{most} of each concept are taken"
            left_out.append(NoPair(pair.proposal.id, "balance", detail))
    return kept, left_out


def _write(
    folder: Folder,
    out: Path,
    pairs: Sequence[Pair],
    proposals: Sequence[Proposal],
    settings: ExportSettings,
) -> None:
    def read(pair: Pair) -> Pictures:
        return read_pictures(folder, pair)

    if settings.format == "shards":
        from hnpretrain.inpaint.pair_shards import write_shards

        source = folder.root.resolve().name
        write_shards(out, pairs, read, settings.pairs_per_shard, settings.max_pixels, source)
        return
    from hnpretrain.inpaint.pair_rows import DETAILS, NEW_DETAILS, row_of
    from hnpretrain.shards.pairs_parquet import write_pairs

    captions = _captions(proposals)
    rows = (
        row_of(number, pair, read(pair), captions[pair.proposal.key], settings.max_pixels)
        for number, pair in enumerate(pairs)
    )
    write_pairs(str(out / PARQUET), rows, DETAILS, NEW_DETAILS)


def _captions(proposals: Sequence[Proposal]) -> dict[str, tuple[str, ...]]:
    """All that are known of each photo, by key: the source's list, or those of its proposals."""
    found: dict[str, dict[str, None]] = {}
    for proposal in proposals:
        own = found.setdefault(proposal.key, {})
        listed = proposal.meta.get("captions")
        for caption in listed if isinstance(listed, list) else ():
            if isinstance(caption, str):
                own[caption] = None
        own[proposal.source_caption] = None
    return {key: tuple(own) for key, own in found.items()}


def _attributions(pairs: Sequence[Pair]) -> bytes:
    lines = ["\t".join(("key", "license", "license_url", "page", "author"))]
    photos = {pair.proposal.key: pair.proposal.meta for pair in pairs}
    for key, meta in sorted(photos.items()):
        licence = Licence.of(meta)
        lines.append("\t".join((key, licence.name, licence.url, licence.page, licence.author)))
    return "".join(f"{line}\n" for line in lines).encode(errors="backslashreplace")


def _lines(left_out: Iterable[NoPair]) -> bytes:
    return b"".join(json.dumps(dataclasses.asdict(e)).encode() + b"\n" for e in left_out)


def _without(folder: Folder, text: str) -> str:
    for root in (folder.root.resolve(), folder.root):
        text = text.replace(f"{root}{os.sep}", "")
    return text


def _sorted_counts(values: Iterator[str]) -> dict[str, int]:
    return dict(sorted(Counter(values).items()))
