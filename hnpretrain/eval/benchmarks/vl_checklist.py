"""VL-CheckList (Zhao et al. 2022, arXiv 2207.00221): a caption against one with a word replaced.

The repository's `data` folder: 56 files in Object, Attribute and Relation, each a list `[[image,
{"POS": [caption], "NEG": [caption]}], ...]`; of each list the first caption counts. The images lie
in the folders `vg` (with VG_100K and VG_100K_2; VAW's are the same photos), `swig` and `hake`.

Averages are the authors' (their radar.py): each of the 13 kinds, such as `acc/object-large`, is the
mean of its data sets, and a data set in it the mean of its files. As in papers that report it,
`acc/object`, `acc/attribute` and `acc/relation` are the means of their kinds, and
`acc/aspect-macro` is the mean of these three.

The authors' code passes over images that are not there, and with its sample settings scores the
first 1,000 items of a file. Here all count, and a missing image is told.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

from hnpretrain.eval.accuracy import Accuracy
from hnpretrain.eval.benchmarks import reading
from hnpretrain.eval.benchmarks.base import About, Benchmark, By, Selection
from hnpretrain.eval.encode import Encoder
from hnpretrain.eval.images import ImageSource
from hnpretrain.eval.items import Item, choose_caption
from hnpretrain.eval.results import Result, Score
from hnpretrain.eval.scorers import Scorer

DataSets = dict[str, tuple[str, ...]]
"""The files of a kind, without suffix, by the data set that they are made of."""


def _object(facet: str, kind: str) -> DataSets:
    folder, word = f"Object/{facet}", facet.lower()
    return {
        "vg": tuple(f"{folder}/vg_{word}/vg_{end}_{kind}" for end in ("obj", "subj")),
        "swig": tuple(
            f"{folder}/swig_{word}/swig_{role}/swig_{role}_{kind}"
            for role in ("agent", "destination", "item", "tool")
        ),
        "hake": (f"{folder}/hake_{word}/hake_obj_{kind}",),
    }


ASPECTS: dict[str, dict[str, DataSets]] = {
    "object": {
        **{f"object-{kind}": _object("Size", kind) for kind in ("large", "medium", "small")},
        **{f"object-{kind}": _object("Location", kind) for kind in ("center", "mid", "margin")},
    },
    "attribute": {
        f"attribute-{kind}": {"vg": (f"Attribute/vg/{kind}",), "vaw": (f"Attribute/vaw/{kind}",)}
        for kind in ("color", "material", "size", "state", "action")
    },
    "relation": {
        "relation-action": {
            "vg": ("Relation/vg/action",),
            "swig": ("Relation/swig_action",),
            "hake": ("Relation/hake_action",),
        },
        "relation-spatial": {"vg": ("Relation/vg/spatial",)},
    },
}

_PHOTOS = {"vg": "vg", "vaw": "vg", "swig": "swig", "hake": "hake"}


def read(data: Path, images: Path | None) -> Iterator[Item]:
    folder = reading.require_folder(images, "vl_checklist")
    places = {
        stem: (aspect, kind, folder / _PHOTOS[data_set])
        for aspect, kinds in ASPECTS.items()
        for kind, data_sets in kinds.items()
        for data_set, stems in data_sets.items()
        for stem in stems
    }
    for stem, path in reading.files(data, places, "vl_checklist").items():
        aspect, kind, photos = places[stem]
        groups = {"aspect": aspect, "kind": kind, "file": stem}
        for number, (image, captions) in enumerate(_read_file(path)):
            source = ImageSource.file(photos / image)
            yield Item(f"{stem} {number}", (source,), captions, groups)


def _read_file(path: Path) -> Iterator[tuple[str, tuple[str, str]]]:
    """Each item's image, and its right and its wrong caption."""
    for where, value in reading.entries(path):
        fields = reading.row(value, ("image", "captions"), where)
        captions = reading.mapping(fields["captions"], f"{where} captions")
        right, wrong = (_first(captions, key, where) for key in ("POS", "NEG"))
        yield reading.text(fields, "image", where), (right, wrong)


def _first(fields: reading.Fields, key: str, where: str) -> str:
    captions = reading.listing(fields, key, where)
    if not captions or not isinstance(captions[0], str):
        raise ValueError(f"{where}: {key!r} must start with a caption, got {str(captions)[:60]}")
    return captions[0]


@dataclass(frozen=True)
class _Checklist:
    """The selection whose scores of files are averaged as the authors do."""

    selection: Selection

    @property
    def about(self) -> About:
        return self.selection.about

    def load(self, data: Path, images: Path | None, partial: bool) -> Benchmark:
        return _Loaded(self.selection.load(data, images, partial))


@dataclass(frozen=True)
class _Loaded:
    benchmark: Benchmark

    @property
    def name(self) -> str:
        return self.benchmark.name

    def run(self, encoder: Encoder, scorer: Scorer) -> Result:
        result = self.benchmark.run(encoder, scorer)
        return replace(result, scores=tuple(_averaged(result.scores)))


def _averaged(scores: Iterable[Score]) -> Iterator[Score]:
    """The same with the means in the place of the files' scores."""
    for rule, own in groupby(scores, key=lambda score: score.name.partition("/")[0]):
        by_file: dict[str, Score] = {}
        for score in own:
            if score.dimension == "file":
                by_file[score.name.removeprefix(f"{rule}/")] = score
            else:
                yield score
        yield from _means(rule, by_file)


def _means(rule: str, by_file: dict[str, Score]) -> Iterator[Score]:
    """Of kinds, of aspects and of all, leaving out what has no score."""
    aspects: list[Score] = []
    for aspect, kinds in ASPECTS.items():
        of_kinds = [
            score for kind in kinds for score in _of_kind(f"{rule}/{kind}", kinds[kind], by_file)
        ]
        yield from of_kinds
        average = f"mean of {len(of_kinds)} kinds"
        aspects += _mean(f"{rule}/{aspect}", average, of_kinds, "aspect")
    yield from aspects
    yield from _mean(f"{rule}/aspect-macro", f"mean of {len(aspects)} aspects", aspects)


def _of_kind(name: str, data_sets: DataSets, by_file: dict[str, Score]) -> list[Score]:
    of_data_sets = [
        score
        for stems in data_sets.values()
        for score in _mean("", "", [by_file[stem] for stem in stems if stem in by_file])
    ]
    average = f"mean of {len(of_data_sets)} data sets, each the mean of its files"
    return _mean(name, average, of_data_sets, "kind")


def _mean(name: str, average: str, scores: Sequence[Score], dimension: str = "") -> list[Score]:
    """One score, or none if there are none to average."""
    if not scores:
        return []
    return [
        Score(
            name,
            Accuracy.macro([score.accuracy for score in scores]),
            sum(score.chance for score in scores) / len(scores),
            average,
            sum(score.ties for score in scores),
            dimension,
        )
    ]


VL_CHECKLIST = _Checklist(
    Selection(
        About(
            name="vl_checklist",
            title="VL-CheckList (Zhao et al. 2022)",
            data="the repository's data folder, with Object, Attribute and Relation",
            images="folder with the folders vg, swig and hake, as its DATASETS.md tells",
            source="github.com/om-ai-lab/VL-CheckList; images: the data sets' own pages",
            licence="not stated; images: each data set's own",
        ),
        read,
        (choose_caption(),),
        (By("file", macro=False),),
    )
)
