"""Writes the concept world to disk, in the formats that the rest of the project reads.

- `write_source`: a folder of PNGs and `captions.jsonl`, a source for `hnpretrain shard build`.
- `write_pairs`: a parquet in InpaintCOCO's format, a benchmark for `hnpretrain eval`.
- `write_sheet`: one picture to look at.

Train scenes, test scenes and pairs come from different random streams (`scene.stream`), so nothing
in a test set was ever trained on. The same arguments give the same bytes, with the same versions
of Pillow and pyarrow. The jsonl or parquet appears last, whole.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
from PIL import Image, ImageDraw

from hnpretrain.shards import pairs_parquet, storage
from hnpretrain.shards.images import png_of
from hnpretrain.worlds.captions import captions_of
from hnpretrain.worlds.draw import render
from hnpretrain.worlds.pairs import CONCEPTS, Pair, sample_pair
from hnpretrain.worlds.scene import sample_scene, stream

CAPTIONS_FILE = "captions.jsonl"

_DETAILS = pa.struct(
    [("id", pa.int64()), ("captions", pa.list_(pa.string())), ("scene", pa.string())]
)
_NEW_DETAILS = pa.struct([("prompt", pa.string()), ("scene", pa.string())])


def write_source(
    folder: str | Path,
    scenes: int,
    seed: int = 0,
    image_size: int = 64,
    split: str = "train",
    captions: int = 5,
) -> Path:
    """Writes `scenes` pictures with captions: images/000000.png ... and captions.jsonl.

    A line of the jsonl is {"image": "images/000000.png", "captions": [...], "objects": ["car"],
    "scene": {...}}. Scene i depends on seed, split and i alone: a larger set begins with the
    smaller one. The jsonl appears last, whole; one that was there before is replaced.

    Args:
        folder: made if missing.
        scenes: how many.
        seed: of the set.
        image_size: side of the pictures in pixels.
        split: one of `scene.SPLITS`; no two share a scene.
        captions: a scene.

    Returns:
        The path of the jsonl.

    Raises:
        ValueError: a number is out of range or the split unknown.
    """
    if scenes < 1:
        raise ValueError(f"scene count {scenes}: at least 1 is needed")
    # Drawn once before anything is written: wrong arguments raise here.
    _record_and_picture(0, seed, image_size, split, captions)
    folder = Path(folder)
    final = folder / CAPTIONS_FILE
    (folder / "images").mkdir(parents=True, exist_ok=True)
    # Pictures are about to change under the old captions: they must not outlive them.
    final.unlink(missing_ok=True)
    with storage.write_whole(str(final)) as lines:
        for i in range(scenes):
            record, picture = _record_and_picture(i, seed, image_size, split, captions)
            (folder / record["image"]).write_bytes(picture)
            lines.write((json.dumps(record) + "\n").encode())
    return final


def _record_and_picture(
    i: int, seed: int, image_size: int, split: str, captions: int
) -> tuple[dict[str, Any], bytes]:
    rng = stream(seed, split, i)
    scene = sample_scene(rng)
    record = {
        "image": f"images/{i:06d}.png",
        "captions": captions_of(scene, rng, captions),
        "objects": [thing.kind for thing in scene.things],
        "scene": scene.to_json(),
    }
    return record, _png(render(scene, image_size))


def pairs_of(pairs_per_concept: int, seed: int = 0) -> Iterator[Pair]:
    """The pairs of a test set, concept by concept; pair i of a concept depends on no other.

    Raises:
        ValueError: the number is below 1.
    """
    if pairs_per_concept < 1:
        raise ValueError(f"pairs per concept {pairs_per_concept}: at least 1 is needed")
    for number, concept in enumerate(CONCEPTS):
        for i in range(pairs_per_concept):
            yield sample_pair(stream(seed, "pairs", number, i), concept)


def write_pairs(
    path: str | Path, pairs_per_concept: int, seed: int = 0, image_size: int = 64
) -> Path:
    """Writes test pairs as a parquet with InpaintCOCO's fields (one row a pair).

    See `shards.pairs_parquet`. The fourth concept, location, is not in the published set. The two
    `details` fields hold the scenes' facts as JSON.

    Args:
        path: of the parquet; its folder is made if missing. A file there is replaced, whole.
        pairs_per_concept: rows of each of object, color, size and location.
        seed: of the set.
        image_size: side of the pictures in pixels.

    Returns:
        The path.

    Raises:
        ValueError: a number is out of range.
    """
    path = Path(path)
    pairs = enumerate(pairs_of(pairs_per_concept, seed))
    rows = (_row(number, pair, image_size) for number, pair in pairs)
    pairs_parquet.write_pairs(str(path), rows, _DETAILS, _NEW_DETAILS)
    return path


def write_sheet(
    path: str | Path, columns: int = 6, seed: int = 0, image_size: int = 64, zoom: int = 2
) -> Path:
    """Writes one PNG to look at: two rows of train scenes with captions, one pair a concept.

    Raises:
        ValueError: a number is below 1.
    """
    if min(columns, zoom) < 1:
        raise ValueError(f"columns {columns} and zoom {zoom}: at least 1 is needed")
    cells: list[tuple[Image.Image, str]] = []
    for i in range(2 * columns):
        rng = stream(seed, "train", i)
        scene = sample_scene(rng)
        cells.append((render(scene, image_size), captions_of(scene, rng, 1)[0]))
    for i in range(columns):
        pair = _sheet_pair(seed, i)
        cells.append((render(pair.scene, image_size), f"{pair.concept}: {pair.caption}"))
        cells.append((render(pair.changed, image_size), f"{pair.concept}: {pair.changed_caption}"))
    side, text_height = image_size * zoom, 76
    rows = -(-len(cells) // columns)
    sheet = Image.new(
        "RGB", (columns * (side + 8) + 8, rows * (side + text_height + 8) + 8), "white"
    )
    draw = ImageDraw.Draw(sheet)
    for number, (image, text) in enumerate(cells):
        x = 8 + number % columns * (side + 8)
        y = 8 + number // columns * (side + text_height + 8)
        sheet.paste(image.resize((side, side), Image.Resampling.NEAREST), (x, y))
        draw.multiline_text((x, y + side + 2), textwrap.fill(text, side // 6), "black")
    path = Path(path)
    storage.write_bytes(str(path), _png(sheet))
    return path


def _sheet_pair(seed: int, i: int) -> Pair:
    number = i % len(CONCEPTS)
    return sample_pair(stream(seed, "pairs", number, i // len(CONCEPTS)), CONCEPTS[number])


def _row(number: int, pair: Pair, image_size: int) -> pairs_parquet.PairRow:
    def image(picture: Image.Image, name: str) -> pairs_parquet.Image:
        return pairs_parquet.Image(_png(picture), f"{number:06d}-{name}.png")

    return pairs_parquet.PairRow(
        concept=pair.concept,
        caption=pair.caption,
        image=image(render(pair.scene, image_size), "coco"),
        new_caption=pair.changed_caption,
        new_image=image(render(pair.changed, image_size), "inpaint"),
        mask=image(pair.mask(image_size), "mask"),
        worker="hnpretrain.worlds",
        details={
            "id": number,
            "captions": [pair.caption],
            "scene": json.dumps(pair.scene.to_json()),
        },
        new_details={
            "prompt": pair.changed_caption,
            "scene": json.dumps(pair.changed.to_json()),
        },
    )


def _png(image: Image.Image) -> bytes:
    return png_of(image, level=3)
