"""What an evaluation found, and its JSON file.

The file is `{"format": 2, "results": [...], "withheld": [...]}`. Each result has CLIP_benchmark's
fields (dataset, model, pretrained, task, metrics, language; github.com/LAION-AI/CLIP_benchmark), so
that it can stand in a table beside theirs, and our own: every score with its count, standard error,
chance, ties and averaging rule, the data's path, notes, how many items were left out, the margin of
every answer, which paired tests need, and the items that the model got most wrong, with pictures.
So a page and a comparison can be made of such files alone, by whoever has no model and no images.
"""

from __future__ import annotations

import base64
import io
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from PIL import Image
from torch import Tensor

from hnpretrain.eval.accuracy import Accuracy
from hnpretrain.eval.images import ImageSource
from hnpretrain.eval.items import Item
from hnpretrain.shards import storage

T = TypeVar("T")

FORMAT = 2

_WORST = 12
_PICTURE_SIDE = 192
_LARGEST = 1e300  # of a number that is read
# What may stand in a page: no address to fetch, no script.
_PICTURE = re.compile(r"data:image/jpeg;base64,[A-Za-z0-9+/]+={0,2}")


@dataclass(frozen=True)
class Score:
    """One number of a benchmark.

    Attributes:
        name: unique in its result; the key in `metrics`.
        accuracy: value in [0, 1], count and standard error.
        chance: what independent random scores get on average, in [0, 1].
        average: the averaging rule, in words.
        ties: answers in which what is right and what is wrong score the same; they are wrong.
        dimension: whose group it is a score of; empty for a score of all items.
    """

    name: str
    accuracy: Accuracy
    chance: float
    average: str
    ties: int = 0
    dimension: str = ""


@dataclass(frozen=True)
class Outcome:
    """The answers behind a score of all items.

    Attributes:
        rows: of `Result.names`, N of them.
        margins: N x A, of A answers each; right if above 0.
    """

    rows: Sequence[int]
    margins: Tensor


@dataclass(frozen=True)
class Result:
    """A benchmark's scores for one model.

    Attributes:
        dataset: the benchmark's name.
        task: CLIP_benchmark's word for the kind of task.
        data: where the items were read.
        scores: in the order in which they are shown.
        notes: what a reader of the numbers must know, one sentence each.
        left_out: items without their image, which the scores do not cover.
        scorer: which gave the scores.
        names: what was asked, in words that do not change with the files' place.
        groups: by dimension, the group of each of `names`, or None.
        outcomes: by the score's name.
        items: those of `names`, where the benchmark has such.
        matrices: the I x C scores of each of `items`, where they are at hand; for the reader.
    """

    dataset: str
    task: str
    data: str
    scores: tuple[Score, ...]
    notes: tuple[str, ...] = ()
    left_out: int = 0
    scorer: str = "cosine"
    names: tuple[str, ...] = ()
    groups: Mapping[str, Sequence[str | None]] = field(default_factory=dict)
    outcomes: Mapping[str, Outcome] = field(default_factory=dict)
    items: tuple[Item, ...] = ()
    matrices: Sequence[Tensor] = ()

    def __getitem__(self, name: str) -> Accuracy:
        """The accuracy of the score of that name."""
        for score in self.scores:
            if score.name == name:
                return score.accuracy
        raise KeyError(f"{self.dataset} has no score {name!r}")


class Withheld(ValueError):
    """Scores that are not told since images are missing or cannot be read.

    Attributes:
        dataset: the benchmark's name.
        reasons: one for each bad image; it names the image.
    """

    def __init__(
        self, dataset: str, what: str, items: int, total: int, reasons: Mapping[Any, str]
    ) -> None:
        self.dataset = dataset
        self.reasons = tuple(reasons.values())
        self._told = (dataset, what, items, total, dict(reasons))
        shown = "; ".join(self.reasons[:3]) + ("; ..." if len(self.reasons) > 3 else "")
        advice = (
            "is this the right image folder?"
            if items == total
            else "give what is missing, or --partial to score the rest and mark it"
        )
        super().__init__(
            f"{dataset}: withheld, {items} of {total} {what} lack their image: {len(self.reasons)} "
            f"are missing or cannot be read ({shown}); {advice}"
        )

    def __reduce__(self) -> tuple[Any, ...]:  # from process to process
        return Withheld, self._told


@dataclass(frozen=True)
class ModelName:
    """What was evaluated, in open_clip's two parts: architecture or folder, and weights."""

    model: str
    pretrained: str

    def __str__(self) -> str:
        return f"{self.model}:{self.pretrained}" if self.pretrained else self.model


def to_json(result: Result, name: ModelName) -> dict[str, Any]:
    """One result as a JSON object; see the module's docstring."""
    return {
        "dataset": result.dataset,
        "model": name.model,
        "pretrained": name.pretrained,
        "task": result.task,
        "metrics": {score.name: score.accuracy.value for score in result.scores},
        "language": "en",
        "scorer": result.scorer,
        "data": result.data,
        "scores": [
            {
                "name": score.name,
                "value": score.accuracy.value,
                "standard_error": score.accuracy.standard_error,
                "count": score.accuracy.count,
                "chance": score.chance,
                "ties": score.ties,
                "average": score.average,
                "dimension": score.dimension,
            }
            for score in result.scores
        ],
        "notes": list(result.notes),
        "left_out": result.left_out,
        "names": list(result.names),
        "groups": {dimension: list(groups) for dimension, groups in result.groups.items()},
        "outcomes": {
            name: {"rows": list(outcome.rows), "margins": outcome.margins.tolist()}
            for name, outcome in result.outcomes.items()
        },
        "worst": list(_worst(result)),
    }


def _worst(result: Result) -> Iterator[dict[str, Any]]:
    """The wrong items of the lowest margins of the first rule, the worst first."""
    if not result.items or not result.outcomes:
        return
    outcome = next(iter(result.outcomes.values()))
    margins = outcome.margins.amin(dim=1).tolist()
    wrong = sorted((margin, row) for margin, row in zip(margins, outcome.rows, strict=True))
    for margin, row in wrong[:_WORST]:
        if margin > 0:
            return
        item = result.items[row]
        told: dict[str, Any] = {
            "name": item.name,
            "groups": dict(item.groups),
            "captions": list(item.captions),
            "margin": margin,
            "pictures": [_picture(image) for image in item.images],
        }
        if result.matrices:
            told["scores"] = result.matrices[row].tolist()
        yield told


def _picture(image: ImageSource) -> str | None:
    """A small JPEG as a data URI, or None if the image cannot be read."""
    try:
        picture = image.open()
    except ValueError:
        return None
    picture.thumbnail((_PICTURE_SIDE, _PICTURE_SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def write_json(
    path: Path, results: Sequence[Result], withheld: Sequence[Withheld], name: ModelName
) -> None:
    """Writes all results to one file, which appears whole or not at all."""
    run = Run.of(path, results, withheld, name)
    value = {"format": FORMAT, "results": run.results, "withheld": run.withheld}
    text = json.dumps(value, allow_nan=False) + "\n"
    storage.write_bytes(str(path), text.encode())


Key = tuple[str, str, int]
"""Dataset, task, and which of the results of these two: a run may have a benchmark twice."""


@dataclass(frozen=True)
class Run:
    """The evaluation of one model, as its JSON file tells it.

    Attributes:
        path: of the file.
        model: what was evaluated; the file's name if all scores were withheld.
        results: as `to_json` makes them; checked, if they were read.
        withheld: `dataset` and `reasons` of each.
    """

    path: Path
    model: str
    results: list[dict[str, Any]]
    withheld: list[dict[str, Any]]

    @classmethod
    def of(
        cls,
        path: Path,
        results: Sequence[Result],
        withheld: Sequence[Withheld],
        name: ModelName,
    ) -> Run:
        return cls(
            path,
            str(name),
            [to_json(result, name) for result in results],
            [{"dataset": each.dataset, "reasons": list(each.reasons)} for each in withheld],
        )

    @property
    def title(self) -> str:
        """The model, and its scorer if that is not its own."""
        scorers = {result["scorer"]: None for result in self.results}
        others = ", ".join(scorer for scorer in scorers if scorer != "cosine")
        return f"{self.model} ({others})" if others else self.model

    def by_key(self) -> dict[Key, dict[str, Any]]:
        """The results, each under what another run's result of the same kind stands."""
        found: dict[Key, dict[str, Any]] = {}
        for result in self.results:
            dataset, task = result["dataset"], result["task"]
            number = sum(key[:2] == (dataset, task) for key in found)
            found[dataset, task, number] = result
        return found


def read_json(path: Path) -> Run:
    """What `write_json` wrote.

    Raises:
        ValueError: there is no such file, it is none of these, of another format, or damaged.
    """
    where = str(path)
    try:
        value = json.loads(path.read_bytes(), parse_constant=_refuse)
    except FileNotFoundError as error:
        raise ValueError(f"{where}: no such file") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{where} is not readable JSON: {error}") from error
    if not isinstance(value, dict) or not {"format", "results"} <= value.keys():
        raise ValueError(f"{where} is no results file of hnpretrain eval (its --json writes such)")
    if value["format"] != FORMAT:
        raise ValueError(
            f"{where} has results of format {_brief(value['format'])}, but {FORMAT} is needed: "
            "evaluate again"
        )
    results = _list(value, "results", dict, where)
    withheld = _list(value, "withheld", dict, where)
    models: dict[ModelName, None] = {}
    for number, result in enumerate(results):
        models[_check_result(result, f"{where} result {number}")] = None
    for number, each in enumerate(withheld):
        _field(each, "dataset", str, f"{where} withheld {number}")
        _list(each, "reasons", str, f"{where} withheld {number}")
    if len(models) > 1:
        raise ValueError(
            f"{where} holds results of {len(models)} models ({', '.join(map(str, models))}), but a "
            "run is of one"
        )
    return Run(path, str(next(iter(models), path.name)), results, withheld)


def _check_result(result: dict[str, Any], where: str) -> ModelName:
    for key in ("dataset", "task", "data", "scorer"):
        _field(result, key, str, where)
    where = f"{where} ({_brief(result['dataset'])})"
    _list(result, "notes", str, where)
    _field(result, "left_out", int, where)
    names = _list(result, "names", str, where)
    for number, score in enumerate(_list(result, "scores", dict, where)):
        _check_score(score, f"{where} score {number}")
    for dimension, groups in _field(result, "groups", dict, where).items():
        if not _all(groups, str | None) or len(groups) != len(names):
            raise ValueError(
                f"{where}: groups {_brief(dimension)} must be a list of {len(names)} strings or "
                "nulls, one for each name"
            )
    for rule, outcome in _field(result, "outcomes", dict, where).items():
        place = f"{where} outcome {_brief(rule)}"
        if not isinstance(outcome, dict):
            raise ValueError(f"{place}: an object is needed, got {_brief(outcome)}")
        _check_outcome(outcome, len(names), place)
    for number, item in enumerate(_list(result, "worst", dict, where)):
        _check_worst(item, f"{where} worst item {number}")
    return ModelName(_field(result, "model", str, where), _field(result, "pretrained", str, where))


def _check_score(score: dict[str, Any], where: str) -> None:
    for key in ("name", "average", "dimension"):
        _field(score, key, str, where)
    for key in ("value", "standard_error", "chance"):
        _check_number(_field(score, key, float, where), 0, 1, f"{where}: {key!r}")
    for key in ("count", "ties"):
        _check_number(_field(score, key, int, where), 0, math.inf, f"{where}: {key!r}")


def _check_outcome(outcome: dict[str, Any], names: int, where: str) -> None:
    rows = _list(outcome, "rows", int, where)
    margins = _list(outcome, "margins", list, where)
    if not all(0 <= row < names for row in rows) or len(set(rows)) < len(rows):
        raise ValueError(f"{where}: 'rows' must be numbers of the {names} names, each once")
    answers = len(margins[0]) if margins else 0
    if len(margins) != len(rows) or not answers:
        raise ValueError(
            f"{where}: 'margins' must be a list of answers for each of {len(rows)} rows, at least "
            f"one, got {len(margins)}"
        )
    if not all(len(each) == answers and _all(each, float) for each in margins):
        raise ValueError(f"{where}: 'margins' must be numbers, as many for each row")


def _check_worst(item: dict[str, Any], where: str) -> None:
    _field(item, "name", str, where)
    _field(item, "margin", float, where)
    captions = _list(item, "captions", str, where)
    pictures = _list(item, "pictures", str | None, where)
    if not _all(list(_field(item, "groups", dict, where).values()), str):
        raise ValueError(f"{where}: 'groups' must be strings")
    for picture in pictures:
        if picture is not None and not _PICTURE.fullmatch(picture):
            raise ValueError(f"{where}: a picture is no JPEG data URI, got {_brief(picture)}")
    if "scores" in item:
        rows = _list(item, "scores", list, where)
        if len(rows) != len(pictures) or not all(
            len(row) == len(captions) and _all(row, float) for row in rows
        ):
            raise ValueError(
                f"{where}: 'scores' must be {len(pictures)} x {len(captions)} numbers, of pictures "
                "with captions"
            )


def _is(value: object, kind: Any) -> bool:
    """isinstance as JSON has it: a whole number is a number, true is none, nor is infinity."""
    if isinstance(value, bool):
        return False
    if kind is float:
        return isinstance(value, int | float) and -_LARGEST < value < _LARGEST
    return isinstance(value, kind)


def _all(values: object, kind: Any) -> bool:
    return isinstance(values, list) and all(_is(each, kind) for each in values)


def _field(fields: Mapping[str, Any], key: str, kind: type[T], where: str) -> T:
    value = fields.get(key)
    if not _is(value, kind):
        raise ValueError(f"{where}: {key!r} must be {_NAMES[kind]}, got {_brief(value)}")
    return value  # type: ignore[return-value]


def _list(fields: Mapping[str, Any], key: str, kind: Any, where: str) -> list[Any]:
    values = _field(fields, key, list, where)
    for number, value in enumerate(values):
        if not _is(value, kind):
            raise ValueError(
                f"{where}: {key!r} must hold {_NAMES[kind]} each, got {_brief(value)} at {number}"
            )
    return values


_NAMES: dict[Any, str] = {
    str: "a string",
    int: "a whole number",
    float: "a number",
    list: "a list",
    dict: "an object",
    str | None: "a string or null",
}


def _check_number(value: float, low: float, high: float, where: str) -> None:
    if not low <= value <= high:
        raise ValueError(f"{where} must lie in [{low}, {high}], got {_brief(value)}")


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON number")


def _brief(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."
