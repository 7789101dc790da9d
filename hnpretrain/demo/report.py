"""What the demo found: the comparison of its runs, and the HTML report with pictures.

The report is one file with everything inlined, so that it can be mailed.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import markupsafe
import matplotlib.figure

from hnpretrain.data import plan
from hnpretrain.data.mixture import read_mixture
from hnpretrain.data.streams import ShardSet, StoredSample
from hnpretrain.shards.schema import Negative, Sample
from hnpretrain.shards.tar import decode_sample
from hnpretrain.train.log import read_log

SCORES = ("pair", "group")
_SAMPLES_SHOWN = 8
_SMOOTHING = 20  # log lines averaged in the curves


@dataclass(frozen=True)
class Run:
    """One of the trainings that are compared.

    Attributes:
        name: its folder in the demo's.
        title: what the table calls it.
        negatives: K.
    """

    name: str
    title: str
    negatives: int


@dataclass(frozen=True)
class Comparison:
    """The evaluations of all runs.

    Attributes:
        runs: in the order of the table.
        concepts: in the order of the table.
        results: run name -> score name (`pair/color`, `pair`, ...) -> the evaluation's entry.
    """

    runs: tuple[Run, ...]
    concepts: tuple[str, ...]
    results: dict[str, dict[str, dict[str, Any]]]

    scores = SCORES

    @classmethod
    def read(cls, folder: Path, runs: Sequence[Run], concepts: Sequence[str]) -> Comparison:
        """Reads what `hnpretrain eval --json` wrote for each run."""
        results = {}
        for run in runs:
            (result,) = json.loads((folder / f"{run.name}.json").read_text())["results"]
            results[run.name] = {score["name"]: score for score in result["scores"]}
        return cls(tuple(runs), tuple(concepts), results)

    def score(self, score: str, concept: str, run: Run) -> dict[str, Any]:
        """One entry; concept `all` is the average over all pairs."""
        return self.results[run.name][score if concept == "all" else f"{score}/{concept}"]

    def chance(self, score: str) -> float:
        return self.score(score, "all", self.runs[0])["chance"]

    def cell(self, score: str, concept: str, run: Run) -> str:
        entry = self.score(score, concept, run)
        return f"{100 * entry['value']:.1f} +- {100 * entry['standard_error']:.1f}"

    def to_json(self, seed: int) -> dict[str, Any]:
        """run -> score -> concept -> value."""
        values = {
            run.name: {
                score: {
                    concept: self.score(score, concept, run)["value"]
                    for concept in (*self.concepts, "all")
                }
                for score in SCORES
            }
            for run in self.runs
        }
        return {"seed": seed, "accuracy": values}


def write_report(folder: Path, shards: Path, comparison: Comparison, minutes: float) -> Path:
    """Writes report.html: samples with their negatives, loss curves, accuracy by concept."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("hnpretrain.demo", "."), autoescape=True
    )
    logs = {run: read_log(folder / run.name, "step") for run in comparison.runs}
    page = environment.get_template("report.html.j2").render(
        comparison=comparison,
        minutes=minutes,
        samples=[_describe(sample) for sample in _first_samples(shards)],
        loss_curves=_curves(logs),
        accuracy_bars=_bars(comparison),
        final={run: log[-1] for run, log in logs.items()},
    )
    path = folder / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


def _first_samples(shards: Path) -> list[Sample]:
    mixture = read_mixture({str(shards): 1})
    _, entry = mixture.shard(0)
    first = plan.Run(shard=0, start=0, stop=min(_SAMPLES_SHOWN, entry.samples), passage=0)
    raw = ShardSet(mixture).read(first)
    return [decode_sample(s.data).sample() for s in raw if isinstance(s, StoredSample)]


def _describe(sample: Sample) -> dict[str, Any]:
    mime = "jpeg" if sample.extension in ("jpg", "jpeg") else sample.extension
    captions = [
        {
            "text": caption.text,
            "negatives": [
                {"concept": negative.concept, "marked": _mark(caption.text, negative)}
                for negative in caption.negatives
            ],
        }
        for caption in sample.captions[:2]
    ]
    picture = f"data:image/{mime};base64,{base64.b64encode(sample.image).decode()}"
    return {"key": sample.key, "picture": picture, "captions": captions}


def _mark(positive: str, negative: Negative) -> markupsafe.Markup:
    """The negative with its changed words in <mark>: what is not shared with the positive."""
    words, others = negative.text.split(), positive.split()
    start = 0
    while start < min(len(words), len(others)) and words[start] == others[start]:
        start += 1
    end = 0
    while end < min(len(words), len(others)) - start and words[-1 - end] == others[-1 - end]:
        end += 1
    stop = len(words) - end
    escape = markupsafe.escape
    before, changed, after = (" ".join(w) for w in (words[:start], words[start:stop], words[stop:]))
    return escape(before) + markupsafe.Markup(" <mark>%s</mark> ") % changed + escape(after)


def _curves(logs: dict[Run, list[dict[str, Any]]]) -> markupsafe.Markup:
    figure = _figure()
    axes = figure.subplots(1, 2)
    for run, lines in logs.items():
        steps = [line["global_step"] for line in lines]
        axes[0].plot(steps, _smooth([line["loss"] for line in lines]), label=run.title)
        if run.negatives:
            accuracy = _smooth([line["negative_accuracy"] for line in lines])
            axes[1].plot(steps, accuracy, label=run.title, color="C1")
    axes[0].set(title="training loss (with negatives it has more terms)", xlabel="step")
    axes[1].set(title="share of negatives scored below their caption", xlabel="step", ylim=(0.4, 1))
    for axis in axes:
        axis.grid(alpha=0.3)
        axis.legend()
    return _svg(figure)


def _bars(comparison: Comparison) -> markupsafe.Markup:
    figure = _figure()
    axes = figure.subplots(1, len(SCORES))
    groups = (*comparison.concepts, "all")
    width = 0.8 / len(comparison.runs)
    for axis, score in zip(axes, SCORES, strict=True):
        for number, run in enumerate(comparison.runs):
            entries = [comparison.score(score, concept, run) for concept in groups]
            axis.bar(
                [place + number * width for place in range(len(groups))],
                [100 * entry["value"] for entry in entries],
                width,
                yerr=[100 * entry["standard_error"] for entry in entries],
                label=run.title,
            )
        axis.axhline(100 * comparison.chance(score), color="black", linestyle=":", label="chance")
        centers = [place + width * (len(comparison.runs) - 1) / 2 for place in range(len(groups))]
        axis.set_xticks(centers, groups)
        axis.set(title=f"{score} accuracy, percent", ylim=(0, 100))
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return _svg(figure)


def _smooth(values: list[float]) -> list[float]:
    window: list[float] = []
    smooth = []
    for value in values:
        window = [*window[1 - _SMOOTHING :], value]
        smooth.append(sum(window) / len(window))
    return smooth


def _figure() -> Any:
    return matplotlib.figure.Figure(figsize=(11, 3.6), layout="constrained")


def _svg(figure: Any) -> markupsafe.Markup:
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "hnpretrain"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return markupsafe.Markup(text[text.index("<svg") :])
