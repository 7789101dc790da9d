"""Retrieval: find the image of a caption among all images, and a caption of an image among all.

Three forms are read:
- `.jsonl`, one `{"image": FILE, "captions": [TEXT, ...]}` a line;
- COCO's captions json, `{"images": [{"id", "file_name"}], "annotations": [{"image_id",
  "caption"}]}`;
- Karpathy's json (COCO 5k, Flickr30k, Flickr8k), `{"images": [{"filename", "filepath"?, "split",
  "sentences": [{"raw"}]}]}`, of which the split `test` is taken.
A json may be gzipped.

An image counts as found if any of its captions is among the first k. All captions are used (COCO
5k: 25,010), as CLIP and its followers do.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from hnpretrain.eval.benchmarks import base
from hnpretrain.eval.encode import Encoder
from hnpretrain.eval.images import ImageSource
from hnpretrain.eval.report import Result, Score
from hnpretrain.eval.scorers import Accuracy, retrieval_chance, retrieval_ranks

KS = (1, 5, 10)
_SPLIT = "test"


@dataclass(frozen=True)
class CaptionedImage:
    """An image and its captions, at least one."""

    image: Path
    captions: tuple[str, ...]


@dataclass(frozen=True)
class Retrieval:
    """The captioned images that are there, and the images that were left out."""

    name: ClassVar[str] = "retrieval"

    data: Path
    items: tuple[CaptionedImage, ...]
    missing: tuple[str, ...] = ()

    @classmethod
    def load(cls, data: Path, images: Path | None = None, allow_missing: bool = False) -> Retrieval:
        """Reads and checks all captions.

        Args:
            data: a .jsonl, .json or .json.gz.
            images: the folder that file names are relative to; a .jsonl's own folder by default.
            allow_missing: leave out images that are not there, and say so in the result.
        """
        if data.suffix == ".jsonl":
            items = _read_jsonl(data, base.require_folder(images or data.parent, cls.name))
        else:
            items = _read_json(data, base.require_folder(images, cls.name))
        _check(items, data)
        present = tuple(item for item in items if item.image.is_file())
        missing = tuple(str(item.image) for item in items if not item.image.is_file())
        base.require_present(missing, "images", len(items), allow_missing)
        return cls(data, present, missing)

    def run(self, encoder: Encoder) -> Result:
        """R@1, 5 and 10 both ways; ties count against the model."""
        image_ND = encoder.encode_images(ImageSource.file(item.image) for item in self.items)
        text_MD = encoder.encode_texts(text for item in self.items for text in item.captions)
        captions_N = torch.tensor([len(item.captions) for item in self.items])
        image_of_text_M = torch.arange(len(self.items)).repeat_interleave(captions_N)
        device = encoder.device
        ranks = retrieval_ranks(image_ND.to(device), text_MD.to(device), image_of_text_M)

        of_images, of_texts = [], []
        for k in KS:
            image_chance, text_chance = retrieval_chance(captions_N.tolist(), k)
            of_images.append(
                Score(
                    f"image_retrieval_recall@{k}",
                    Accuracy.of(ranks.text_to_image < k),
                    image_chance,
                    "micro over captions: its image is among the first k",
                )
            )
            of_texts.append(
                Score(
                    f"text_retrieval_recall@{k}",
                    Accuracy.of(ranks.image_to_text < k),
                    text_chance,
                    "micro over images: any own caption is among the first k",
                )
            )
        notes = [f"{len(self.items)} images, {len(text_MD)} captions"]
        if self.missing:
            notes.append(base.left_out_note(self.missing, "images"))
        return Result(
            f"{self.name}/{self.data.name.partition('.')[0]}",
            base.RETRIEVAL,
            str(self.data),
            (*of_images, *of_texts),
            tuple(notes),
            len(self.missing),
        )


def _read_jsonl(path: Path, images: Path) -> list[CaptionedImage]:
    items = []
    for where, fields in base.read_jsonl(path):
        captions = base.listing(fields, "captions", where)
        named = ({"caption": caption} for caption in captions)
        texts = tuple(base.text(each, "caption", where) for each in named)
        items.append(CaptionedImage(images / base.text(fields, "image", where), texts))
    return items


def _read_json(path: Path, folder: Path) -> list[CaptionedImage]:
    fields = base.mapping(base.read_json(path), str(path))
    images = base.listing(fields, "images", str(path))
    if "annotations" in fields:
        return _read_coco(images, base.listing(fields, "annotations", str(path)), path, folder)
    if images and isinstance(images[0], dict) and "sentences" in images[0]:
        return _read_karpathy(images, path, folder)
    raise ValueError(
        f"retrieval: {path} is neither COCO's captions json ('images' and 'annotations') nor "
        "Karpathy's ('images' with 'sentences')"
    )


def _read_coco(
    images: list[Any], annotations: list[Any], path: Path, folder: Path
) -> list[CaptionedImage]:
    file_of: dict[object, str] = {}
    captions_of: dict[object, list[str]] = {}
    for number, value in enumerate(images):
        where = f"{path} image {number}"
        image = base.mapping(value, where)
        identity = _identity(image, "id", where)
        if identity in file_of:
            raise ValueError(f"{where}: id {identity} is taken by another image")
        file_of[identity] = base.text(image, "file_name", where)
        captions_of[identity] = []
    for number, value in enumerate(annotations):
        where = f"{path} annotation {number}"
        annotation = base.mapping(value, where)
        identity = _identity(annotation, "image_id", where)
        if identity not in captions_of:
            raise ValueError(f"{where}: image_id {identity} is not among the images")
        captions_of[identity].append(base.text(annotation, "caption", where))
    return [
        CaptionedImage(folder / file, tuple(captions_of[identity]))
        for identity, file in file_of.items()
    ]


def _read_karpathy(images: list[Any], path: Path, folder: Path) -> list[CaptionedImage]:
    items = []
    for number, value in enumerate(images):
        where = f"{path} image {number}"
        image = base.mapping(value, where)
        if base.text(image, "split", where) != _SPLIT:
            continue
        sentences = [
            base.text(base.mapping(sentence, where), "raw", where)
            for sentence in base.listing(image, "sentences", where)
        ]
        file = Path(base.text(image, "filename", where))
        # COCO's json says val2014/NAME; the folder given may be val2014's parent or val2014.
        if "filepath" in image:
            inner = folder / base.text(image, "filepath", where)
            file = inner / file if inner.is_dir() else folder / file
        else:
            file = folder / file
        items.append(CaptionedImage(file, tuple(sentences)))
    return items


def _identity(fields: Mapping[str, Any], key: str, where: str) -> int | str:
    value = fields.get(key)
    if not isinstance(value, int | str):
        raise ValueError(f"{where}: {key!r} must be a number or a string, got {value!r}")
    return value


def _check(items: list[CaptionedImage], data: Path) -> None:
    if not items:
        raise ValueError(f"retrieval: {data} holds no image to search (of split {_SPLIT!r})")
    repeated = [file for file, n in Counter(item.image for item in items).items() if n > 1]
    if repeated:
        raise ValueError(
            f"retrieval: {data} lists {repeated[0]} more than once; a search can have one answer"
        )
    bare = [item.image for item in items if not item.captions]
    if bare:
        raise ValueError(
            f"retrieval: {data} has no caption for {len(bare)} images, the first is {bare[0]}"
        )
