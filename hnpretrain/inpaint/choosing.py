"""Which options of a photo become proposals, and how proposals are ranked."""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from importlib import resources
from itertools import islice, zip_longest

import yaml

from hnpretrain.inpaint.editors.colors import named_color
from hnpretrain.inpaint.found import Found, Option
from hnpretrain.inpaint.left_out import LeftOutLedger
from hnpretrain.inpaint.records import Proposal

# A thing that takes this share of the photo is seen best, and leaves room for its surroundings.
_BEST_AREA = 0.1
# Of the sizes of things that are put in each other's place.
_MOST_SCALE = 2.5
# Words that people use first: of colors the basic terms (Berlin and Kay, 1969) but gray, which
# nobody tells from a faded white or black.
_PLAIN = frozenset(
    "white black blue red green yellow brown orange pink purple small large big tiny huge "  # noqa: SIM905
    "short tall smaller larger".split()
)


def choose(
    found: Found,
    donors: Mapping[str, Collection[str]] | None,
    per_thing: int,
    per_photo: int,
    seed: int,
    left_out: LeftOutLedger,
) -> list[Proposal]:
    """The options of a photo that become proposals, the best first.

    Args:
        donors: category to the keys of the photos that have a thing to paste; None if the edits
            are not made by the editors without weights.
        per_thing: at most so many of a thing for each kind of edit, with different targets.
        per_photo: at most so many in all.
        seed: of the draws among equals.
        left_out: takes the others of interest.
    """
    key = found.photo.key
    places: dict[tuple[str, str], list[Option]] = defaultdict(list)
    for option in found.options:
        target = option.change.target
        if option.change.edit == "recolor" and donors is not None and not named_color(target):
            left_out.add(key, "no_color", target, option.caption, "color")
            continue
        if option.change.edit == "replace" and donors is not None:
            if not set(donors.get(target, ())) - {key}:
                left_out.add(key, "no_donor", f"no {target} to paste", option.caption, "object")
                continue
            if not _alike_in_size(option.mask.category, target):
                detail = f"{option.mask.category} -> {target}"
                left_out.add(key, "scale", detail, option.caption, "object")
                continue
        places[option.mask.digest, option.change.edit].append(option)
    generator = random.Random(f"{seed} {key}")
    kept = []
    for options in places.values():
        generator.shuffle(options)
        options.sort(key=_rank_of_words)
        targets: set[str] = set()
        for option in options:
            if len(targets) < per_thing and option.change.target not in targets:
                targets.add(option.change.target)
                kept.append(_proposal(found, option))
            else:
                concept = option.change.concept
                left_out.add(key, "enough", option.negative.text, option.caption, concept)
    kept.sort(key=_rank)
    for proposal in kept[per_photo:]:
        left_out.add(key, "enough", proposal.new_caption, proposal.caption, proposal.concept)
    return kept[:per_photo]


@lru_cache(1)
def _sizes() -> Mapping[str, float]:
    """Category to meters."""
    text = (resources.files("hnpretrain.inpaint") / "sizes.yaml").read_text("utf-8")
    return {str(name): float(size) for name, size in yaml.safe_load(text).items()}


def _alike_in_size(one: str, other: str) -> bool:
    """Whether one thing, pasted as large as another was, has a size that it may have."""
    sizes = _sizes()
    if one not in sizes or other not in sizes:
        return True
    return max(sizes[one], sizes[other]) <= _MOST_SCALE * min(sizes[one], sizes[other])


def ranked(proposals: Sequence[Proposal], most: int, left_out: LeftOutLedger) -> list[Proposal]:
    """All proposals, the best first.

    Args:
        most: if not 0, no more than these are kept, of the concepts in turns.
        left_out: takes the others.
    """
    ordered = sorted(proposals, key=_rank)
    if not most or len(ordered) <= most:
        return ordered
    queues: dict[str, list[str]] = defaultdict(list)
    for proposal in ordered:
        queues[proposal.concept].append(proposal.id)
    turns = zip_longest(*(queues[concept] for concept in sorted(queues)))
    kept = set(islice((name for turn in turns for name in turn if name), most))
    for each in ordered:
        if each.id not in kept:
            left_out.add(each.key, "enough", each.new_caption, each.caption, each.concept)
    return [proposal for proposal in ordered if proposal.id in kept]


def _rank(proposal: Proposal) -> tuple[float, str]:
    return -proposal.score, proposal.id


def _rank_of_words(option: Option) -> tuple[bool, bool]:
    """Sorts first what people would say, then what the source says."""
    is_plain = option.negative.target.lower() in _PLAIN or option.change.concept == "object"
    return not is_plain, option.caption != option.source_caption


def _proposal(found: Found, option: Option) -> Proposal:
    """Its id names all that decides a candidate, so that no old one is taken for a new one's."""
    photo, mask, negative, change = found.photo, option.mask, option.negative, option.change
    content = (option.caption, negative.text, change.edit, mask.digest, found.digest)
    name = f"{photo.key}-{hashlib.sha256(json.dumps(content).encode()).hexdigest()[:10]}"
    score = 1 - 0.1 * abs(math.log10(mask.area / _BEST_AREA))
    score -= 0.2 * (option.caption != option.source_caption) + 0.1 * (mask.things > 1)
    return Proposal(
        id=name,
        key=photo.key,
        photo=found.name,
        source_caption=option.source_caption,
        caption=option.caption,
        new_caption=negative.text,
        concept=change.concept,
        edit=change.edit,
        source=negative.source,
        target=change.target if change.edit == "replace" else negative.target,
        span=negative.span,
        noun=change.noun.text,
        category=mask.category,
        mask=mask.name,
        things=mask.things,
        area=round(mask.area, 5),
        score=round(score, 4),
        meta=dict(photo.meta),
    )
