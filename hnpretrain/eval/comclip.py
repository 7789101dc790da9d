"""ComCLIP (Jiang et al. 2022, arXiv 2211.13854): parts of an image weighed by how well they fit.

For each word of a caption that has a part of the image, a sub-image shows that part alone, black
elsewhere and of the whole image's size. With g the image's feature, p_i a sub-image's and w_i its
words', all of unit norm, and t the caption's, the score is

    cos(t, g + sum_i a_i p_i)    with    a_i = cos(p_i, w_i) / sum_j cos(p_j, w_j).

That is the authors' code for Winoground (github.com/eric-ai-lab/ComCLIP, winoground/comclip.py),
which divides by the sum; it takes no softmax. Their other scripts leave features as long as the
model makes them. For CLIP the similarities lie above 0. For other models they need not: here one
below 0 counts as 0, and where none is above 0 the image's own feature is left.

Which parts a caption has: the authors let a language model find its objects (with attributes) and
relations, a captioner (GRiT) find boxes with labels, and GPT-3.5 tell which labels an object may
mean. An object's sub-image shows all its boxes, a relation's those of its subject and its object; a
word without a box gets the whole image as its sub-image. Here the parts are given, and one is used
if its words stand in the caption, one after the other and as whole words, in any case. A word
without a part has no say: what the caption's other words are is not known. Without any part both
give the plain cosine. Parts with the same words in one image make one sub-image; so a relation's
words are given twice, with the place of its subject and that of its object.

The file of parts has one line an image:

    {"image": "000000000790.jpg", "regions": [{"words": "black dog", "box": [270, 183, 325, 222]},
     {"words": "chair", "polygons": [[0, 114, 61, 114, 61, 200]]}, {"words": "cake", "mask":
     "cake.png"}]}

`image` is the end of the image's path, or the place of its row in a table. A box is left, top,
right and bottom; polygons x and y of each corner; a mask, which lies beside the file, a picture of
the image's size, black outside of the part. All are in pixels of the stored image.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from hnpretrain.eval.benchmarks import reading
from hnpretrain.eval.encode import BadImages, Encoder
from hnpretrain.eval.images import MAX_PIXELS, Identity, ImageSource, Shape
from hnpretrain.eval.items import Item, by_shape
from hnpretrain.eval.scorers import Cosine, Scores
from hnpretrain.shards.images import BadImage, decode_image

_KINDS = ("box", "mask", "polygons")
_WORD = re.compile(r"\w+(?:['-]\w+)*")


@dataclass(frozen=True)
class Part:
    """What some words mean in an image.

    Attributes:
        words: as they are encoded.
        shapes: where it is seen.
    """

    words: str
    shapes: tuple[Shape, ...]


class ComClip(Cosine):
    """The cosine of a caption with an image whose fitting parts weigh more.

    Without an image, and between captions, it is the cosine.

    Args:
        parts: of each image, by the end of its path or by its name.
        source: what names the parts in errors.
    """

    name = "comclip"

    def __init__(self, parts: Mapping[str, Sequence[Part]], source: str = "--regions") -> None:
        self._parts = parts
        self._source = source

    def scores(self, items: Sequence[Item], encoder: Encoder) -> Scores:
        """See Scorer.

        Raises:
            ValueError: no image has a line in the file, so that its names must be wrong.
        """
        plain = super().scores(items, encoder)
        uses = list(self._uses(items))
        if not uses:
            return plain
        images = _encode_images(uses, encoder)
        texts = list(dict.fromkeys(text for use in uses for text in use.texts))
        text_of = dict(zip(texts, encoder.encode_texts(texts), strict=True))
        for use in uses:
            composed_D = reweighted(
                images[use.image.identity],
                torch.stack([images[each.identity] for each in use.sub_images]),
                torch.stack([text_of[part.words] for part in use.parts]),
            )
            score = (composed_D * text_of[use.caption].double()).sum()
            plain[use.shape][use.place] = score.float()
        return plain

    def _uses(self, items: Sequence[Item]) -> Iterator[_Use]:
        """Images with captions that name a part of theirs."""
        any_known = False
        for shape, rows in by_shape(items).items():
            for place, row in enumerate(rows):
                for i, image in enumerate(items[row].images):
                    parts = self._of_image(image)
                    any_known |= parts is not None
                    for c, caption in enumerate(items[row].captions):
                        named = tuple(each for each in parts or () if occurs(each.words, caption))
                        if named:
                            yield _Use(shape, (place, i, c), image, caption, named)
        if not any_known:
            raise ValueError(
                f"{self._source} has a line for none of the images, such as "
                f"{items[0].images[0].name!r}; it names {next(iter(self._parts), None)!r}"
            )

    def _of_image(self, image: ImageSource) -> Sequence[Part] | None:
        """None if nothing is told of it."""
        steps = PurePosixPath(image.name).parts
        ends = ("/".join(steps[start:]) for start in range(len(steps)))
        return next(
            (self._parts[each] for each in (image.name, *ends) if each in self._parts), None
        )


@dataclass(frozen=True)
class _Use:
    """An image with a caption that names parts of it, and where their score stands."""

    shape: tuple[int, int]
    place: tuple[int, int, int]
    image: ImageSource
    caption: str
    parts: tuple[Part, ...]

    @property
    def sub_images(self) -> tuple[ImageSource, ...]:
        return tuple(replace(self.image, parts=part.shapes) for part in self.parts)

    @property
    def texts(self) -> tuple[str, ...]:
        return (self.caption, *(part.words for part in self.parts))


def reweighted(image_D: Tensor, parts_PD: Tensor, words_PD: Tensor) -> Tensor:
    """The unit vector (D, float64) of an image and P parts of it; all are given as unit vectors."""
    image_D, parts_PD = image_D.double(), parts_PD.double()
    fit_P = (parts_PD * words_PD.double()).sum(-1).clamp(min=0)
    if fit_P.sum() > 0:
        image_D = image_D + (fit_P / fit_P.sum()) @ parts_PD
    return functional.normalize(image_D, dim=0)


def occurs(words: str, caption: str) -> bool:
    """Whether the words stand in the caption: one after the other, whole, in any case."""
    return f" {' '.join(_split(words))} " in f" {' '.join(_split(caption))} "


def _split(text: str) -> list[str]:
    return _WORD.findall(text.casefold())


def _encode_images(uses: Sequence[_Use], encoder: Encoder) -> dict[Identity, Tensor]:
    """The features of all images and sub-images.

    Raises:
        BadImages: a part cannot be shown; it is told of the image, which the item has.
    """
    whole_of = {sub.identity: use.image for use in uses for sub in use.sub_images}
    sources = {each.identity: each for use in uses for each in (use.image, *use.sub_images)}
    try:
        features_ND = encoder.encode_images(sources.values())
    except BadImages as error:
        reasons = {
            (whole_of[identity].identity if identity in whole_of else identity): reason
            for identity, reason in error.reasons.items()
        }
        raise BadImages(reasons) from error
    return dict(zip(sources, features_ND, strict=True))


def read_regions(path: Path) -> dict[str, tuple[Part, ...]]:
    """The parts of each image in the file, by the image's name there.

    Raises:
        ValueError: the file is malformed; the line, the region and the field are named.
    """
    found: dict[str, tuple[Part, ...]] = {}
    for where, fields in reading.read_jsonl(path):
        image = reading.text(fields, "image", where)
        if image in found:
            raise ValueError(f"{where}: image {image!r} has a line already")
        shapes: dict[str, list[Shape]] = {}
        for number, value in enumerate(reading.listing(fields, "regions", where)):
            place = f"{where} region {number}"
            region = reading.mapping(value, place)
            words = " ".join(reading.text(region, "words", place).split())
            if not _split(words):
                raise ValueError(f"{place}: 'words' holds no word, got {words!r}")
            shapes.setdefault(words, []).extend(_read_shapes(region, path.parent, place))
        found[image] = tuple(Part(words, tuple(each)) for words, each in shapes.items())
    if not found:
        raise ValueError(f"{path} holds no image")
    return found


def _read_shapes(region: reading.Fields, folder: Path, where: str) -> Iterator[Shape]:
    given = [kind for kind in _KINDS if region.get(kind) is not None]
    if len(given) != 1:
        raise ValueError(f"{where}: one of {', '.join(_KINDS)} is needed, got {given or 'none'}")
    if given == ["box"]:
        yield Shape("box", _box(region["box"], where))
    elif given == ["mask"]:
        yield Shape("mask", mask=_mask(folder / reading.text(region, "mask", where), where))
    else:
        polygons = reading.listing(region, "polygons", where)
        if not polygons:
            raise ValueError(f"{where}: 'polygons' is empty")
        for number, polygon in enumerate(polygons):
            yield Shape("polygon", _polygon(polygon, f"{where} polygon {number}"))


def _box(value: Any, where: str) -> tuple[float, ...]:
    box = _numbers(value)
    if len(box) != 4 or box[0] >= box[2] or box[1] >= box[3]:
        raise ValueError(
            f"{where}: 'box' must be [left, top, right, bottom] with left < right and top < "
            f"bottom, got {value!r:.60}"
        )
    return box


def _polygon(value: Any, where: str) -> tuple[float, ...]:
    polygon = _numbers(value)
    if len(polygon) < 6 or len(polygon) % 2:
        raise ValueError(
            f"{where} must be [x, y, x, y, ...] of at least 3 corners, got {value!r:.60}"
        )
    return polygon


def _numbers(value: Any) -> tuple[float, ...]:
    """A list's numbers; nothing if it is no list of finite numbers."""
    if not isinstance(value, list):
        return ()
    known = [isinstance(each, int | float) and not isinstance(each, bool) for each in value]
    if not all(known) or not all(map(math.isfinite, value)):
        return ()
    return tuple(map(float, value))


def _mask(path: Path, where: str) -> bytes:
    try:
        data = path.read_bytes()
        decode_image(data, MAX_PIXELS)
    except OSError as error:
        raise ValueError(f"{where}: 'mask' {path} cannot be read: {error.strerror}") from error
    except BadImage as error:
        raise ValueError(f"{where}: 'mask' {path} is no picture: {error.detail}") from error
    return data
