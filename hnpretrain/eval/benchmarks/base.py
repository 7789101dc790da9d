"""What a benchmark is.

Most are a `Selection`: a reader of the official files that yields items, the rules by which an item
is right, and the groups that scores are told for. Such a benchmark is a declaration, and everything
else is the same for all: missing images, averages, text-only scores, ties. Retrieval and zero-shot
classification compare everything with everything and have modules of their own.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from hnpretrain.eval.accuracy import Accuracy
from hnpretrain.eval.encode import BadImages, Encoder
from hnpretrain.eval.images import Identity, ImageSource
from hnpretrain.eval.items import Item, Rule, by_shape
from hnpretrain.eval.results import Outcome, Result, Score, Withheld
from hnpretrain.eval.scorers import Scorer, Scores

T = TypeVar("T")
R = TypeVar("R")

# CLIP_benchmark's names for the tasks.
SELECTION = "image_caption_selection"
RETRIEVAL = "zeroshot_retrieval"
CLASSIFICATION = "zeroshot_classification"

TEXT_ONLY = "text_only"

_SHOWN = 3


@dataclass(frozen=True)
class About:
    """What `hnpretrain eval --list` tells.

    Attributes:
        name: on the command line.
        title: the benchmark's own name and its paper.
        data, images: what to give as DATA and IMAGES; no `images` if it takes none.
        source: where to get the files.
        licence: of the files, as their authors state it.
        hub: the data set on the Hugging Face hub that has this layout, if one does.
        files: patterns of its files that are needed.
    """

    name: str
    title: str
    data: str
    images: str
    source: str
    licence: str
    hub: str = ""
    files: tuple[str, ...] = ()


class Benchmark(Protocol):
    """Items read and checked, ready for any model."""

    @property
    def name(self) -> str: ...

    def run(self, encoder: Encoder, scorer: Scorer) -> Result:
        """Scores one model.

        Raises:
            Withheld: images are missing or cannot be read; all of them are named.
        """
        ...


class Kind(Protocol):
    """A benchmark whose files are still to be read."""

    @property
    def about(self) -> About: ...

    def load(self, data: Path, images: Path | None, partial: bool) -> Benchmark:
        """Reads and checks all but the images themselves.

        Args:
            data, images: as `about` tells.
            partial: score the items whose images are there and can be read, and mark the result.

        Raises:
            ValueError: a file is missing or malformed.
            Withheld: images are missing, and partial scores were not asked for.
        """
        ...


@dataclass(frozen=True)
class By:
    """Scores by the groups of a dimension, and the mean of these.

    Attributes:
        dimension: of `Item.groups`; items without it are in none of its groups.
        told: whether each group's own score is told, and not their mean alone.
        macro: whether the mean of the groups is told.
        at_least: smaller groups do not count in the mean.
    """

    dimension: str
    told: bool = True
    macro: bool = True
    at_least: int = 1


@dataclass(frozen=True)
class Selection:
    """A benchmark of items, see `Item`.

    Attributes:
        about: what it is.
        read: (DATA, IMAGES or None) -> the items.
        rules: by which items are right; each scores the items that it applies to.
        by: the groups; also of the text-only score.
    """

    about: About
    read: Callable[[Path, Path | None], Iterable[Item]]
    rules: tuple[Rule, ...]
    by: tuple[By, ...] = ()

    def load(self, data: Path, images: Path | None, partial: bool) -> Benchmark:
        name = self.about.name
        if images is not None and not self.about.images:
            raise ValueError(
                f"{name} takes no image folder, got {str(images)!r}: its images lie in DATA"
            )
        items = tuple(self.read(data, images))
        if not items:
            raise ValueError(f"{name}: {data} holds no item")
        repeated = [each for each, n in Counter(item.name for item in items).items() if n > 1]
        if repeated:
            raise ValueError(
                f"{name}: {data} has {len(repeated)} items twice, such as {repeated[0]!r}"
            )
        unjudged = [item for item in items if not any(_judges(rule, item) for rule in self.rules)]
        if unjudged:
            raise ValueError(
                f"{name}: {data} item {unjudged[0].name!r} has {len(unjudged[0].images)} images "
                f"and {len(unjudged[0].captions)} captions, which no rule of {name} can judge"
            )
        refuse_missing(name, "items", items, _images, partial)
        return _Loaded(self, data, items, partial)


@dataclass(frozen=True)
class _Loaded:
    """The items of a benchmark."""

    kind: Selection
    data: Path
    items: tuple[Item, ...]
    partial: bool

    @property
    def name(self) -> str:
        return self.kind.about.name

    def run(self, encoder: Encoder, scorer: Scorer) -> Result:
        faults = Faults(self.name, "items", self.partial)
        items, scores = faults.encoded(
            self.items, _images, encoder, lambda items: scorer.scores(items, encoder)
        )
        scored: list[Score] = []
        outcomes: dict[str, Outcome] = {}
        for rule in self.kind.rules:
            of_rule = scorer.text_scores(items, encoder) if rule.of_texts else scores
            judged = _judge(rule, items, of_rule)
            if judged is not None:
                outcomes[rule.name] = judged.outcome()
                scored += judged.scores(self.kind.by)
        chosen = [row for row, item in enumerate(items) if len(item.captions) > 1]
        if chosen:
            judged = self._text_only([items[row] for row in chosen], encoder, scorer)
            outcomes[TEXT_ONLY] = Outcome([chosen[row] for row in judged.numbers], judged.margins)
            scored += judged.scores(self.kind.by)
        _check_names(self.name, scored)
        tied = {
            row
            for outcome in outcomes.values()
            for row, margins in zip(outcome.rows, outcome.margins, strict=True)
            if (margins == 0).any()
        }
        notes = [*_notes(items, sorted(tied), encoder), *faults.notes()]
        if not chosen:
            notes.append(f"no {TEXT_ONLY}: with one caption an item, texts alone decide nothing")
        return Result(
            self.name,
            SELECTION,
            str(self.data),
            tuple(scored),
            tuple(notes),
            faults.count,
            scorer.name,
            tuple(item.name for item in items),
            _groups(items),
            outcomes,
            items,
            _in_order(items, scores),
        )

    def _text_only(self, items: Sequence[Item], encoder: Encoder, scorer: Scorer) -> _Judged:
        """The first rule that chooses captions again, with no image; else the first caption's."""
        of_rules = next((rule for rule in self.kind.rules if rule.by_captions), None)
        rule = Rule(
            TEXT_ONLY,
            f"{f'as {of_rules.name}' if of_rules else 'the first caption wins'}, with no image",
            applies=lambda *_: True,
            margins=of_rules.margins if of_rules else _first_caption,
            chance=of_rules.chance if of_rules else lambda _, captions: 1 / captions,
        )
        judged = _judge(rule, items, scorer.blind_scores(items, encoder))
        assert judged is not None
        return judged


def _groups(items: Sequence[Item]) -> dict[str, list[str | None]]:
    dimensions = dict.fromkeys(each for item in items for each in item.groups)
    return {each: [item.groups.get(each) for item in items] for each in dimensions}


def _in_order(items: Sequence[Item], scores: Scores) -> tuple[Tensor, ...]:
    """The I x C scores of each item."""
    found: dict[int, Tensor] = {}
    for shape, rows in by_shape(items).items():
        found |= zip(rows, scores[shape], strict=True)
    return tuple(found[row] for row in range(len(items)))


def _check_names(benchmark: str, scores: Sequence[Score]) -> None:
    twice = [name for name, n in Counter(score.name for score in scores).items() if n > 1]
    if twice:
        raise ValueError(
            f"{benchmark}: its files name two groups alike: two scores are called {twice[0]!r}"
        )


def _judges(rule: Rule, item: Item) -> bool:
    return rule.applies(*item.shape)


def _first_caption(s_NIC: Tensor) -> Tensor:
    return (s_NIC[:, 0, 0] - s_NIC[:, 0, 1:].amax(dim=-1))[:, None]


@dataclass
class _Judged:
    """The items that a rule has judged.

    Attributes:
        items: those.
        margins: N x A, their answers.
        chance: N.
    """

    rule: Rule
    items: list[Item]
    numbers: list[int]
    margins: Tensor
    chance: list[float]

    def outcome(self) -> Outcome:
        return Outcome(tuple(self.numbers), self.margins)

    def scores(self, by: Sequence[By]) -> Iterator[Score]:
        """Of all items, of each group, and the means of groups."""
        rule = self.rule
        everything = range(len(self.items))
        yield self._score(rule.name, everything, f"micro: {rule.meaning}", "")
        for each in by:
            groups: dict[str, list[int]] = {}
            for row, item in enumerate(self.items):
                if each.dimension in item.groups:
                    groups.setdefault(item.groups[each.dimension], []).append(row)
            if not groups:
                continue
            found = [
                self._score(f"{rule.name}/{name}", rows, f"micro within {name}", each.dimension)
                for name, rows in sorted(groups.items())
            ]
            if each.told:
                yield from found
            if each.macro:
                yield self._macro(each, found)

    def _score(self, name: str, rows: Sequence[int], average: str, dimension: str) -> Score:
        margins = self.margins[list(rows)]
        accuracy = Accuracy.of(margins > 0, clusters=margins.shape[1])
        chance = sum(self.chance[row] for row in rows) / len(rows)
        return Score(name, accuracy, chance, average, int((margins == 0).sum()), dimension)

    def _macro(self, by: By, groups: Sequence[Score]) -> Score:
        answers = self.margins.shape[1]
        large = [group for group in groups if group.accuracy.count >= by.at_least * answers]
        counted = large or groups
        few = f" (of {len(groups)}; the others have under {by.at_least} items)"
        return Score(
            f"{self.rule.name}/{by.dimension}-macro",
            Accuracy.macro([group.accuracy for group in counted]),
            sum(group.chance for group in counted) / len(counted),
            f"mean of {len(counted)} groups{few if len(counted) < len(groups) else ''}",
            sum(group.ties for group in counted),
        )


def _judge(rule: Rule, items: Sequence[Item], scores: Scores) -> _Judged | None:
    """The items that the rule applies to, in their order; None if there are none."""
    margins: dict[int, Tensor] = {}
    for shape, rows in by_shape(items).items():
        if rule.applies(*shape):
            margins |= zip(rows, rule.margins(scores[shape]), strict=True)
    if not margins:
        return None
    numbers = sorted(margins)
    judged = [items[row] for row in numbers]
    return _Judged(
        rule,
        judged,
        numbers,
        torch.stack([margins[row] for row in numbers]),
        [rule.chance(*item.shape) for item in judged],
    )


def _images(item: Item) -> Iterable[ImageSource]:
    return item.images


def missing(images: Iterable[ImageSource]) -> dict[Identity, str]:
    """Those whose file is not there, and what is wrong."""
    distinct = {image.identity: image for image in images}
    return {
        identity: f"image {image.name}: no such file"
        for identity, image in distinct.items()
        if image.is_missing
    }


def refuse_missing(
    name: str,
    what: str,
    items: tuple[T, ...],
    images: Callable[[T], Iterable[ImageSource]],
    partial: bool,
) -> None:
    """Raises Withheld, before any model is loaded, where images are missing and none may be.

    Then it looks at all the others, too, so that those that are broken are told along with them.
    """
    distinct = {image.identity: image for item in items for image in images(item)}
    faults = missing(distinct.values())
    if faults and not partial:
        rest = [image for identity, image in distinct.items() if identity not in faults]
        with ThreadPoolExecutor() as pool:
            found = zip(rest, pool.map(_fault, rest), strict=True)
            faults |= {image.identity: fault for image, fault in found if fault}
    Faults(name, what, partial).without(items, faults, images)


def _fault(image: ImageSource) -> str:
    """What is wrong with it; empty if nothing is."""
    try:
        image.open()
    except ValueError as error:
        return str(error)
    return ""


@dataclass
class Faults:
    """Images that are missing or cannot be read, and the items that are left out for it."""

    name: str
    what: str
    partial: bool
    reasons: dict[Identity, str] = field(default_factory=dict)
    count: int = 0

    def without(
        self,
        items: tuple[T, ...],
        reasons: Mapping[Identity, str],
        images: Callable[[T], Iterable[ImageSource]],
    ) -> tuple[T, ...]:
        """The items that need none of these images.

        Args:
            reasons: what is wrong with an image.
            images: of an item.

        Raises:
            Withheld: there are such images, and partial scores were not asked for, or none is left.
        """
        if not reasons:
            return items
        self.reasons.update(reasons)
        left = tuple(
            item for item in items if not any(each.identity in reasons for each in images(item))
        )
        assert len(left) < len(items), reasons  # or the caller would ask again and again
        self.count += len(items) - len(left)
        if not self.partial or not left:
            raise Withheld(self.name, self.what, self.count, self.count + len(left), self.reasons)
        return left

    def encoded(
        self,
        items: tuple[T, ...],
        images: Callable[[T], Iterable[ImageSource]],
        encoder: Encoder,
        work: Callable[[tuple[T, ...]], R],
    ) -> tuple[tuple[T, ...], R]:
        """The items whose images can be used, and what `work` makes of them.

        Args:
            items: all of them.
            images: of an item.
            encoder: its main process tells which files are there.
            work: raises BadImages while there are images that cannot be read.

        Raises:
            Withheld: see `without`.
        """
        absent = encoder.share.same(
            lambda: missing(image for item in items for image in images(item))
        )
        left = self.without(items, absent, images)
        while True:
            try:
                return left, work(left)
            except BadImages as error:
                left = self.without(left, error.reasons, images)

    def notes(self) -> list[str]:
        return [partial_note(self.count, self.what, self.reasons.values())] if self.count else []


def partial_note(count: int, what: str, reasons: Iterable[str]) -> str:
    """The sentence that marks scores of an incomplete benchmark."""
    return (
        f"PARTIAL: {count} {what} left out for want of their images ({some(reasons)}); not "
        "comparable with published scores"
    )


def some(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")


def _notes(items: Sequence[Item], tied: Sequence[int], encoder: Encoder) -> Iterator[str]:
    """What explains ties, and captions that say nothing."""
    pairs = [
        (row, one, other)
        for row in tied
        for one, other in itertools.combinations(items[row].captions, 2)
    ]
    if pairs:
        rows, first, second = zip(*pairs, strict=True)
        equal = sorted({rows[each] for each in encoder.equal_tokens(first, second)})
        if equal:
            yield (
                f"{len(equal)} items have captions of equal tokens "
                f"({some(items[row].name for row in equal)}): always a tie, counted as wrong"
            )
    empty = sum(not caption.strip() for item in items for caption in item.captions)
    if empty:
        yield f"{empty} captions are empty: scored as they stand"
