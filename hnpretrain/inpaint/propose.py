"""`inpaint propose`: from photos with captions to edits that make a caption false.

The same source and settings give the same bytes. What becomes no proposal is told with its reason,
in left_out.jsonl.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

from hnpretrain.config import require_one_of
from hnpretrain.inpaint.choosing import choose, ranked
from hnpretrain.inpaint.editors.donors import Cutting, DonorWriter
from hnpretrain.inpaint.finder import Finder
from hnpretrain.inpaint.folder import Folder
from hnpretrain.inpaint.found import Found, opened
from hnpretrain.inpaint.left_out import LeftOutLedger
from hnpretrain.inpaint.masks import BadMask, Masks
from hnpretrain.inpaint.photos import Photo
from hnpretrain.inpaint.records import Proposal, to_json
from hnpretrain.inpaint.working import working_alone
from hnpretrain.shards import storage
from hnpretrain.shards.marker import Reject
from shard_tools.negatives import NegativeSettings

CONCEPTS = ("color", "size", "object")
_STATED = ("color", "size")
_BATCH = 64  # photos whose captions are tagged together


def _edited_negatives() -> NegativeSettings:
    kinds = ("replace.color", "replace.size", "replace.object", "negate.noun")
    # Many, since few things of a photo have masks, and few categories donors.
    return NegativeSettings(mix=dict.fromkeys(kinds, 1.0), per_caption=60, draws=64)


@dataclass
class ProposeSettings:
    """Section `propose:`.

    Attributes:
        concepts: what may change: `color`, `size`, `object`.
        state: of these, `color` and `size` may be stated where no caption does: a caption that
            names a thing gets a word for what the photo shows, and so negatives.
        least_area: of a mask, as a share of the photo; smaller things are left out.
        most_area: likewise; larger ones are left out.
        per_thing: proposals of each thing of a photo for each kind of edit.
        per_photo: proposals of a photo.
        most: proposals in all, of the concepts in turns; 0 keeps all.
        weightless: whether proposals are held to what the editors without weights can do: things
            are cut out for `replace`, and only these come in the place of others; colors are those
            that `recolor` knows. Switch it off for `diffusion`.
        rebuild: whether proposals that are there are made anew; else that is an error. Candidates
            and decisions stay with the proposals that come out the same.
        negatives: how captions without negatives get some; see `shard build`.
    """

    concepts: list[str] = field(default_factory=lambda: list(CONCEPTS))
    state: list[str] = field(default_factory=lambda: list(_STATED))
    least_area: float = 0.01
    most_area: float = 0.5
    per_thing: int = 2
    per_photo: int = 12
    most: int = 0
    weightless: bool = True
    rebuild: bool = False
    negatives: NegativeSettings = field(default_factory=_edited_negatives)

    def __post_init__(self) -> None:
        if not self.concepts:
            raise ValueError(f"propose.concepts is empty: name some of {', '.join(CONCEPTS)}")
        for concept in self.concepts:
            require_one_of("propose.concepts", concept, CONCEPTS)
        for concept in self.state:
            require_one_of("propose.state", concept, _STATED)
        if not 0 < self.least_area < self.most_area <= 1:
            raise ValueError(
                f"propose.least_area={self.least_area}, propose.most_area={self.most_area}: "
                "shares of the photo, 0 < least_area < most_area <= 1"
            )
        for name, least in (("per_thing", 1), ("per_photo", 1), ("most", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"propose.{name}={getattr(self, name)}: at least {least}")


@dataclass(frozen=True)
class ProposeResult:
    """What was proposed.

    Attributes:
        photos: that were read.
        proposals: how many by `concept/edit`.
        donors: things that were cut out, by category.
        left_out: how many by reason.
    """

    photos: int
    proposals: Counter[str]
    donors: Counter[str]
    left_out: Counter[str]


def propose(
    folder: Folder,
    photos: Iterable[Photo | Reject],
    masks: Masks,
    settings: ProposeSettings,
    seed: int,
    max_pixels: int,
) -> ProposeResult:
    """Writes the folder's proposals, with masks, photos and donors.

    Args:
        photos: of the source.
        masks: where things are in them.
        seed: of all draws.
        max_pixels: largest width x height of a photo.

    Raises:
        ValueError: proposals are there already, or pictures are being made for them; the tagger is
            not installed; no photo can be read.
        OSError: the source could not be read, or the folder not be written.
    """
    folder.root.mkdir(parents=True, exist_ok=True)
    with working_alone(folder):
        return _propose(folder, photos, masks, settings, seed, max_pixels)


def _propose(
    folder: Folder,
    photos: Iterable[Photo | Reject],
    masks: Masks,
    settings: ProposeSettings,
    seed: int,
    max_pixels: int,
) -> ProposeResult:
    if folder.proposals_file.exists() and not settings.rebuild:
        raise ValueError(
            f"{folder.proposals_file} is there: go on with `hnpretrain inpaint generate`, name "
            "another output, or make it anew with propose.rebuild=true"
        )
    left_out = LeftOutLedger()
    areas = (settings.least_area, settings.most_area)
    finder = Finder(
        masks, settings.negatives, settings.concepts, settings.state, areas, seed, left_out
    )
    donors = DonorWriter(folder) if settings.weightless else None
    waiting: list[Found] = []
    read = 0
    for batch in _batches(photos, max_pixels, left_out):
        finder.look(batch)
        read += len(batch)
        for found in batch:
            if donors is not None:
                _cut_out(donors, found, finder.objects(found), masks, left_out)
            # Names tell the content, so that proposals that are there keep their files until the
            # new ones are.
            for name, data in found.files():
                if not folder.path(name).exists():
                    storage.write_bytes(str(folder.path(name)), data)
            found.forget()
            if found.options:
                waiting.append(found)
    if not read:
        storage.write_bytes(str(folder.left_out_file), b"".join(left_out.lines()))
        raise ValueError(f"not one photo could be read; {folder.left_out_file} says why")
    fit = donors.close() if donors is not None else None
    chosen = [
        proposal
        for found in waiting
        for proposal in choose(found, fit, settings.per_thing, settings.per_photo, seed, left_out)
    ]
    kept = ranked(chosen, settings.most, left_out)
    storage.write_bytes(str(folder.left_out_file), b"".join(left_out.lines()))
    lines = (json.dumps(to_json(proposal), ensure_ascii=False) + "\n" for proposal in kept)
    text = "".join(lines).encode(errors="backslashreplace")
    storage.write_bytes(str(folder.proposals_file), text)
    _sweep(folder, kept)
    return ProposeResult(
        read,
        Counter(f"{proposal.concept}/{proposal.edit}" for proposal in kept),
        Counter({category: len(keys) for category, keys in (fit or {}).items()}),
        left_out.counts,
    )


def _sweep(folder: Folder, proposals: Sequence[Proposal]) -> None:
    """Removes photos and masks that no proposal names."""
    named = {name for proposal in proposals for name in (proposal.photo, proposal.mask)}
    for kind in ("photos", "masks"):
        for path in (folder.root / kind).glob("*"):
            if f"{kind}/{path.name}" not in named:
                path.unlink()


def _batches(
    photos: Iterable[Photo | Reject], max_pixels: int, left_out: LeftOutLedger
) -> Iterator[list[Found]]:
    decoded = (
        photo if isinstance(photo, Reject) else opened(photo, max_pixels) for photo in photos
    )
    while batch := list(islice(decoded, _BATCH)):
        for item in batch:
            if isinstance(item, Reject):
                left_out.add(item.key, item.reason, item.detail)
        yield [item for item in batch if isinstance(item, Found)]


def _cut_out(
    writer: DonorWriter,
    found: Found,
    categories: Sequence[str],
    masks: Masks,
    left_out: LeftOutLedger,
) -> None:
    """Adds what can be pasted into other photos; what is not fit for that is no loss."""
    assert found.image_HWC is not None
    height, width = found.image_HWC.shape[:2]
    for category in categories:
        try:
            things = masks.things(found.photo, (width, height), category, [category])
        except BadMask as error:
            left_out.add(found.photo.key, error.reason, error.detail)
            continue
        for thing in things:
            writer.add(Cutting(found.photo.key, category, found.image_HWC, thing.mask_HW))
