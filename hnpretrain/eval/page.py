"""Runs as a page: plots, tables, paired differences, and the items that went most wrong.

It is one file with everything inlined, so that it can be mailed; it needs no script and fetches
nothing.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import markupsafe
import matplotlib
import matplotlib.figure

from hnpretrain.eval import compare
from hnpretrain.eval.results import Key, ModelName, Result, Run, Withheld
from hnpretrain.shards import storage

# Okabe and Ito's colours, which the colour-blind can tell apart.
_COLORS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#8c8c8c")
_NORMAL_95 = 1.96
_PANELS_IN_LINE = 4
_ROWS_PLOTTED = 60  # of a panel; a data set may have a group for each of a thousand classes
_LABEL_LENGTH = 32
_REASONS_SHOWN = 10


def write_html(
    path: Path, results: Sequence[Result], withheld: Sequence[Withheld], name: ModelName
) -> None:
    """The page of one run; the file appears whole or not at all."""
    write_comparison(path, [Run.of(path, results, withheld, name)])


def write_comparison(path: Path, runs: Sequence[Run]) -> None:
    """The page of runs side by side, each compared with the first.

    Raises:
        ValueError: of several runs, a file's scores are not those of its answers.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("hnpretrain.eval", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    comparisons = compare.compare_all(runs) if len(runs) > 1 else []
    shown = [
        _Shown(compare.letter(number), _COLORS[number % len(_COLORS)], run)
        for number, run in enumerate(runs)
    ]
    keys = dict.fromkeys(key for run in runs for key in run.by_key())
    page = environment.get_template("page.html.j2").render(
        runs=shown,
        benchmarks=[_benchmark(key, shown, comparisons) for key in keys],
        skipped=[
            f"{letter} with {compare.letter(0)}: {reason}"
            for letter, comparison in _lettered(comparisons)
            for reason in comparison.skipped
        ],
        rules=compare.rules(comparisons) if comparisons else "",
        told_p=compare.told_p,
        reasons_shown=_REASONS_SHOWN,
    )
    storage.write_bytes(str(path), page.encode())


@dataclass(frozen=True, eq=False)
class _Shown:
    """A run, and the letter and colour that it has on the page."""

    letter: str
    color: str
    run: Run


def _lettered(comparisons: Sequence[compare.Comparison]) -> list[tuple[str, compare.Comparison]]:
    return [(compare.letter(number), each) for number, each in enumerate(comparisons, start=1)]


def _benchmark(
    key: Key, runs: Sequence[_Shown], comparisons: Sequence[compare.Comparison]
) -> dict[str, Any]:
    """What the template needs of a benchmark."""
    of_runs = {run: result for run in runs if (result := run.run.by_key().get(key)) is not None}
    scores = _scores(of_runs)
    return {
        "title": compare.title(key),
        "results": of_runs,
        "rows": [_row(name, scores) for name in _names(scores)],
        "plot": _plot(scores, compare.title(key)),
        "is_cut": len(_labels(_panels(_names(scores)))) > _ROWS_PLOTTED,
        "paired": [
            (letter, paired)
            for letter, comparison in _lettered(comparisons)
            for paired in comparison.benchmarks
            if paired.key == key
        ],
    }


Scores = Mapping[_Shown, Mapping[str, dict[str, Any]]]
"""Of each run, the scores by name."""


def _scores(of_runs: Mapping[_Shown, Mapping[str, Any]]) -> Scores:
    return {
        run: {score["name"]: score for score in result["scores"]} for run, result in of_runs.items()
    }


def _names(scores: Scores) -> list[str]:
    """All scores, in the first run's order."""
    return list(dict.fromkeys(name for each in scores.values() for name in each))


def _row(name: str, scores: Scores) -> dict[str, Any]:
    """A line of the table; what the runs have in common is told once."""
    of_runs = [each.get(name) for each in scores.values()]
    there = [score for score in of_runs if score is not None]

    def told(write: Callable[[dict[str, Any]], str]) -> str:
        texts = list(map(write, there))
        return " / ".join(texts if len(set(texts)) > 1 else texts[:1])

    return {
        "name": name,
        "is_head": "/" not in name,
        "count": told(lambda score: str(score["count"])),
        "chance": told(lambda score: f"{100 * score['chance']:.2f}"),
        "ties": told(lambda score: str(score["ties"])),
        "average": told(lambda score: score["average"]),
        "values": of_runs,
    }


@dataclass(frozen=True)
class _Panel:
    """Scores that are drawn in one plot: those of a rule.

    Attributes:
        rows: a label and the score's name.
    """

    title: str
    rows: list[tuple[str, str]]


def _panels(names: Sequence[str]) -> list[_Panel]:
    """The rules' panels; one panel of all where no rule has groups."""
    rules: dict[str, list[tuple[str, str]]] = {}
    for name in names:
        rule, _, group = name.partition("/")
        rules.setdefault(rule, []).append((group or "all", name))
    if all(len(rows) == 1 for rows in rules.values()):
        return [_Panel("", [(name, name) for name in names])]
    return [_Panel(rule, rows) for rule, rows in rules.items()]


def _labels(panels: Sequence[_Panel]) -> list[str]:
    return list(dict.fromkeys(label for panel in panels for label, _ in panel.rows))


def _plot(scores: Scores, title: str) -> markupsafe.Markup:
    """Bars of all runs by score, with 95 % intervals and chance."""
    panels = _panels(_names(scores))
    labels = _labels(panels)[:_ROWS_PLOTTED]
    columns = min(len(panels), _PANELS_IN_LINE)
    lines = -(-len(panels) // columns)
    height = lines * (0.7 + len(labels) * (0.12 + 0.13 * len(scores))) + 0.4
    # Names are no formulas, whatever dollars they hold.
    with matplotlib.rc_context({"svg.hashsalt": "hnpretrain", "text.parse_math": False}):
        figure = matplotlib.figure.Figure(figsize=(11, height), layout="constrained")
        grid = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).flatten()
        for axes, panel in zip(grid, panels, strict=False):
            _draw(axes, panel, labels, scores)
        for axes in grid[len(panels) :]:
            axes.set_visible(False)
        handles, told = grid[0].get_legend_handles_labels()
        figure.legend(handles, told, loc="outside lower center", ncols=4, frameon=False)
        return _svg(figure, title)


def _draw(axes: Any, panel: _Panel, labels: Sequence[str], scores: Scores) -> None:
    place_of = {label: place for place, label in enumerate(labels)}
    rows = [(place_of[label], name) for label, name in panel.rows if label in place_of]
    thickness = 0.8 / len(scores)
    for number, (run, of_run) in enumerate(scores.items()):
        drawn = [(place, of_run[name]) for place, name in rows if name in of_run]
        axes.barh(
            [place - 0.4 + (number + 0.5) * thickness for place, _ in drawn],
            [100 * score["value"] for _, score in drawn],
            thickness,
            xerr=[100 * _NORMAL_95 * score["standard_error"] for _, score in drawn],
            error_kw={"elinewidth": 0.9, "ecolor": "#333333"},
            color=run.color,
            label=run.letter,
        )
    chances = [
        (place, 100 * chance)
        for place, name in rows
        for chance in {of_run[name]["chance"] for of_run in scores.values() if name in of_run}
    ]
    axes.vlines(
        [chance for _, chance in chances],
        [place - 0.5 for place, _ in chances],
        [place + 0.5 for place, _ in chances],
        colors="#c00000",
        linestyles=(0, (4, 2)),
        linewidth=1.3,
        label="chance",
    )
    axes.set_title(_short(panel.title), fontsize=10)
    axes.set_yticks(range(len(labels)), [_short(label) for label in labels], fontsize=9)
    axes.set(xlim=(0, 100), ylim=(len(labels) - 0.5, -0.5))
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", labelsize=8, labelbottom=True)
    axes.set_axisbelow(True)
    axes.grid(axis="x", alpha=0.3)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)


def _short(label: str) -> str:
    """A label of one line that leaves room for the plot."""
    line = " ".join(label.split())
    return line if len(line) <= _LABEL_LENGTH else f"{line[: _LABEL_LENGTH - 3]}..."


def _svg(figure: Any, title: str) -> markupsafe.Markup:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    inner = text[text.index("<svg") + len("<svg") :]
    label = markupsafe.escape(f"scores of {title}")
    # What matplotlib writes is escaped; of the rest, only the label is not ours.
    return markupsafe.Markup('<svg role="img" aria-label="%s"') % label + markupsafe.Markup(inner)
