"""Pairs as rows of InpaintCOCO's schema: what is told of the photo, and of the picture."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from hnpretrain.inpaint.licences import Licence
from hnpretrain.inpaint.pictures import Pictures, as_it_lies
from hnpretrain.inpaint.records import to_json
from hnpretrain.inpaint.selection import Pair
from hnpretrain.shards.images import check_header
from hnpretrain.shards.pairs_parquet import Image, PairRow

# Free-form values are JSON texts: a struct would have to have the same fields in all rows.
DETAILS = pa.struct(
    [
        ("id", pa.string()),  # the sample's key
        ("captions", pa.list_(pa.string())),  # all that are known of the photo
        ("source_caption", pa.string()),  # that which the pair's was made of
        ("noun", pa.string()),  # what the caption calls the thing
        ("category", pa.string()),  # what the masks' source calls it
        ("things", pa.int64()),  # how many of them the mask joins
        ("area", pa.float64()),  # of their mask, as a share of the photo
        ("image_license", pa.string()),
        ("license_url", pa.string()),
        ("page", pa.string()),
        ("author", pa.string()),
        ("meta", pa.string()),  # JSON: the source's own fields
    ]
)
NEW_DETAILS = pa.struct(
    [
        ("id", pa.string()),  # of the proposal
        ("candidate", pa.string()),
        ("prompt", pa.string()),  # the editor's, or the caption that it had to make true
        ("edit", pa.string()),
        ("source", pa.string()),
        ("target", pa.string()),
        ("editor", pa.string()),
        ("seed", pa.int64()),
        ("settings", pa.string()),  # JSON, as are the next three
        ("details", pa.string()),
        ("checks", pa.string()),
        ("reviewers", pa.string()),  # the verdict of each who judged
    ]
)


def row_of(
    number: int, pair: Pair, pictures: Pictures, captions: tuple[str, ...], max_pixels: int
) -> PairRow:
    """The row of a pair.

    Args:
        number: in the file.
        pair: whose.
        pictures: its own.
        captions: all that are known of the photo.
        max_pixels: largest width x height of a picture.
    """

    def image(data: bytes, name: str) -> Image:
        return Image(data, f"{number:06d}-{name}.{check_header(data, max_pixels)}")

    proposal, candidate = pair.proposal, pair.candidate
    licence = Licence.of(proposal.meta)
    prompt = str(candidate.details.get("prompt", proposal.new_caption))
    return PairRow(
        concept=proposal.concept,
        caption=pair.caption,
        image=image(as_it_lies(pictures.photo, max_pixels), "coco"),
        new_caption=pair.new_caption,
        new_image=image(pictures.image, "inpaint"),
        mask=image(pictures.changed, "mask"),
        worker=", ".join(pair.workers) or candidate.editor,
        details={
            "id": proposal.key,
            "captions": list(captions),
            "source_caption": proposal.source_caption,
            "noun": proposal.noun,
            "category": proposal.category,
            "things": proposal.things,
            "area": proposal.area,
            "image_license": licence.name or None,
            "license_url": licence.url or None,
            "page": licence.page or None,
            "author": licence.author or None,
            "meta": _json(proposal.meta),
        },
        new_details={
            "id": proposal.id,
            "candidate": candidate.id,
            "prompt": prompt.encode(errors="backslashreplace").decode(),
            "edit": proposal.edit,
            "source": proposal.source,
            "target": proposal.target,
            "editor": candidate.editor,
            "seed": candidate.seed,
            "settings": _json(candidate.settings),
            "details": _json(candidate.details),
            "checks": _json({name: to_json(check) for name, check in candidate.checks.items()}),
            "reviewers": _json(pair.verdicts),
        },
    )


def _json(value: Mapping[str, Any]) -> str:
    # ASCII: half a surrogate pair, which JSON can carry, is no text to Arrow.
    return json.dumps(dict(value), sort_keys=True)
