"""ARO (Yuksekgonul et al. 2023, arXiv 2210.01936): attribution, relation and order of words.

VG-Relation and VG-Attribution. The official `visual_genome_relation.json` and
`visual_genome_attribution.json`, lists of `{"image_path", "bbox_x", "bbox_y", "bbox_w", "bbox_h",
"true_caption", "false_caption", ...}` with `relation_name` or `attributes` (two). The image is cut
to the box; the official code pads a box that reaches out of the image with black, here it ends at
the edge.
- The paper's number for relations is `acc/relation-macro`, with no minimum count. It leaves out
  the relations in LEFT_OUT, symmetric ones (`near`) above all; the file still has such cases.
  `acc/every-relation-macro` is the mean with them, for tables that do not leave them out.
- The paper's number for attributes is `acc/attributes-macro`: the mean over ordered pairs of
  attributes with at least 25 cases.

COCO-Order and Flickr30k-Order. A caption against four shuffles of its words: of nouns and
adjectives, of all but these, within trigrams, of trigrams. The authors publish the code that
draws them and no shuffles: every published number is of a draw of its own. The paper's number is
`acc`. Three forms are read:
- shuffles that are given, as `[{"image" or "image_path", "caption_options": [the true one, its
  shuffles ...]}, ...]`: what the official code has as `dataset.test_cases`, written as JSON;
- the same as parquet files with `images`, `correct_caption`, `hard_text_1` ... `hard_text_4` (the
  copies on the Hugging Face hub that MTEB uses);
- captions alone, as `[{"image", "caption": [...]}, ...]` (`coco_karpathy_test.json` and
  `flickr30k_test.json`, which the official code starts from) or Karpathy's json (its split `test`).
  Then THREE shuffles are made here, always the same: of trigrams, within trigrams, of all words.
  The two of nouns and adjectives are NOT made, they need a tagger: such scores are not the
  published task. They bear the group `made`, the others `given`.

Shuffles that read like the caption are left out, and so is a caption that has no other: the
official code takes the first of equal scores, the true one, so that such a shuffle costs nothing.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

from hnpretrain.eval.benchmarks import reading
from hnpretrain.eval.benchmarks.base import About, By, Selection
from hnpretrain.eval.benchmarks.retrieval import read_karpathy
from hnpretrain.eval.images import Box, ImageSource
from hnpretrain.eval.items import Item, choose_caption
from hnpretrain.eval.parquet import read_rows

T = TypeVar("T")

# The names that the authors' notebook takes out before it averages.
_LEFT_OUT = """
adjusting, attached to, between, bigger than, biting, boarding, brushing, chewing, cleaning,
climbing, close to, coming from, coming out of, contain, crossing, dragging, draped over, drinking,
drinking from, driving, driving down, driving on, eating from, eating in, enclosing, exiting,
facing, filled with, floating in, floating on, flying, flying above, flying in, flying over, flying
through, full of, going down, going into, going through, grazing in, growing in, growing on,
guiding, hanging from, hanging in, hanging off, hanging over, higher than, holding onto, hugging, in
between, jumping off, jumping on, jumping over, kept in, larger than, leading, leaning over,
leaving, licking, longer than, looking in, looking into, looking out, looking over, looking through,
lying next to, lying on top of, making, mixed with, mounted on, moving, on the back of, on the edge
of, on the front of, on the other side of, opening, painted on, parked at, parked beside, parked by,
parked in, parked in front of, parked near, parked next to, perched on, petting, piled on, playing,
playing in, playing on, playing with, pouring, reaching for, reading, reflected on, riding on,
running in, running on, running through, seen through, sitting behind, sitting beside, sitting by,
sitting in front of, sitting near, sitting next to, sitting under, skiing down, skiing on, sleeping
in, sleeping on, smiling at, sniffing, splashing, sprinkled on, stacked on, standing against,
standing around, standing behind, standing beside, standing in front of, standing near, standing
next to, staring at, stuck in, surrounding, swimming in, swinging, talking to, topped with,
touching, traveling down, traveling on, tying, typing on, underneath, wading in, waiting for,
walking across, walking by, walking down, walking next to, walking through, working in, working on,
worn on, wrapped around, wrapped in, by, of, near, next to, with, beside, on the side of, around
"""
LEFT_OUT = frozenset(" ".join(_LEFT_OUT.split()).split(", "))

MAX_WORDS = 30

_SEED = 0
_DRAWS = 100
_REMOVED = str.maketrans(dict.fromkeys('.!"()*#:;~', " "))
_SHUFFLES = tuple(f"hard_text_{number}" for number in range(1, 5))


def read_relation(data: Path, images: Path | None) -> Iterator[Item]:
    folder = reading.require_folder(images or _beside(data), "aro_relation")
    for name, fields, where in _cases(data, "visual_genome_relation.json"):
        relation = reading.text(fields, "relation_name", where)
        groups = {"every-relation": relation}
        if relation not in LEFT_OUT:
            groups["relation"] = relation
        yield _genome_item(name, folder, fields, where, groups)


def read_attribution(data: Path, images: Path | None) -> Iterator[Item]:
    folder = reading.require_folder(images or _beside(data), "aro_attribution")
    for name, fields, where in _cases(data, "visual_genome_attribution.json"):
        attributes = reading.texts(fields, "attributes", where)
        if len(attributes) != 2:
            raise ValueError(f"{where}: 'attributes' must be two strings, got {attributes!r:.60}")
        groups = {"attributes": "_".join(attributes)}
        yield _genome_item(name, folder, fields, where, groups)


def read_order(what: str, data: Path, images: Path | None) -> Iterator[Item]:
    """The items of COCO-Order or Flickr30k-Order.

    Args:
        what: the benchmark's name, for errors.
        data, images: as its `About` tells.
    """
    if data.is_dir() or data.suffix == ".parquet":
        reading.refuse_folder(images, data, what)
        cases = _parquet_cases(data, what)
    else:
        cases = _json_cases(data, reading.require_folder(images, what))
    for number, (image, options, shuffles) in enumerate(cases):
        distinct = tuple(dict.fromkeys(options))
        if len(distinct) > 1:
            yield Item(f"caption {number}", (image,), distinct, {"shuffles": shuffles})


_Case = tuple[ImageSource, Sequence[str], str]
"""An image, the true caption and its shuffles, and whether these are given or made."""


def _parquet_cases(data: Path, what: str) -> Iterator[_Case]:
    columns = ("correct_caption", *_SHUFFLES)
    for row in read_rows(data, what, columns, ("images",)):
        options = [reading.text(row.fields, column, row.where) for column in columns]
        yield row.images["images"], options, "given"


def _json_cases(path: Path, images: Path) -> Iterator[_Case]:
    value = reading.read_json(path)
    if isinstance(value, dict) and "images" in value:
        for item in read_karpathy(reading.listing(value, "images", str(path)), path, images):
            yield from _made_cases(item.image, item.captions)
        return
    if not isinstance(value, list):
        raise ValueError(
            f"{path}: a list of images with 'caption_options' or 'caption' is needed, or "
            f"Karpathy's json ('images'), got {type(value).__name__}"
        )
    for number, each in enumerate(value):
        where = f"{path} item {number}"
        fields = reading.mapping(each, where)
        key = "image" if "image" in fields else "image_path"
        image = ImageSource.file(images / reading.text(fields, key, where))
        if "caption_options" in fields:
            options = reading.texts(fields, "caption_options", where)
            if len(options) < 2:
                raise ValueError(f"{where}: 'caption_options' must hold a caption and its shuffles")
            yield image, options, "given"
        else:
            yield from _made_cases(image, reading.texts(fields, "caption", where))


def _made_cases(image: ImageSource, captions: Iterable[str]) -> Iterator[_Case]:
    for caption in captions:
        yield image, made_options(caption), "made"


def made_options(caption: str) -> list[str]:
    """A caption and the shuffles of its words that need no tagger, always the same for it.

    All are in lower case, without . ! " ( ) * # : ; ~ and cut to MAX_WORDS, as the official code
    has them. That code splits words from commas and 's in the shuffles alone, which gives them
    away; here all are made of the same words.

    Returns:
        The true one; its trigrams shuffled; shuffled within trigrams; all words shuffled. A
        shuffle that cannot differ (of a single trigram) equals the true one.
    """
    words = caption.lower().translate(_REMOVED).split()[:MAX_WORDS]
    trigrams = [words[start : start + 3] for start in range(0, len(words), 3)]
    generator = random.Random(f"{_SEED} {caption}")
    draws: tuple[Callable[[], list[str]], ...] = (
        lambda: [word for trigram in _shuffled(trigrams, generator) for word in trigram],
        lambda: [word for trigram in trigrams for word in _shuffled(trigram, generator)],
        lambda: _shuffled(words, generator),
    )
    return [" ".join(words), *(" ".join(_other(words, draw)) for draw in draws)]


def _other(words: list[str], draw: Callable[[], list[str]]) -> list[str]:
    """What `draw` gives, another order than `words` if it has one."""
    for _ in range(_DRAWS):
        drawn = draw()
        if drawn != words:
            return drawn
    return words


def _shuffled(values: Sequence[T], generator: random.Random) -> list[T]:
    # Of all of its methods, random() alone is promised to stay the same in later Pythons.
    return sorted(values, key=lambda _: generator.random())


def _beside(data: Path) -> Path:
    return (data if data.is_dir() else data.parent) / "images"


def _cases(data: Path, file: str) -> Iterator[tuple[str, reading.Fields, str]]:
    """The name, the fields and the place of each case."""
    path = data / file if data.is_dir() else data
    for number, (where, value) in enumerate(reading.entries(path)):
        yield f"case {number}", reading.mapping(value, where), where


def _genome_item(
    name: str, images: Path, fields: reading.Fields, where: str, groups: dict[str, str]
) -> Item:
    captions = tuple(reading.text(fields, key, where) for key in ("true_caption", "false_caption"))
    path = images / reading.text(fields, "image_path", where)
    return Item(name, (ImageSource.file(path, _box(fields, where)),), captions, groups)


def _box(fields: reading.Fields, where: str) -> Box:
    left, top, width, height = (
        reading.number(fields, f"bbox_{key}", where) for key in ("x", "y", "w", "h")
    )
    if width <= 0 or height <= 0:
        raise ValueError(f"{where}: 'bbox_w' and 'bbox_h' must be above 0, got {width}, {height}")
    return left, top, left + width, top + height


_SOURCE = "github.com/mertyg/vision-language-models-are-bows"
_GENOME_IMAGES = "folder of the Visual Genome images (images/ beside the file if not given)"
_GENOME_LICENCE = "MIT; images: Visual Genome's, CC BY 4.0"
_ORDER_DATA = (
    "JSON or parquet files of captions with their shuffles; or captions alone (three shuffles "
    "are made, not the published four)"
)
_ORDER_IMAGES = "folder that the file's paths start from; none with parquet files"

ARO_RELATION = Selection(
    About(
        name="aro_relation",
        title="ARO VG-Relation (Yuksekgonul et al. 2023)",
        data="visual_genome_relation.json or its folder",
        images=_GENOME_IMAGES,
        source=_SOURCE,
        licence=_GENOME_LICENCE,
    ),
    read_relation,
    (choose_caption(),),
    (By("relation"), By("every-relation", told=False)),
)

# Pairs of attributes are not told one by one: there are over a hundred, beside the small ones.
ARO_ATTRIBUTION = Selection(
    About(
        name="aro_attribution",
        title="ARO VG-Attribution (Yuksekgonul et al. 2023)",
        data="visual_genome_attribution.json or its folder",
        images=_GENOME_IMAGES,
        source=_SOURCE,
        licence=_GENOME_LICENCE,
    ),
    read_attribution,
    (choose_caption(),),
    (By("attributes", told=False, at_least=25),),
)

ARO_COCO_ORDER = Selection(
    About(
        name="aro_coco_order",
        title="ARO COCO-Order (Yuksekgonul et al. 2023)",
        data=_ORDER_DATA,
        images=_ORDER_IMAGES,
        source=f"{_SOURCE}; images: cocodataset.org (val2014)",
        licence="MIT; captions: CC BY 4.0; images: each photo's own",
        hub="mteb/ARO-COCO-order",
        files=("data/test-*.parquet",),
    ),
    partial(read_order, "aro_coco_order"),
    (choose_caption(),),
    (By("shuffles", macro=False),),
)

ARO_FLICKR_ORDER = Selection(
    About(
        name="aro_flickr_order",
        title="ARO Flickr30k-Order (Yuksekgonul et al. 2023)",
        data=_ORDER_DATA,
        images=_ORDER_IMAGES,
        source=f"{_SOURCE}; images: shannon.cs.illinois.edu/DenotationGraph",
        licence="MIT; captions and images: for research",
        hub="mteb/ARO-Flickr-Order",
        files=("data/test-*.parquet",),
    ),
    partial(read_order, "aro_flickr_order"),
    (choose_caption(),),
    (By("shuffles", macro=False),),
)
