"""EqBen (Wang et al. 2023, arXiv 2303.14465): two images a small visual change apart.

A json, a list of `{"image0", "image1", "caption0", "caption1"}`, whose images are paths under the
image folder that begin with the source data set (`eqbenag/...`). The authors' files of this form:
- `private_info_global.json`: the full set, about 250,000 items with 100 GB of images;
- `eqben_subset_10percent_final.json`: a tenth of it, in random order;
- `all_select.json`: EqBen-Mini (eqben_vllm.zip).
Keys may be written `image_0`, `caption_0`; a caption may be a list, of which the authors take the
first. `ann_json_finegrained_random.json` holds single pairs in random order, without what belongs
together: it is refused.

Frames of eqbenyoucook2 are `.npy` files: height x width x 3 bytes in the order blue, green, red.

The paper tells `text`, `image` and `group` for each source: `group/eqbenag` ... `group/eqbensd`.
Mini's tables tell them for all items together, and take the three sets that Kubric rendered as one:
`group/eqbenkubric`. Of the full set more than three quarters are eqbenag's, so that its micro
average says little else; `group/source-macro` weighs the sources alike.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path, PurePosixPath
from tokenize import TokenError

import numpy as np
from PIL import Image

from hnpretrain.eval.benchmarks import reading
from hnpretrain.eval.benchmarks.base import About, By, Selection
from hnpretrain.eval.images import MAX_PIXELS, ImageSource
from hnpretrain.eval.items import WINOGROUND, Item

_KUBRIC = "eqbenkubric"


def read(data: Path, images: Path | None) -> Iterator[Item]:
    folder = reading.require_folder(images or data.parent / "images", "eqben")
    for number, (where, value) in enumerate(reading.entries(data)):
        fields = reading.mapping(value, where)
        files = [_text(fields, "image", each, where) for each in (0, 1)]
        yield Item(
            f"{number} {files[0]}",
            tuple(_source(folder / file) for file in files),
            tuple(_text(fields, "caption", each, where) for each in (0, 1)),
            _groups(files[0], where),
        )


def _text(fields: reading.Fields, what: str, number: int, where: str) -> str:
    """`image0` or `image_0`, and so on; the first of a list."""
    keys = (f"{what}{number}", f"{what}_{number}")
    key = next((each for each in keys if each in fields), keys[0])
    value = fields.get(key)
    if isinstance(value, list) and value:
        return reading.text({key: value[0]}, key, where)
    return reading.text(fields, key, where)


def _groups(file: str, where: str) -> Mapping[str, str]:
    folder, *rest = PurePosixPath(file).parts
    if not rest:
        raise ValueError(
            f"{where}: an image's path must begin with its source data set, such as eqbenag/, got "
            f"{file!r}"
        )
    joined = {"engine": _KUBRIC} if folder.startswith(f"{_KUBRIC}_") else {}
    return {"source": folder, **joined}


def _source(path: Path) -> ImageSource:
    if path.suffix == ".npy":
        return ImageSource(str(path), partial(_read_frame, path), path)
    return ImageSource.file(path)


def _read_frame(path: Path) -> bytes:
    """A frame stored as an array, as an image file's bytes.

    Raises:
        ValueError: it is no such array.
    """
    # The header is read by itself: it may promise more than there is memory, or objects.
    with path.open("rb") as file:
        try:
            version = np.lib.format.read_magic(file)
            read_header = {
                (1, 0): np.lib.format.read_array_header_1_0,
                (2, 0): np.lib.format.read_array_header_2_0,
            }[version]
            shape, by_columns, dtype = read_header(file)
        # numpy parses the header with Python's own tokenizer, whose errors pass through.
        except (ValueError, EOFError, KeyError, SyntaxError, TokenError) as error:
            raise ValueError(f"image {path} cannot be read: it is no array ({error})") from error
        pixels = math.prod(shape[:2])
        if dtype != np.uint8 or by_columns or len(shape) != 3 or shape[2] != 3:
            raise ValueError(
                f"image {path}: bytes of height x width x 3 are needed, got {dtype} of shape "
                f"{shape}"
            )
        if not 0 < pixels <= MAX_PIXELS:
            raise ValueError(f"image {path}: {pixels} pixels; from 1 to {MAX_PIXELS} are read")
        data = file.read(3 * pixels)
    if len(data) < 3 * pixels:
        raise ValueError(f"image {path} is cut short: {len(data)} of its {3 * pixels} bytes")
    frame_HWC = np.frombuffer(data, np.uint8).reshape(shape)
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(frame_HWC[:, :, ::-1])).save(buffer, "BMP")
    return buffer.getvalue()


EQBEN = Selection(
    About(
        name="eqben",
        title="EqBen (Wang et al. 2023)",
        data="private_info_global.json, eqben_subset_10percent_final.json or Mini's "
        "all_select.json",
        images="the folder that holds eqbenag, eqbensd, ... (the folder images beside DATA if not "
        "given)",
        source="github.com/Wangt-CN/EqBen",
        licence="not stated",
    ),
    read,
    WINOGROUND,
    (By("source"), By("engine", macro=False)),
)
