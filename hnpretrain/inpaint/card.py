"""The data card of an export: README.md, with the front matter that the Hugging Face hub reads."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import yaml

from hnpretrain.inpaint.decisions import agreement, standing
from hnpretrain.inpaint.folder import Folder
from hnpretrain.inpaint.licences import NOT_STATED, Licence
from hnpretrain.inpaint.records import Decision
from hnpretrain.inpaint.selection import Candidates, Pair
from hnpretrain.shards import storage

if TYPE_CHECKING:
    from hnpretrain.inpaint.export import ExportResult, ExportSettings

# The hub's own classes of size.
_SIZES = (
    (1_000, "n<1K"),
    (10_000, "1K<n<10K"),
    (100_000, "10K<n<100K"),
    (1_000_000, "100K<n<1M"),
)
_LARGER = "n>1M"
_REQUIREMENTS = {"any": "one", "majority": "more than half", "all": "all"}
# Of a cell; a table is read by people.
_CELL_LENGTH = 400
_NOTES_SHOWN = 20


def write_card(
    path: Path,
    folder: Folder,
    settings: ExportSettings,
    result: ExportResult,
    pairs: Sequence[Pair],
    candidates: Candidates,
    decisions: Mapping[str, Sequence[Decision]],
) -> None:
    """Writes the card, whole.

    Args:
        path: of the card.
        folder: of the proposals.
        settings: of the export.
        result: what was written.
        pairs: all of them.
        candidates: of the folder.
        decisions: by reviewer, under the name that may be told.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("hnpretrain.inpaint", "."),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # it is Markdown; `cell` escapes what may come from anywhere
    )
    environment.filters["cell"] = _cell
    found = [candidate for made in candidates.good.values() for candidate in made]
    agreed = agreement(decisions)
    reviewed = sum(bool(pair.workers) for pair in pairs)
    card = environment.get_template("card.md.j2").render(
        front_matter=_front_matter(settings, pairs),
        title=_cell(settings.title),
        format=settings.format,
        pairs=len(pairs),
        photos=len({pair.proposal.key for pair in pairs}),
        concepts=[f"{name}: {count}" for name, count in result.concepts.items()],
        editors=list(result.editors),
        table=_table(pairs, result),
        reviewed=reviewed,
        unreviewed=len(pairs) - reviewed,
        requirement=_REQUIREMENTS[settings.require],
        version=metadata.version("hnpretrain"),
        proposals=len(candidates.good),
        candidates=len(found),
        made_by=_made_by(candidates, result),
        sections=_sections(folder, candidates, result, decisions),
        reviewers=_reviewers(decisions),
        shared=agreed.proposals,
        unanimous=agreed.unanimous,
        raw="" if agreed.raw is None else f"{agreed.raw:.0%}",
        agreements=[
            (
                " and ".join(each.reviewers),
                each.proposals,
                f"{each.agreed} ({each.raw:.0%})",
                "undefined" if each.kappa is None else f"{each.kappa:.2f}",
            )
            for each in agreed.pairs
        ],
        licences=_licences(pairs),
    )
    storage.write_bytes(str(path), card.encode(errors="backslashreplace"))


def _cell(value: object) -> str:
    """A text that stays in its place in Markdown: no column, line or tag of its own."""
    text = " ".join(str(value).split())
    if len(text) > _CELL_LENGTH:
        text = f"{text[:_CELL_LENGTH]}..."
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")


def _front_matter(settings: ExportSettings, pairs: Sequence[Pair]) -> str:
    if settings.format == "parquet":
        # It is a benchmark, so the hub shows it as a test set.
        files: dict[str, Any] = {"split": "test", "path": "pairs.parquet"}
    else:
        files = {"split": "train", "path": "pairs-*.tar"}
    value = {
        "pretty_name": settings.title,
        "language": ["en"],
        "license": "other",  # each photo has its own
        "task_categories": ["image-to-text", "text-to-image"],
        "tags": ["minimal-pairs", "inpainting", "compositionality"],
        "size_categories": [next((s for n, s in _SIZES if len(pairs) < n), _LARGER)],
        "configs": [{"config_name": "default", "data_files": [files]}],
    }
    return yaml.safe_dump(value, sort_keys=False)


def _table(pairs: Sequence[Pair], result: ExportResult) -> list[dict[str, Any]]:
    counts = Counter((pair.proposal.concept, pair.candidate.editor) for pair in pairs)
    rows = [
        {
            "concept": concept,
            "counts": [counts[concept, editor] for editor in result.editors],
            "all": total,
        }
        for concept, total in result.concepts.items()
    ]
    return [*rows, {"concept": "all", "counts": [*result.editors.values()], "all": result.pairs}]


def _made_by(candidates: Candidates, result: ExportResult) -> list[dict[str, Any]]:
    counts: Counter[str] = Counter()
    settings: dict[str, dict[str, None]] = {}
    for made in candidates.good.values():
        for candidate in made:
            counts[candidate.editor] += 1
            told = json.dumps(dict(candidate.settings), sort_keys=True)
            settings.setdefault(candidate.editor, {})[told] = None
    return [
        {
            "editor": editor,
            "candidates": counts[editor],
            "pairs": result.editors.get(editor, 0),
            "settings": sorted(settings[editor]),
        }
        for editor in sorted(counts)
    ]


def _sections(
    folder: Folder,
    candidates: Candidates,
    result: ExportResult,
    decisions: Mapping[str, Sequence[Decision]],
) -> Iterator[dict[str, Any]]:
    reasons = [*_by_count(Counter(_proposing_reasons(folder)))]
    yield _section("Edits that were not proposed", ("reason", "edits"), reasons)
    yield _section(
        "Candidates that an editor could not make",
        ("editor", "reason", "candidates"),
        [(*key, count) for key, count in _by_count(candidates.cannot)],
    )
    yield _section(
        "Candidates that failed a check",
        ("check", "editor", "failed", "of"),
        list(_failed_checks(candidates)),
    )
    notes = Counter(
        decision.note.strip() or "(no note)"
        for made in decisions.values()
        for decision in standing(made).values()
        if decision.verdict == "reject"
    )
    yield _section("Rejected by people", ("note", "proposals"), _by_count(notes)[:_NOTES_SHOWN])
    yield _section(
        "Proposals that gave no pair (all of them: `left_out.jsonl`)",
        ("reason", "proposals"),
        _by_count(Counter(result.reasons)),
    )
    yield _section(
        "Records of candidates that are damaged", ("record",), [(each,) for each in result.damaged]
    )


def _section(title: str, heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> dict[str, Any]:
    return {"title": title, "heads": heads, "rows": rows}


def _proposing_reasons(folder: Folder) -> Iterator[str]:
    try:
        lines = folder.left_out_file.read_bytes().splitlines()
    except FileNotFoundError:
        return
    for line in lines:
        try:
            yield str(json.loads(line)["reason"])
        except (ValueError, TypeError, KeyError):
            yield "(a damaged line of left_out.jsonl)"


def _failed_checks(candidates: Candidates) -> Iterator[tuple[str, str, int, int]]:
    """Check, editor, candidates that failed, candidates that were measured."""
    measured: Counter[tuple[str, str]] = Counter()
    failed: Counter[tuple[str, str]] = Counter()
    for made in candidates.good.values():
        for candidate in made:
            for name, check in candidate.checks.items():
                measured[name, candidate.editor] += 1
                failed[name, candidate.editor] += not check.passed
    for name, editor in sorted(measured):
        if failed[name, editor]:
            yield name, editor, failed[name, editor], measured[name, editor]


def _reviewers(decisions: Mapping[str, Sequence[Decision]]) -> list[tuple[str, int, int, int]]:
    rows = []
    for reviewer, made in decisions.items():
        verdicts = Counter(decision.verdict for decision in standing(made).values())
        if verdicts:
            rows.append((reviewer, verdicts["accept"], verdicts["reject"], verdicts["skip"]))
    return rows


def _licences(pairs: Sequence[Pair]) -> list[tuple[str, str, int]]:
    photos = {pair.proposal.key: Licence.of(pair.proposal.meta) for pair in pairs}
    counts = Counter(
        (licence.name or NOT_STATED, licence.url or NOT_STATED) for licence in photos.values()
    )
    return [(name, url, count) for (name, url), count in _by_count(counts)]


def _by_count(counts: Counter[Any]) -> list[tuple[Any, int]]:
    """The most first; equals by name."""
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))
