"""SugarCrepe++ (Dumpala et al. 2024, arXiv 2406.11171): two captions against one negative.

The official five files `replace_att.json` ... `swap_obj.json`, each `[{"id", "filename",
"caption", "caption2", "negative_caption"}, ...]`, with the COCO val2017 images. `caption` is
SugarCrepe's; `caption2` says the same in other words. Also their parent, where they are in `data/`
(the hub's layout).

Two scores, both as in the paper, which gives them for each of the five categories (such as
`itt/swap_obj`):
- `itt`, image to text: the image prefers both captions to the negative one;
- `tot`, text to text, no image: the two captions are nearer to each other than either is to the
  negative one.

In some items (replace_att 14) `caption2` is `caption` itself: no tie, since neither score compares
them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from hnpretrain.eval.benchmarks import reading
from hnpretrain.eval.benchmarks.base import About, By, Selection
from hnpretrain.eval.images import ImageSource
from hnpretrain.eval.items import Item, Rule, positives_beat_negative

CATEGORIES = ("replace_att", "replace_obj", "replace_rel", "swap_att", "swap_obj")

_CAPTIONS = ("caption", "caption2", "negative_caption")


def _text_margins(s_NCC: Tensor) -> Tensor:
    apart = torch.maximum(s_NCC[:, 0, 2], s_NCC[:, 1, 2])
    return (s_NCC[:, 0, 1] - apart)[:, None]


TOT = Rule(
    "tot",
    "the two captions are nearer to each other than to the negative one",
    applies=lambda images, captions: images == 1 and captions == len(_CAPTIONS),
    margins=_text_margins,
    chance=lambda *_: 1 / 3,  # one of three pairs is the nearest
    of_texts=True,
)


def read(data: Path, images: Path | None) -> Iterator[Item]:
    folder = reading.require_folder(images, "sugarcrepe_pp")
    if not data.is_dir():
        raise ValueError(
            f"sugarcrepe_pp: {str(data)!r} is not a folder with {CATEGORIES[0]}.json ... "
            f"{CATEGORIES[-1]}.json"
        )
    inner = data / "data"
    files = reading.files(inner if inner.is_dir() else data, CATEGORIES, "sugarcrepe_pp")
    for category, path in files.items():
        for number, (where, value) in enumerate(reading.entries(path)):
            fields = reading.mapping(value, where)
            yield Item(
                # Not the file's id: the position is unique even where an id is not.
                f"{category} {number}",
                (ImageSource.file(folder / reading.text(fields, "filename", where)),),
                tuple(reading.text(fields, key, where) for key in _CAPTIONS),
                {"category": category, "edit": category.partition("_")[0]},
            )


SUGARCREPE_PP = Selection(
    About(
        name="sugarcrepe_pp",
        title="SugarCrepe++ (Dumpala et al. 2024)",
        data="folder of replace_att.json ... swap_obj.json",
        images="COCO val2017",
        source="github.com/Sri-Harsha/scpp; images: cocodataset.org",
        licence="CC BY 4.0; images: each photo's own",
        hub="Aman-J/SugarCrepe_pp",
        files=("data/*.json",),
    ),
    read,
    (positives_beat_negative("itt", positives=2), TOT),
    (By("category"), By("edit", macro=False)),
)
