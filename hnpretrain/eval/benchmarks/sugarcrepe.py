"""SugarCrepe (Hsieh et al. 2023, arXiv 2306.14610): a caption against its hard negative.

Two forms are read:
- the official seven files `add_att.json` ... `swap_obj.json`, each
  `{"0": {"filename", "caption", "negative_caption"}, ...}`, with the COCO val2017 images;
- a `.jsonl` whose lines hold `image` and `sugarcrepe`, a list of `{"type", "id", "caption",
  "negative_caption"}` (the CC BY photos in tests/assets/coco_ccby).

Published averages differ by up to two points, since the categories differ in size by a factor of
eight; so all are given: each category, micro in each of add, replace and swap, micro over all
pairs (`acc`), and the mean of the categories (`macro`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from hnpretrain.config import require_one_of
from hnpretrain.eval.benchmarks import base
from hnpretrain.eval.encode import Encoder
from hnpretrain.eval.images import ImageSource
from hnpretrain.eval.report import Result, Score
from hnpretrain.eval.scorers import Accuracy, cosine, pair_correct

CATEGORIES = (
    "add_att",
    "add_obj",
    "replace_att",
    "replace_obj",
    "replace_rel",
    "swap_att",
    "swap_obj",
)
_CHANCE = 0.5


@dataclass(frozen=True)
class Pair:
    """One test: the image must score higher with `caption` than with `negative`."""

    image: Path
    caption: str
    negative: str
    category: str


@dataclass(frozen=True)
class SugarCrepe:
    """The pairs whose images are there, and the images of those that were left out."""

    name: ClassVar[str] = "sugarcrepe"

    data: Path
    pairs: tuple[Pair, ...]
    missing: tuple[str, ...] = ()

    @classmethod
    def load(
        cls, data: Path, images: Path | None = None, allow_missing: bool = False
    ) -> SugarCrepe:
        """Reads and checks all pairs.

        Args:
            data: the folder with the seven files, or a .jsonl.
            images: the folder that file names are relative to; a .jsonl's own folder by default.
            allow_missing: leave out pairs without their image, and say so in the result.
        """
        if data.is_dir():
            pairs = _read_official(data, base.require_folder(images, cls.name))
        elif data.suffix == ".jsonl":
            pairs = _read_jsonl(data, base.require_folder(images or data.parent, cls.name))
        else:
            raise ValueError(
                f"sugarcrepe: {str(data)!r} is neither a folder with {CATEGORIES[0]}.json ... "
                f"{CATEGORIES[-1]}.json nor a .jsonl"
            )
        if not pairs:
            raise ValueError(f"sugarcrepe: {data} holds no pair")
        absent = {image for image in {pair.image for pair in pairs} if not image.is_file()}
        missing = tuple(str(pair.image) for pair in pairs if pair.image in absent)
        base.require_present(missing, "pairs", len(pairs), allow_missing)
        return cls(data, tuple(pair for pair in pairs if pair.image not in absent), missing)

    def run(self, encoder: Encoder) -> Result:
        """Scores each pair by cosine; a tie is wrong."""
        image_ND = encoder.encode_images(ImageSource.file(pair.image) for pair in self.pairs)
        captions = [pair.caption for pair in self.pairs]
        negatives = [pair.negative for pair in self.pairs]
        text_2ND = encoder.encode_texts(captions + negatives)
        positive_ND, negative_ND = text_2ND.split(len(self.pairs))
        correct_N = pair_correct(cosine(image_ND, positive_ND), cosine(image_ND, negative_ND))

        of_pair = [pair.category for pair in self.pairs]
        found = base.group_scores(correct_N, of_pair, _CHANCE)
        categories = [found[category] for category in CATEGORIES if category in found]
        groups = base.group_scores(
            correct_N, [category.partition("_")[0] for category in of_pair], _CHANCE
        )
        macro = Accuracy.macro([score.accuracy for score in categories])
        scores = (
            *categories,
            *(
                Score(score.name, score.accuracy, _CHANCE, "micro over its categories")
                for _, score in sorted(groups.items())
            ),
            Score("acc", Accuracy.of(correct_N), _CHANCE, "micro over all pairs"),
            Score("macro", macro, _CHANCE, f"mean of the {len(categories)} categories"),
        )
        return Result(
            self.name,
            base.SELECTION,
            str(self.data),
            scores,
            tuple(self._notes(found, encoder.equal_tokens(captions, negatives))),
            len(self.missing),
        )

    def _notes(self, found: dict[str, Score], ties: list[int]) -> list[str]:
        notes = []
        if ties:
            notes.append(f"{len(ties)} pairs {base.EQUAL_TOKENS}")
        if self.missing:
            notes.append(base.left_out_note(self.missing, "pairs"))
        absent = [category for category in CATEGORIES if category not in found]
        if absent:
            notes.append(f"no pairs of {', '.join(absent)}: the averages are over the others")
        return notes


def _read_official(folder: Path, images: Path) -> list[Pair]:
    files = {category: folder / f"{category}.json" for category in CATEGORIES}
    absent = [path.name for path in files.values() if not path.is_file()]
    if absent:
        raise ValueError(
            f"sugarcrepe: {folder} lacks {', '.join(absent)}; its averages are over all seven files"
        )
    pairs = []
    for category, path in files.items():
        # Keys are numbers with gaps (swap_obj has no 108), so they are not counted through.
        for key, value in base.mapping(base.read_json(path), str(path)).items():
            where = f"{path} item {key!r}"
            fields = base.mapping(value, where)
            pairs.append(
                Pair(
                    images / base.text(fields, "filename", where),
                    base.text(fields, "caption", where),
                    base.text(fields, "negative_caption", where),
                    category,
                )
            )
    return pairs


def _read_jsonl(path: Path, images: Path) -> list[Pair]:
    pairs = []
    for where, fields in base.read_jsonl(path):
        image = images / base.text(fields, "image", where)
        for number, value in enumerate(base.listing(fields, "sugarcrepe", where)):
            place = f"{where} pair {number}"
            item = base.mapping(value, place)
            category = base.text(item, "type", place)
            require_one_of(f"{place}: type", category, CATEGORIES)
            pairs.append(
                Pair(
                    image,
                    base.text(item, "caption", place),
                    base.text(item, "negative_caption", place),
                    category,
                )
            )
    return pairs
