"""What's Up (Kamath et al. 2023, arXiv 2310.19785): where one thing stands to another.

Three benchmarks, by the images that they need. The files have the official names; the first caption
is always the right one.
- `whatsup`, subsets A (things on and around furniture) and B (things on a table): 820 photos. Two
  objects are photographed in four arrangements, and each photo chooses between the captions of all.
  `controlled_images_dataset.json` and `controlled_clevr_dataset.json`, each
  `[{"image_path": "data/controlled_images/OBJECT_PREPOSITION_OBJECT.jpeg", "caption_options":
  [TEXT x 4]}, ...]`.
- `whatsup_coco`, photos of COCO, and `whatsup_vg`, photos of Visual Genome (in the paper
  COCO-spatial and GQA-spatial): one photo and two captions, about one object or two.
  `coco_qa_one_obj.json`, `coco_qa_two_obj.json`, `vg_qa_one_obj.json`, `vg_qa_two_obj.json`, each
  `[[IMAGE_ID, RIGHT, WRONG], ...]`.

An item of A and B is a whole set: four photos and their four captions. Its four answers make `acc`;
`pair` wants both photos of opposite arrangements right (left and right; on and under, or in front
and behind) and `set` all four. The paper's table 3 is these by subset, with `acc/one` and `acc/two`
of the others; its table 1 is each benchmark's `acc/subset-macro`. Without an image the four photos
of a set have one and the same answer, so that `text_only` of A and B is 1/4 for every model.

Prepositions are told by the same words as in the authors' loader.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import torch
from torch import Tensor

from hnpretrain.eval.benchmarks import reading
from hnpretrain.eval.benchmarks.base import About, By, Selection
from hnpretrain.eval.images import ImageSource
from hnpretrain.eval.items import Item, Rule, choose_caption

_SET_FILES = {"A": "controlled_images_dataset", "B": "controlled_clevr_dataset"}
# Opposites stand side by side: `_pair_margins` takes them by two.
_ARRANGEMENTS = {
    "A": ("left", "right", "on", "under"),
    "B": ("left", "right", "in-front", "behind"),
}
_PHOTOS = 4

_SUBSETS = ("one", "two")
_COCO_PHRASES = ("left of", "right of", "above", "below")
_VG_PHRASES = ("left of", "right of", "front of", "behind", "top")


@dataclass(frozen=True)
class _Photo:
    """One of a set; the first option is the right one."""

    image: Path
    options: list[str]
    where: str


def read(data: Path, images: Path | None) -> Iterator[Item]:
    folder = reading.require_folder(images or data, "whatsup")
    stems = _SET_FILES.values()
    for subset, path in zip(
        _SET_FILES, reading.files(data, stems, "whatsup").values(), strict=True
    ):
        for objects, photos in _sets(path, subset, folder).items():
            yield _set_item(path, subset, objects, photos)


def _sets(path: Path, subset: str, images: Path) -> dict[tuple[str, str], dict[str, _Photo]]:
    """The photos by their two objects and their arrangement."""
    sets: dict[tuple[str, str], dict[str, _Photo]] = {}
    for where, value in reading.entries(path):
        fields = reading.mapping(value, where)
        image = reading.text(fields, "image_path", where)
        objects, arrangement = _arrangement(image, subset, where)
        photos = sets.setdefault(objects, {})
        if arrangement in photos:
            raise ValueError(
                f"{where}: 'image_path' {image!r} shows the same as {photos[arrangement].where}"
            )
        options = reading.texts(fields, "caption_options", where)
        # The paths are those of the authors' repository, whose `data` is DATA.
        photos[arrangement] = _Photo(images / image.removeprefix("data/"), options, where)
    return sets


def _arrangement(image: str, subset: str, where: str) -> tuple[tuple[str, str], str]:
    """(the two objects, the first word between them) of `beer-bottle_left_of_chair.jpeg`."""
    parts = PurePosixPath(image).stem.split("_")
    known = _ARRANGEMENTS[subset]
    if len(parts) < 3 or parts[1] not in known:
        raise ValueError(
            f"{where}: 'image_path' must be named OBJECT_PREPOSITION_OBJECT with one of "
            f"{', '.join(known)}, got {image!r}"
        )
    return (parts[0], parts[-1]), parts[1]


def _set_item(path: Path, subset: str, objects: tuple[str, str], photos: dict[str, _Photo]) -> Item:
    name = f"{subset} {' '.join(objects)}"
    wanted = _ARRANGEMENTS[subset]
    absent = [each for each in wanted if each not in photos]
    if absent:
        raise ValueError(f"{path} set {name!r} lacks the arrangements {', '.join(absent)}")
    captions = tuple(photos[each].options[0] for each in wanted)
    for photo in photos.values():
        if sorted(photo.options) != sorted(captions):
            raise ValueError(
                f"{photo.where}: 'caption_options' must be the right captions of the four photos "
                f"of set {name!r}, got {photo.options}"
            )
    sources = tuple(ImageSource.file(photos[each].image) for each in wanted)
    return Item(name, sources, captions, {"subset": subset})


def read_coco(data: Path, images: Path | None) -> Iterator[Item]:
    folder = reading.require_folder(images or data / "val2017", "whatsup_coco")
    return _questions(data, folder, "whatsup_coco", "coco_qa", 12, _COCO_PHRASES)


def read_vg(data: Path, images: Path | None) -> Iterator[Item]:
    folder = reading.require_folder(images or data / "vg_images", "whatsup_vg")
    return _questions(data, folder, "whatsup_vg", "vg_qa", 0, _VG_PHRASES)


def _questions(
    data: Path, images: Path, what: str, stem: str, digits: int, phrases: tuple[str, ...]
) -> Iterator[Item]:
    """Photos with two captions.

    Args:
        digits: that an image's number is filled up to in its file's name.
        phrases: that tell the prepositions of captions about two objects; the last one stands for
            all that have none of the others.
    """
    paths = reading.files(data, [f"{stem}_{subset}_obj" for subset in _SUBSETS], what)
    for subset, path in zip(_SUBSETS, paths.values(), strict=True):
        for number, (where, value) in enumerate(reading.entries(path)):
            fields = reading.row(value, ("image id", "right", "wrong"), where)
            image = _image_id(fields["image id"], where)
            captions = tuple(reading.text(fields, key, where) for key in ("right", "wrong"))
            preposition = _preposition(captions[0], phrases if subset == "two" else ())
            yield Item(
                f"{subset} {number} {image}",
                (ImageSource.file(images / f"{image.zfill(digits)}.jpg"),),
                captions,
                {"subset": subset, "preposition": f"{subset}_{preposition}"},
            )


def _preposition(caption: str, phrases: tuple[str, ...]) -> str:
    """The word that tells the place; with no phrases the caption's last one ("on the left")."""
    if not phrases:
        return caption.split()[-1]
    return next((each for each in phrases if each in caption), phrases[-1]).split()[0]


def _image_id(value: object, where: str) -> str:
    if isinstance(value, bool) or not isinstance(value, int | str) or not str(value):
        raise ValueError(f"{where}: the image id must be a number or a string, got {value!r}")
    return str(value)


def _is_set(images: int, captions: int) -> bool:
    return images == captions == _PHOTOS


def _own_margins(s_NIC: Tensor) -> Tensor:
    """N x C: how far each image prefers its own caption; one image stands for all C."""
    captions = s_NIC.shape[2]
    s_NCC = s_NIC.expand(-1, captions, -1)
    own_CC = torch.eye(captions, dtype=torch.bool, device=s_NIC.device)
    best_other_NC = s_NCC.masked_fill(own_CC, -math.inf).amax(dim=-1)
    return s_NCC.diagonal(dim1=1, dim2=2) - best_other_NC


def _pair_margins(s_NIC: Tensor) -> Tensor:
    """N x C/2: the lesser margin of each two neighbours."""
    return _own_margins(s_NIC).unflatten(1, (-1, 2)).amin(dim=-1)


def _set_margins(s_NIC: Tensor) -> Tensor:
    return _own_margins(s_NIC).amin(dim=-1, keepdim=True)


ACC = Rule(
    "acc",
    "each of four photos prefers its caption",
    _is_set,
    _own_margins,
    lambda _, captions: 1 / captions,
    by_captions=True,
)
PAIR = Rule(
    "pair",
    "both photos of opposite arrangements prefer their caption",
    _is_set,
    _pair_margins,
    lambda _, captions: 1 / captions**2,
)
SET = Rule(
    "set",
    "all four photos prefer their caption",
    _is_set,
    _set_margins,
    lambda images, captions: captions**-images,
)

_SOURCE = "github.com/amitakamath/whatsup_vlms"

WHATSUP = Selection(
    About(
        name="whatsup",
        title="What's Up, A and B (Kamath et al. 2023)",
        data="folder of controlled_images_dataset.json and controlled_clevr_dataset.json",
        images="folder of controlled_images and controlled_clevr (DATA if not given)",
        source=_SOURCE,
        licence="MIT",
    ),
    read,
    (ACC, PAIR, SET),
    (By("subset"),),
)

_QUESTION_RULES = (choose_caption(),)
_QUESTION_GROUPS = (By("subset"), By("preposition", macro=False))

WHATSUP_COCO = Selection(
    About(
        name="whatsup_coco",
        title="What's Up, COCO-spatial (Kamath et al. 2023)",
        data="folder of coco_qa_one_obj.json and coco_qa_two_obj.json",
        images="COCO val2017 (DATA/val2017 if not given)",
        source=f"{_SOURCE}; images: cocodataset.org",
        licence="MIT; images: each photo's own",
    ),
    read_coco,
    _QUESTION_RULES,
    _QUESTION_GROUPS,
)

WHATSUP_VG = Selection(
    About(
        name="whatsup_vg",
        title="What's Up, GQA-spatial (Kamath et al. 2023)",
        data="folder of vg_qa_one_obj.json and vg_qa_two_obj.json",
        images="Visual Genome's images, ID.jpg (DATA/vg_images if not given)",
        source=f"{_SOURCE}; images: homes.cs.washington.edu/~ranjay/visualgenome",
        licence="MIT; images: each photo's own",
    ),
    read_vg,
    _QUESTION_RULES,
    _QUESTION_GROUPS,
)
