"""COLA (Ray et al. 2023, arXiv 2305.03689): objects and the attributes that belong to them.

Two benchmarks:
- `cola`, the multi-object setting, COLA_multiobjects_matching_benchmark.json: a list of `[link to
  image 1, caption 1, link to image 2, caption 2]`, 210 of them; an image is the last part of its
  link in the image folder. The paper's number is `image`: both captions prefer their image
  (`ColaMultiObjAcc` in scripts/eval.py). `text` and `group` are Winoground's, which later papers
  tell too.
- `cola_single`, the single-object setting, COLA_singleobjects_benchmark_GQA.json (_CLEVR, _PACO):
  `{"labels": [CLASS, ...], "data": [[IMAGE, ANNOTATIONS, LABEL, HARD], ...]}`, where LABEL and HARD
  hold a 0 or 1 for each class, such as "square white plate": whether the image shows it, and
  whether the image counts for it, since it shows one of its words. The paper's number is `map`: for
  each class the average precision over the images that count, and the mean of the classes. A class
  that none of its images shows is left out. Images of equal score count at once (a positive's
  precision is taken below all that score the same), as in torchmetrics, which the authors use.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from statistics import fmean, pstdev

import torch
from torch import Tensor

from hnpretrain.eval.accuracy import Accuracy
from hnpretrain.eval.benchmarks import base, reading
from hnpretrain.eval.benchmarks.base import About, Selection
from hnpretrain.eval.encode import Encoder
from hnpretrain.eval.images import ImageSource
from hnpretrain.eval.items import GROUP, IMAGE, TEXT, Item
from hnpretrain.eval.results import Result, Score
from hnpretrain.eval.scorers import Scorer

_SOURCE = "github.com/arijitray1993/COLA (its data folder)"
_PAIR = ("link 1", "caption 1", "link 2", "caption 2")
_SINGLE = ("image", "annotations", "label", "hard_list")


def read(data: Path, images: Path | None) -> Iterator[Item]:
    folder = reading.require_folder(images, "cola")
    for number, (where, value) in enumerate(reading.entries(data)):
        fields = reading.row(value, _PAIR, where)
        links = (reading.text(fields, key, where) for key in _PAIR[::2])
        yield Item(
            f"item {number}",
            tuple(ImageSource.file(folder / PurePosixPath(link).name) for link in links),
            tuple(reading.text(fields, key, where) for key in _PAIR[1::2]),
        )


COLA = Selection(
    About(
        name="cola",
        title="COLA, several objects (Ray et al. 2023)",
        data="COLA_multiobjects_matching_benchmark.json",
        images="the images of its links (Visual Genome's, by number)",
        source=_SOURCE,
        licence="MIT; images: Visual Genome, CC BY 4.0",
    ),
    read,
    (IMAGE, TEXT, GROUP),
)


@dataclass(frozen=True)
class _Single:
    """An image and what is known of it.

    Attributes:
        item: the image with all classes as captions.
        shown: C, whether it shows each class.
        counts: C, whether it counts for each class.
    """

    item: Item
    shown: Tensor
    counts: Tensor


@dataclass(frozen=True)
class SingleKind:
    """See Kind."""

    about = About(
        name="cola_single",
        title="COLA, one object (Ray et al. 2023)",
        data="COLA_singleobjects_benchmark_GQA.json (or _CLEVR, _PACO)",
        images="Visual Genome's images (CLEVR's, COCO's)",
        source=_SOURCE,
        licence="MIT; images: Visual Genome and CLEVR CC BY 4.0, COCO each photo's own",
    )

    def load(self, data: Path, images: Path | None, partial: bool) -> Single:
        """See Kind."""
        folder = reading.require_folder(images, self.about.name)
        singles = tuple(_read_singles(data, folder))
        if not singles:
            raise ValueError(f"{self.about.name}: {data} holds no image")
        base.refuse_missing(self.about.name, "images", singles, _images, partial)
        return Single(data, singles, partial)


COLA_SINGLE = SingleKind()


@dataclass(frozen=True)
class Single:
    """The single-object setting's images, of which some may be missing."""

    data: Path
    singles: tuple[_Single, ...]
    partial: bool

    @property
    def name(self) -> str:
        return COLA_SINGLE.about.name

    def run(self, encoder: Encoder, scorer: Scorer) -> Result:
        """The mean average precision, see the module."""
        faults = base.Faults(self.name, "images", self.partial)
        singles, s_NC = faults.encoded(
            self.singles,
            _images,
            encoder,
            lambda singles: _scores([single.item for single in singles], encoder, scorer),
        )
        score = self._score(singles, s_NC)
        notes = [f"{len(singles)} images, {s_NC.shape[1]} classes", *faults.notes()]
        return Result(
            self.name,
            base.RETRIEVAL,
            str(self.data),
            (score,),
            tuple(notes),
            faults.count,
            scorer.name,
        )

    def _score(self, singles: Sequence[_Single], s_NC: Tensor) -> Score:
        shown_NC = torch.stack([single.shown for single in singles])
        counts_NC = torch.stack([single.counts for single in singles])
        judged = torch.nonzero((shown_NC & counts_NC).any(dim=0)).flatten().tolist()
        if not judged:
            raise ValueError(f"{self.name}: {self.data} has no class that an image shows")
        columns = [(shown_NC[counts_NC[:, c], c], s_NC[counts_NC[:, c], c]) for c in judged]
        found = [average_precision(shown, scores) for shown, scores in columns]
        chances = [average_precision_chance(int(shown.sum()), len(shown)) for shown, _ in columns]
        return Score(
            "map",
            Accuracy(fmean(found), len(found), pstdev(found) / len(found) ** 0.5),
            fmean(chances),
            f"mean of {len(found)} classes: average precision over the images that count",
        )


def average_precision(shown: Tensor, scores: Tensor) -> float:
    """Of N images: the mean over positives of the share of positives at or above each.

    Args:
        shown: N booleans, of which one at least is true.
        scores: N; no positive is found before an image of an equal score.
    """
    threshold_P1 = scores[shown][:, None]
    right_P = (scores[shown] >= threshold_P1).sum(dim=1)
    # Not below: what is not a number counts against the model.
    above_P = (~(scores < threshold_P1)).sum(dim=1)
    return float((right_P.double() / above_P).mean())


def average_precision_chance(positives: int, count: int) -> float:
    """The expected average precision of a random order of `count` images."""
    # At rank k a positive has (k - 1) (positives - 1) / (count - 1) others before it on average.
    harmonic = sum(1 / k for k in range(1, count + 1))
    before = (positives - 1) / max(1, count - 1)
    return (harmonic + before * (count - harmonic)) / count


def _scores(items: Sequence[Item], encoder: Encoder, scorer: Scorer) -> Tensor:
    """N x C, of each image with each class."""
    # All images at once: those that cannot be read are all named.
    encoder.encode_images(item.images[0] for item in items)
    size = encoder.batch_size
    # In parts, since a scorer lays out the captions of each item.
    parts = [items[start : start + size] for start in range(0, len(items), size)]
    return torch.cat([scorer.scores(part, encoder)[part[0].shape][:, 0] for part in parts])


def _images(single: _Single) -> Sequence[ImageSource]:
    return single.item.images


def _read_singles(path: Path, folder: Path) -> Iterator[_Single]:
    fields = reading.mapping(reading.read_json(path), str(path))
    labels = tuple(reading.texts(fields, "labels", str(path)))
    if not labels:
        raise ValueError(f"{path}: 'labels' must be the classes' names, got []")
    for number, value in enumerate(reading.listing(fields, "data", str(path))):
        where = f"{path} image {number}"
        single = reading.row(value, _SINGLE, where)
        file = reading.text(single, "image", where)
        yield _Single(
            Item(
                f"{number} {PurePosixPath(file).name}",
                (ImageSource.file(_located(folder, file)),),
                labels,
            ),
            _flags(single, "label", len(labels), where),
            _flags(single, "hard_list", len(labels), where),
        )


def _located(folder: Path, file: str) -> Path:
    """The image in the folder given: the paths in the files begin at folders of the authors."""
    parts = PurePosixPath(file).parts
    # The whole path first, then less and less of it.
    start = 1 if file.startswith("/") else 0
    ends = [folder.joinpath(*parts[first:]) for first in range(start, len(parts))]
    return next((path for path in ends if path.is_file()), folder / parts[-1])


def _flags(fields: reading.Fields, key: str, count: int, where: str) -> Tensor:
    flags = reading.listing(fields, key, where)
    if len(flags) != count or not all(each in (0, 1) for each in flags):
        raise ValueError(
            f"{where}: {key!r} must be {count} numbers 0 or 1, one a class, got {len(flags)}: "
            f"{str(flags)[:40]}"
        )
    return torch.tensor(flags).bool()
