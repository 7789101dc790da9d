"""One HTML page of samples with their images, for a browser: no network, nothing beside the file.

1. Each image becomes a thumbnail inside the page; one that cannot be decoded is named as such.
2. Captions and negatives are cut where their marks begin and end (`edits.changed_pieces`).
3. The template escapes all of it. Should it ever fail to, the page's policy still forbids every
   script and style but the page's own two, by their hashes, and every request.
"""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Iterable
from importlib import resources
from typing import Any

import jinja2
import markupsafe

from hnpretrain.shards import storage
from hnpretrain.shards.images import BadImage, decode_image
from hnpretrain.shards.index import Index
from hnpretrain.shards.schema import Caption, Sample
from shard_tools.edits import Span, changed_pieces

# Longer side of a thumbnail, in pixels.
_THUMBNAIL = 320
_MAX_PIXELS = 10**8
_JPEG_QUALITY = 80


def write_page(
    path: str, folder: str, index: Index, seed: int, drawn: Iterable[tuple[str, Sample]]
) -> None:
    """Writes the page.

    Args:
        path: file or URL of the page.
        folder: the data set's, named in the page.
        index: the data set's.
        seed: of the draw, named in the page.
        drawn: (shard name, sample), as `draw_samples` yields them.
    """
    samples = [_describe(shard, sample) for shard, sample in drawn]
    css, js = (_read(name) for name in ("preview.css", "preview.js"))
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("shard_tools", "page"), autoescape=True
    )
    page = environment.get_template("preview.html.j2").render(
        policy=f"default-src 'none'; img-src data:; style-src {_hash(css)}; "
        f"script-src {_hash(js)}; base-uri 'none'; form-action 'none'",
        css=markupsafe.Markup(css),
        js=markupsafe.Markup(js),
        folder=folder,
        total=index.samples,
        seed=seed,
        filters={"concept": _names(samples, "concept"), "strategy": _names(samples, "strategy")},
        samples=samples,
    )
    # Half a surrogate pair, which JSON can carry, is no character.
    storage.write_bytes(path, page.encode("utf-8", "replace"))


def _names(samples: list[dict[str, Any]], kind: str) -> list[str]:
    """The concepts, or strategies, of all negatives shown."""
    captions = [caption for sample in samples for caption in sample["captions"]]
    return sorted({negative[kind] for caption in captions for negative in caption["negatives"]})


def _read(name: str) -> str:
    return (resources.files("shard_tools") / "page" / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _describe(shard: str, sample: Sample) -> dict[str, Any]:
    described: dict[str, Any] = {
        "key": sample.key,
        "shard": shard,
        "size": f"{len(sample.image) / 1e3:.0f} kB {sample.extension}",
        "captions": [_describe_caption(caption) for caption in sample.captions],
    }
    try:
        return described | _thumbnail(sample.image)
    except BadImage as error:
        return described | {"broken": str(error)}


def _thumbnail(data: bytes) -> dict[str, Any]:
    image = decode_image(data, _MAX_PIXELS)
    image.thumbnail((_THUMBNAIL, _THUMBNAIL))
    jpeg = io.BytesIO()
    image.save(jpeg, "JPEG", quality=_JPEG_QUALITY, optimize=True)
    return {
        "picture": f"data:image/jpeg;base64,{base64.b64encode(jpeg.getvalue()).decode()}",
        "width": image.width,
        "height": image.height,
    }


def _describe_caption(caption: Caption) -> dict[str, Any]:
    marks: list[tuple[Span, str, str]] = []
    negatives = []
    for number, negative in enumerate(caption.negatives):
        old, new = changed_pieces(caption.text, negative)
        marks += [(span, str(number), negative.concept) for span in old]
        pieces = _cut(negative.text, [(span, str(number), negative.concept) for span in new])
        negatives.append(
            {"pieces": pieces, "concept": negative.concept, "strategy": negative.strategy}
        )
    return {"pieces": _cut(caption.text, marks), "negatives": negatives}


def _cut(text: str, marks: list[tuple[Span, str, str]]) -> list[dict[str, Any]]:
    """The text in pieces, each with the edits that touch it ("0 2") and the first one's concept.

    Ranges may overlap: a swap covers words that other negatives replace.
    """
    cuts = sorted({0, len(text), *(place for span, _, _ in marks for place in span)})
    empty = {span[0] for span, _, _ in marks if span[0] == span[1]}
    pieces = []
    for start, end in zip(cuts, [*cuts[1:], len(text)], strict=True):
        if start in empty:
            pieces.append(_piece("", start, start, marks))
        if start < end:
            pieces.append(_piece(text[start:end], start, end, marks))
    return pieces


def _piece(text: str, start: int, end: int, marks: list[tuple[Span, str, str]]) -> dict[str, Any]:
    its = [
        (number, concept)
        for span, number, concept in marks
        if (span[0] <= start and end <= span[1] and (span == (start, end) or start < end))
    ]
    edits = " ".join(number for number, _ in its)
    return {"text": text, "edits": edits or None, "concept": its[0][1] if its else ""}
