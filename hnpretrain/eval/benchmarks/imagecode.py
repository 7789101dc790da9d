"""ImageCoDe (Krojer et al. 2022, arXiv 2203.15867): which of ten similar images is described.

Official files `valid_data.json`, `test_data.json`: `{SET: {"IMAGE INDEX": DESCRIPTION, ...}, ...}`.
A set is a folder of ten images. `test_data_unlabeled.json` has no indices and cannot be scored.

Images are `imgN.jpg`. In sets from videos N is the number of a frame, not 0 to 9: as in the
authors' code the index counts the images in the order of N. So an index means nothing in a set that
lacks an image, and none of its descriptions is scored then. Sets from Open Images have
`open-images` in their name and are static, all others are frames of videos.

The paper's numbers are `acc`, `acc/video` and `acc/static`; most sets are from videos.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from hnpretrain.eval.benchmarks import reading
from hnpretrain.eval.benchmarks.base import About, By, Selection
from hnpretrain.eval.images import ImageSource
from hnpretrain.eval.items import Item, choose_image

_IMAGES = 10
_FILE = re.compile(r"img(\d+)\.jpg")
_STATIC = "open-images"


def read(data: Path, images: Path | None) -> Iterator[Item]:
    folder = reading.require_folder(images, "imagecode")
    for name, value in reading.mapping(reading.read_json(data), str(data)).items():
        where = f"{data} set {name!r}"
        if isinstance(value, list):
            raise ValueError(
                f"{where}: image indices are needed, got a list; {data.name} is an unlabeled file"
            )
        descriptions = reading.mapping(value, where)
        sources = _images(folder / name, where)
        for index in descriptions:
            right = _index(index, where)
            # The order is that of `Item`: the right one first.
            chosen = (sources[right], *sources[:right], *sources[right + 1 :])
            yield Item(
                f"{name} {index}",
                chosen,
                (reading.text(descriptions, index, where).strip(),),
                {"source": "static" if _STATIC in name else "video"},
            )


def _images(folder: Path, where: str) -> list[ImageSource]:
    """The ten images of a set; for each that is not there, one that is missing."""
    found = sorted(
        (int(match[1]), path)
        for path in folder.glob("img*.jpg")
        if (match := _FILE.fullmatch(path.name))
    )
    if len(found) > _IMAGES:
        raise ValueError(f"{where}: {_IMAGES} images are needed, {folder} has {len(found)}")
    paths = [path for _, path in found]
    absent = range(len(found) + 1, _IMAGES + 1)
    paths += [folder / f"img*.jpg number {number} of {_IMAGES}" for number in absent]
    return [ImageSource.file(path) for path in paths]


def _index(key: str, where: str) -> int:
    if not key.isdecimal() or int(key) >= _IMAGES:
        raise ValueError(f"{where}: an image index must be 0 to {_IMAGES - 1}, got {key!r}")
    return int(key)


IMAGECODE = Selection(
    About(
        name="imagecode",
        title="ImageCoDe (Krojer et al. 2022)",
        data="valid_data.json or test_data.json",
        images="folder of the image sets, each a folder of ten images",
        source="github.com/McGill-NLP/imagecode; images: zenodo.org/record/6518944",
        licence="MIT; images: their sources' own",
    ),
    read,
    (choose_image(),),
    (By("source", macro=False),),
)
