"""Zero-shot classification (Radford et al. 2021, arXiv 2103.00020): which class an image is of.

Two forms are read:
- an ImageFolder: a folder of class folders, which hold the images themselves. Classes are in the
  order of the folders' names. `classnames.txt` beside the class folders names them, one a line in
  that order; without it, a class is called as its folder, with spaces for underscores. 1,000
  folders with WordNet ids are ImageNet's, and get open_clip's names. Where all folders are called
  by numbers (ImageNet-V2), a number is the line of `classnames.txt`, from 0;
- CLIP_benchmark's WebDataset: tars of KEY.jpg (.jpeg, .png, .webp) and KEY.cls, the class's number,
  in DATA or in DATA/test, with `classnames.txt` in DATA. If `nshards.txt` is there, it counts them.

`zeroshot_classification_templates.txt` in DATA has the templates, one a line with `{c}` or `{}` for
the name. Without it open_clip's are taken: `zero_shot` the 80 of OPENAI_IMAGENET_TEMPLATES, which
most published numbers are from, and `zero_shot_simple` the 7 of SIMPLE_IMAGENET_TEMPLATES.

A class is the mean of the unit vectors of its name in all templates, made a unit vector again. The
scores have CLIP_benchmark's names; `acc5` is told where there are at least 5 classes, and
`mean_per_class_recall` is over the classes that have images. The paper's number is `acc1`, and
`mean_per_class_recall` for Caltech-101, FGVC Aircraft, Flowers 102 and Pets. Ties are wrong, and so
are all images of two classes of one name. open_clip's names for ImageNet have two such pairs
(missile and sunglasses): there, published numbers, which take the first of equals, are up to 0.2
points higher.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import open_clip
import torch
from torch import Tensor
from torch.nn import functional

from hnpretrain.eval.accuracy import Accuracy
from hnpretrain.eval.benchmarks import base, reading
from hnpretrain.eval.encode import Encoder
from hnpretrain.eval.images import ImageSource
from hnpretrain.eval.results import Outcome, Result, Score
from hnpretrain.eval.scorers import Scorer
from hnpretrain.eval.tars import read_tar
from hnpretrain.shards.schema import IMAGE_EXTENSIONS
from hnpretrain.shards.tar import RawSample

KS = (1, 5)
CLASSNAMES = "classnames.txt"
TEMPLATES = "zeroshot_classification_templates.txt"

_SHARDS = "nshards.txt"
_WORDNET = re.compile(r"n\d{8}")
_FOLDER_EXTENSIONS = frozenset((*IMAGE_EXTENSIONS, "bmp", "gif", "tif", "tiff"))
# Images whose scores with all classes are held at a time.
_CHUNK = 1024

Template = Callable[[str], str]
"""A class's name to a caption."""


@dataclass(frozen=True)
class Templates:
    """What a class's name is put into.

    Attributes:
        source: in words, for the notes.
        of_name: at least one.
    """

    source: str
    of_name: tuple[Template, ...]


OPENAI = Templates("open_clip's OPENAI_IMAGENET", tuple(open_clip.OPENAI_IMAGENET_TEMPLATES))
SIMPLE = Templates("open_clip's SIMPLE_IMAGENET", tuple(open_clip.SIMPLE_IMAGENET_TEMPLATES))


@dataclass(frozen=True)
class LabelledImage:
    """An image and the number of its class.

    Attributes:
        name: unique, and the same wherever the files lie.
    """

    name: str
    image: ImageSource
    label: int


@dataclass(frozen=True)
class ZeroShotKind:
    """See Kind.

    Attributes:
        about: see there.
        templates: for data that have none of their own.
    """

    about: base.About
    templates: Templates

    def load(self, data: Path, images: Path | None, partial: bool) -> ZeroShot:
        """See Kind."""
        name = self.about.name
        reading.refuse_folder(images, data, name)
        if not data.is_dir():
            raise ValueError(f"{name}: {data} is not a folder of class folders or of tars")
        shards = _shards(data)
        items, classes = _read_tars(shards, data) if shards else _read_folders(data)
        if not items:
            raise ValueError(f"{name}: {data} holds no image")
        repeated = [each for each, n in Counter(item.name for item in items).items() if n > 1]
        if repeated:
            raise ValueError(f"{name}: {data} has the image {repeated[0]!r} twice")
        templates = _read_templates(data / TEMPLATES) or self.templates
        base.refuse_missing(name, "images", tuple(items), _images, partial)
        return ZeroShot(name, data, tuple(items), tuple(classes), templates, partial)


@dataclass(frozen=True)
class ZeroShot:
    """The images, the names of the classes and the templates.

    Attributes:
        kind: the benchmark's name, without the data's.
        partial: see Kind.
    """

    kind: str
    data: Path
    items: tuple[LabelledImage, ...]
    classes: tuple[str, ...]
    templates: Templates
    partial: bool

    @property
    def name(self) -> str:
        return f"{self.kind}/{self.data.absolute().name}"

    def run(self, encoder: Encoder, scorer: Scorer) -> Result:
        """Top 1, top 5 and the mean recall of classes; ties count against the model."""
        if scorer.name != "cosine":
            raise ValueError(
                f"{self.name}: a classification takes the scorer cosine, not {scorer.name}"
            )
        faults = base.Faults(self.name, "images", self.partial)
        items, image_ND = faults.encoded(
            self.items,
            _images,
            encoder,
            lambda items: encoder.encode_images(item.image for item in items),
        )
        class_CD = class_vectors(encoder, self.classes, self.templates.of_name)
        label_N = torch.tensor([item.label for item in items])
        device = encoder.device
        ranks = class_ranks(image_ND.to(device), class_CD.to(device), label_N.to(device))
        ks = [k for k in KS if k <= len(self.classes)]
        scores = [*(self._top(k, ranks) for k in ks), self._recall(label_N, ranks)]
        rank_N = ranks.rank.double()
        return Result(
            self.name,
            base.CLASSIFICATION,
            str(self.data),
            tuple(scores),
            (*self._notes(items), *faults.notes()),
            faults.count,
            scorer.name,
            tuple(item.name for item in items),
            {"class": [self.classes[item.label] for item in items]},
            {f"acc{k}": Outcome(range(len(items)), (k - 0.5 - rank_N)[:, None]) for k in ks},
        )

    def _top(self, k: int, ranks: ClassRanks) -> Score:
        return Score(
            f"acc{k}",
            Accuracy.of(ranks.rank < k),
            k / len(self.classes),
            f"micro over images: its class is among the first {k}",
            int(ranks.spoilt(k).sum()),
        )

    def _recall(self, label_N: Tensor, ranks: ClassRanks) -> Score:
        right_N = ranks.rank < 1
        recalls = [Accuracy.of(right_N[label_N == label]) for label in label_N.unique()]
        return Score(
            "mean_per_class_recall",
            Accuracy.macro(recalls),
            1 / len(self.classes),
            f"mean of {len(recalls)} classes: its class is the first",
            int(ranks.spoilt(1).sum()),
        )

    def _notes(self, items: Sequence[LabelledImage]) -> Iterator[str]:
        templates = self.templates
        yield (
            f"{len(items)} images, {len(self.classes)} classes, {len(templates.of_name)} templates "
            f"({templates.source})"
        )
        empty = len(self.classes) - len({item.label for item in items})
        if empty:
            yield f"{empty} classes have no image: not in mean_per_class_recall"
        shared = [name for name, n in Counter(self.classes).items() if n > 1]
        if shared:
            yield (
                f"{len(shared)} names are of several classes ({base.some(shared)}): always a tie, "
                "counted as wrong"
            )


def class_vectors(
    encoder: Encoder, classes: Sequence[str], templates: Sequence[Template]
) -> Tensor:
    """Unit vectors C x D of the classes: means over the templates."""
    texts = (template(name) for name in classes for template in templates)
    text_CTD = encoder.encode_texts(texts).unflatten(0, (len(classes), len(templates)))
    return functional.normalize(text_CTD.mean(dim=1, dtype=torch.float64), dim=-1).float()


@dataclass(frozen=True)
class ClassRanks:
    """How many wrong classes stand before the right one.

    Attributes:
        higher: N; those that score higher.
        rank: N; those that score as high or higher.
    """

    higher: Tensor
    rank: Tensor

    def spoilt(self, k: int) -> Tensor:
        """N; where ties alone keep the right class from the first k."""
        return (self.higher < k) & (self.rank >= k)


def class_ranks(image_ND: Tensor, class_CD: Tensor, label_N: Tensor) -> ClassRanks:
    """Ranks of the right classes, on the CPU.

    Scores are summed in float64 and rounded to float32, so that equal classes tie.

    Args:
        image_ND, class_CD: unit vectors.
        label_N: rows of `class_CD`.
    """
    higher: list[Tensor] = []
    rank: list[Tensor] = []
    for rows_RD, label_R in zip(image_ND.split(_CHUNK), label_N.split(_CHUNK), strict=True):
        score_RC = (rows_RD.double() @ class_CD.double().T).float()
        own_R1 = score_RC.gather(1, label_R[:, None])
        higher.append((score_RC > own_R1).sum(dim=1))
        rank.append((score_RC >= own_R1).sum(dim=1) - 1)  # itself
    return ClassRanks(torch.cat(higher).cpu(), torch.cat(rank).cpu())


def _read_folders(data: Path) -> tuple[list[LabelledImage], list[str]]:
    folders = sorted(
        each for each in data.iterdir() if each.is_dir() and not each.name.startswith(".")
    )
    if not folders:
        raise ValueError(f"zero_shot: {data} holds neither class folders nor tars")
    classes = _read_lines(data / CLASSNAMES)
    labels: Sequence[int] = range(len(folders))
    if classes is None:
        classes = _names_of(folders, data)
    else:
        labels = _labels_of(folders, classes, data)
    items: list[LabelledImage] = []
    for folder, label in zip(folders, labels, strict=True):
        files = sorted(
            each
            for each in folder.iterdir()
            if each.suffix[1:].lower() in _FOLDER_EXTENSIONS and not each.name.startswith(".")
        )
        if not files:
            raise ValueError(
                f"zero_shot: class folder {folder} holds no image; DATA must be the folder of "
                "class folders"
            )
        items += [
            LabelledImage(f"{folder.name}/{file.name}", ImageSource.file(file), label)
            for file in files
        ]
    return items, classes


def _names_of(folders: Sequence[Path], data: Path) -> list[str]:
    """What classes are called that have no names but their folders'."""
    names = [folder.name for folder in folders]
    wordnet = [bool(_WORDNET.fullmatch(name)) for name in names]
    if all(wordnet) and len(names) == len(open_clip.IMAGENET_CLASSNAMES):
        return list(open_clip.IMAGENET_CLASSNAMES)
    if any(wordnet) or all(name.isdecimal() for name in names):
        raise ValueError(
            f"zero_shot: {data} lacks {CLASSNAMES}: its class folders are called by numbers such "
            f"as {names[0]!r}, which say nothing to a model"
        )
    return [name.replace("_", " ") for name in names]


def _labels_of(folders: Sequence[Path], classes: Sequence[str], data: Path) -> Sequence[int]:
    """Which lines of `classnames.txt` the folders are."""
    names = [folder.name for folder in folders]
    if all(name.isdecimal() for name in names):
        beyond = [name for name in names if int(name) >= len(classes)]
        if beyond:
            raise ValueError(
                f"zero_shot: {data / CLASSNAMES} has {len(classes)} names, and none for class "
                f"folder {beyond[0]!r}; they count from 0"
            )
        return [int(name) for name in names]
    if len(names) != len(classes):
        raise ValueError(
            f"zero_shot: {data / CLASSNAMES} has {len(classes)} names, and {data} has "
            f"{len(names)} class folders"
        )
    return range(len(names))


def _images(item: LabelledImage) -> tuple[ImageSource, ...]:
    return (item.image,)


def _shards(data: Path) -> list[Path]:
    """The tars in DATA/test or DATA, all that `nshards.txt` counts."""
    for folder in (data / "test", data):
        found = sorted(folder.glob("*.tar"))
        count = _read_lines(folder / _SHARDS)
        if count is not None and count != [str(len(found))]:
            raise ValueError(
                f"zero_shot: {folder / _SHARDS} counts {' '.join(count)!r} tars, there are "
                f"{len(found)}"
            )
        if found:
            return found
    return []


def _read_tars(shards: Sequence[Path], data: Path) -> tuple[list[LabelledImage], list[str]]:
    classes = _read_lines(data / CLASSNAMES)
    if classes is None:
        raise ValueError(f"zero_shot: {data} lacks {CLASSNAMES}: its tars number the classes only")
    return [item for shard in shards for item in _read_tar(shard, len(classes))], classes


def _read_tar(path: Path, classes: int) -> Iterator[LabelledImage]:
    for where, sample, image in read_tar(path, "zero_shot"):
        yield LabelledImage(f"{path.name}/{sample.key}", image, _label(sample, classes, where))


def _label(sample: RawSample, classes: int, where: str) -> int:
    if "cls" not in sample.members:
        raise ValueError(
            f"zero_shot: {where} has no .cls with the number of its one class, got the members "
            f"{', '.join(sorted(sample.members))}"
        )
    text = sample.members["cls"][:32].decode(errors="replace").strip()
    if not (text.isascii() and text.isdecimal() and int(text) < classes):
        raise ValueError(
            f"zero_shot: {where}: .cls must be the number of one of the {classes} classes of "
            f"{CLASSNAMES}, from 0, got {text!r}"
        )
    return int(text)


def _read_templates(path: Path) -> Templates | None:
    lines = _read_lines(path)
    if lines is None:
        return None
    places = ["{c}" if "{c}" in line else "{}" for line in lines]
    for number, (line, place) in enumerate(zip(lines, places, strict=True), start=1):
        if place not in line:
            raise ValueError(f"{path} line {number}: a template needs {{c}} or {{}}, got {line!r}")
    return Templates(
        f"of {path.name}",
        tuple(
            # Not str.format: the line is data, and other braces in it are text.
            partial(str.replace, line, place)
            for line, place in zip(lines, places, strict=True)
        ),
    )


def _read_lines(path: Path) -> list[str] | None:
    """The lines of a text file, stripped, with none empty; None if there is no such file."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a readable text file: {error}") from error
    lines = [line.strip() for line in text.rstrip().split("\n")]
    if "" in lines:
        raise ValueError(f"{path} line {lines.index('') + 1} is empty")
    return lines


def _about(name: str, templates: str) -> base.About:
    return base.About(
        name=name,
        title=f"Zero-shot classification (Radford et al. 2021), {templates} templates",
        data=f"a folder of class folders, or of tars; {CLASSNAMES} and {TEMPLATES} in it",
        images="",
        source="any ImageFolder; huggingface.co/clip-benchmark",
        licence="each data set's own",
    )


ZERO_SHOT = ZeroShotKind(_about("zero_shot", "80"), OPENAI)
ZERO_SHOT_SIMPLE = ZeroShotKind(_about("zero_shot_simple", "7"), SIMPLE)
