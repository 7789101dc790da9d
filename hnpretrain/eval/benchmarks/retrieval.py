"""Retrieval: find the image of a caption among all images, and a caption of an image among all.

Four forms are read:
- `.jsonl`, one `{"image": FILE, "captions": [TEXT, ...]}` a line;
- COCO's captions json, `{"images": [{"id", "file_name"}], "annotations": [{"image_id",
  "caption"}]}`;
- Karpathy's json (COCO 5k, Flickr30k, Flickr8k), `{"images": [{"filename", "filepath"?, "split",
  "sentences": [{"raw"}]}]}`, of which the split `test` is taken;
- a folder of shards with an `index.json` (`hnpretrain shard build`, or `shard index`).
A json may be gzipped.

The scores have CLIP_benchmark's names; papers tell them as R@k both ways, k being 1, 5 and 10:
- `image_retrieval_recall@k`, of captions: its image is among the first k;
- `text_retrieval_recall@k`, of images: any of its captions is among the first k.
All captions are used (COCO 5k: 25,010), as CLIP and its followers do.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hnpretrain.eval.accuracy import Accuracy
from hnpretrain.eval.benchmarks import base, reading
from hnpretrain.eval.encode import Encoder
from hnpretrain.eval.images import ImageSource
from hnpretrain.eval.ranks import retrieval_chance, retrieval_ranks
from hnpretrain.eval.results import Outcome, Result, Score
from hnpretrain.eval.scorers import Scorer
from hnpretrain.eval.tars import read_tar
from hnpretrain.shards.index import read_index

KS = (1, 5, 10)
_SPLIT = "test"


@dataclass(frozen=True)
class CaptionedImage:
    """An image and its captions, at least one; `name` is what the data calls it."""

    name: str
    image: ImageSource
    captions: tuple[str, ...]


@dataclass(frozen=True)
class RetrievalKind:
    """See Kind."""

    about = base.About(
        name="retrieval",
        title="Retrieval among all images and all captions (Karpathy & Fei-Fei 2015)",
        data="COCO's captions json, Karpathy's json (its split test), a .jsonl of images with "
        "their captions, or a folder of shards with an index",
        images="the image folder (a .jsonl's own folder if not given; shards need none)",
        source="cs.stanford.edu/people/karpathy/deepimagesent; images: cocodataset.org, "
        "shannon.cs.illinois.edu/DenotationGraph",
        licence="captions: CC BY 4.0 (COCO); Flickr30k, Flickr8k: for research",
    )

    def load(self, data: Path, images: Path | None, partial: bool) -> Retrieval:
        """See Kind."""
        if data.is_dir():
            reading.refuse_folder(images, data, "retrieval")
            items = _read_shards(data)
        elif data.suffix == ".jsonl":
            items = _read_jsonl(data, reading.require_folder(images or data.parent, "retrieval"))
        else:
            items = _read_json(data, reading.require_folder(images, "retrieval"))
        _check(items, data)
        found = Retrieval(data, tuple(items), partial)
        base.refuse_missing(found.name, "images", found.items, _images, partial)
        return found


RETRIEVAL = RetrievalKind()


@dataclass(frozen=True)
class Retrieval:
    """The captioned images, of which some may be missing."""

    data: Path
    items: tuple[CaptionedImage, ...]
    partial: bool

    @property
    def name(self) -> str:
        return f"retrieval/{self.data.name.partition('.')[0]}"

    def run(self, encoder: Encoder, scorer: Scorer) -> Result:
        """R@1, 5 and 10 both ways; ties count against the model."""
        if scorer.name != "cosine":
            raise ValueError(f"{self.name}: a search takes the scorer cosine, not {scorer.name}")
        faults = base.Faults(self.name, "images", self.partial)
        items, image_ND = faults.encoded(
            self.items,
            _images,
            encoder,
            lambda items: encoder.encode_images(item.image for item in items),
        )
        text_MD = encoder.encode_texts(text for item in items for text in item.captions)
        captions_N = torch.tensor([len(item.captions) for item in items])
        image_of_text_M = torch.arange(len(items)).repeat_interleave(captions_N)
        device = encoder.device
        ranks = retrieval_ranks(image_ND.to(device), text_MD.to(device), image_of_text_M)

        searches = (
            (
                "image",
                (ranks.text_to_image, ranks.images_higher),
                "micro over captions: its image is among the first k",
            ),
            (
                "text",
                (ranks.image_to_text, ranks.texts_higher),
                "micro over images: any own caption is among the first k",
            ),
        )
        scores: list[Score] = []
        outcomes: dict[str, Outcome] = {}
        first = 0
        for way, (search, (rank_N, higher_N), average) in enumerate(searches):
            rows = range(first, first + len(rank_N))
            first += len(rank_N)
            for k in KS:
                name = f"{search}_retrieval_recall@{k}"
                chance = retrieval_chance(captions_N.tolist(), k)[way]
                ties = int(((rank_N >= k) & (higher_N < k)).sum())
                scores.append(Score(name, Accuracy.of(rank_N < k), chance, average, ties))
                outcomes[name] = Outcome(rows, (k - 0.5 - rank_N.double().cpu())[:, None])
        notes = [f"{len(items)} images, {len(text_MD)} captions", *faults.notes()]
        return Result(
            self.name,
            base.RETRIEVAL,
            str(self.data),
            tuple(scores),
            tuple(notes),
            faults.count,
            scorer.name,
            (*_caption_names(items), *(item.name for item in items)),
            {},
            outcomes,
        )


def _images(item: CaptionedImage) -> tuple[ImageSource, ...]:
    return (item.image,)


def _caption_names(items: tuple[CaptionedImage, ...]) -> list[str]:
    return [
        f"{item.name} caption {number}" for item in items for number in range(len(item.captions))
    ]


def _read_jsonl(path: Path, images: Path) -> list[CaptionedImage]:
    items = []
    for where, fields in reading.read_jsonl(path):
        captions = tuple(reading.texts(fields, "captions", where))
        file = reading.text(fields, "image", where)
        items.append(CaptionedImage(file, ImageSource.file(images / file), captions))
    return items


def _read_shards(folder: Path) -> list[CaptionedImage]:
    """The samples of shards that have a caption; each tar is read once, and its images again."""
    index = read_index(str(folder))
    tars = Path(index.folder_of_tars(str(folder)))
    items = []
    for shard in index.shards:
        for where, sample, image in read_tar(tars / shard.name, "retrieval"):
            try:
                texts = tuple(caption.text for caption in sample.captions())
            except ValueError as error:
                raise ValueError(f"retrieval: {where}: {error}") from error
            items.append(CaptionedImage(f"{shard.name} {sample.key}", image, texts))
    return items


def _read_json(path: Path, folder: Path) -> list[CaptionedImage]:
    fields = reading.mapping(reading.read_json(path), str(path))
    images = reading.listing(fields, "images", str(path))
    if "annotations" in fields:
        return _read_coco(images, reading.listing(fields, "annotations", str(path)), path, folder)
    if images and isinstance(images[0], dict) and "sentences" in images[0]:
        return list(read_karpathy(images, path, folder))
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
        image = reading.mapping(value, where)
        identity = _identity(image, "id", where)
        if identity in file_of:
            raise ValueError(f"{where}: id {identity} is taken by another image")
        file_of[identity] = reading.text(image, "file_name", where)
        captions_of[identity] = []
    for number, value in enumerate(annotations):
        where = f"{path} annotation {number}"
        annotation = reading.mapping(value, where)
        identity = _identity(annotation, "image_id", where)
        if identity not in captions_of:
            raise ValueError(f"{where}: image_id {identity} is not among the images")
        captions_of[identity].append(reading.text(annotation, "caption", where))
    return [
        CaptionedImage(file, ImageSource.file(folder / file), tuple(captions_of[identity]))
        for identity, file in file_of.items()
    ]


def read_karpathy(images: list[Any], path: Path, folder: Path) -> Iterator[CaptionedImage]:
    """The split `test` of Karpathy's json.

    Args:
        images: its images.
        path: of the json, for errors.
        folder: of the images, or the one that holds it.
    """
    for number, value in enumerate(images):
        where = f"{path} image {number}"
        image = reading.mapping(value, where)
        if reading.text(image, "split", where) != _SPLIT:
            continue
        captions = tuple(
            reading.text(reading.mapping(sentence, where), "raw", where)
            for sentence in reading.listing(image, "sentences", where)
        )
        name = reading.text(image, "filename", where)
        # COCO's json says val2014/NAME; the folder given may be val2014's parent or val2014.
        inner = folder / reading.text(image, "filepath", where) if "filepath" in image else folder
        file = (inner if inner.is_dir() else folder) / name
        yield CaptionedImage(name, ImageSource.file(file), captions)


def _identity(fields: Mapping[str, Any], key: str, where: str) -> int | str:
    value = fields.get(key)
    if not isinstance(value, int | str):
        raise ValueError(f"{where}: {key!r} must be a number or a string, got {value!r}")
    return value


def _check(items: list[CaptionedImage], data: Path) -> None:
    if not items:
        raise ValueError(f"retrieval: {data} holds no image to search (of split {_SPLIT!r})")
    repeated = [file for file, n in Counter(item.name for item in items).items() if n > 1]
    if repeated:
        raise ValueError(
            f"retrieval: {data} lists {repeated[0]} more than once; a search can have one answer"
        )
    bare = [item.name for item in items if not item.captions]
    if bare:
        raise ValueError(
            f"retrieval: {data} has no caption for {len(bare)} images, the first is {bare[0]}"
        )
