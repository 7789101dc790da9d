"""`inpaint sheet`: pairs on one picture, to look at: photo, edited picture, their captions."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from hnpretrain.inpaint.folder import Folder
from hnpretrain.inpaint.records import Candidate
from hnpretrain.inpaint.selection import Pair
from hnpretrain.shards import storage
from hnpretrain.shards.images import BadImage, decode_image, png_of

_SIDE = 224  # of the square that a picture is fitted into
_GAP = 8
_LINE = 12
_LINES = 5  # of text below a pair


def write_sheet(
    folder: Folder,
    path: Path,
    pairs: Sequence[Pair],
    columns: int,
    max_pixels: int,
) -> None:
    """Writes pairs as a PNG, row by row.

    Args:
        pairs: of the folder; at least one.
        columns: pairs a row.

    Raises:
        ValueError: there is no pair, or a picture is damaged.
    """
    if not pairs:
        raise ValueError(f"{folder.root} has no pair to show")
    font = ImageFont.load_default(10)
    width = 2 * _SIDE + 2 * _GAP
    height = _SIDE + _LINES * _LINE + _GAP
    rows = -(-len(pairs) // columns)
    sheet = Image.new("RGB", (min(columns, len(pairs)) * width + _GAP, rows * height), "white")
    draw = ImageDraw.Draw(sheet)
    for number, pair in enumerate(pairs):
        proposal, candidate = pair.proposal, pair.candidate
        x, y = _GAP + number % columns * width, number // columns * height
        for offset, name in ((0, proposal.photo), (_SIDE + 2, candidate.image)):
            sheet.paste(_fitted(folder, name, max_pixels), (x + offset, y))
        title = f"{number + 1} {proposal.concept} by {candidate.editor}"
        title += "" if candidate.passed else " (fails " + _failed(candidate) + ")"
        lines = [title, *textwrap.wrap("- " + pair.caption, 84)[:2]]
        lines += textwrap.wrap("+ " + pair.new_caption, 84)[:2]
        draw.multiline_text((x, y + _SIDE + 2), "\n".join(lines), "black", font, spacing=1)
    storage.write_bytes(str(path), png_of(sheet))


def _fitted(folder: Folder, name: str, max_pixels: int) -> Image.Image:
    try:
        image = decode_image(folder.path(name).read_bytes(), max_pixels)
    except BadImage as error:
        raise ValueError(f"{folder.path(name)}: {error}") from error
    image.thumbnail((_SIDE, _SIDE))
    return image


def _failed(candidate: Candidate) -> str:
    return ", ".join(name for name, check in candidate.checks.items() if not check.passed)
