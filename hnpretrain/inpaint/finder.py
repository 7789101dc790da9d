"""Finds what may be proposed of photos: captions, their negatives, and the things that these mean.

1. Captions that came with negatives (from shards) keep them; others get negatives as in `shard
   build`: `replace` of a color, a size or an object, and `negate` ("with a dog", "with no dog").
2. Where nobody says what color or size a thing has, a caption that says it is made ("a bus" -> "a
   red bus"), and gets negatives too.
3. A negative becomes an option if its caption speaks of one thing of the photo, or of all of a
   kind, and there is a mask of that (wording.py, masks.py).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hnpretrain.inpaint import qualities, wording
from hnpretrain.inpaint.found import Found, Mask, Option
from hnpretrain.inpaint.left_out import LeftOutLedger
from hnpretrain.inpaint.masks import BadMask, Masks
from hnpretrain.inpaint.wording import Change, LeftOut, Noun, Reader
from hnpretrain.shards.schema import Caption
from shard_tools.negatives import CaptionedSample, NegativeMaker, NegativeSettings
from shard_tools.negatives.captions import TaggedCaption

# Of the hull of a thing, so much may belong to other things before it is taken to be behind them.
_MOST_COVERED = 0.15
# Categories of COCO that are built into others, or carry them: nobody knows what is behind them.
_FIXED = frozenset({"sink", "toilet", "oven", "refrigerator", "dining table", "bed", "couch"})


@dataclass(frozen=True)
class Source:
    """Where a caption comes from.

    Attributes:
        caption: of the source.
        stated: [start, end), in characters, of the word that was put into it; None if none was.
    """

    caption: str
    stated: tuple[int, int] | None = None


class Finder:
    """Finds options in photos; what one photo gets does not depend on others."""

    def __init__(
        self,
        masks: Masks,
        negatives: NegativeSettings,
        concepts: Collection[str],
        state: Sequence[str],
        areas: tuple[float, float],
        seed: int,
        left_out: LeftOutLedger,
    ) -> None:
        """Loads the lexicons and the tagger.

        Args:
            masks: where things are.
            negatives: how captions without negatives get some.
            concepts: that may change.
            state: of these, the ones that are stated where no caption does.
            areas: least and most of a mask, as shares of the photo.
            seed: of all draws.
            left_out: takes what does not become an option.

        Raises:
            ValueError: the tagger or a lexicon is not there.
        """
        self._masks = masks
        self._concepts = concepts
        self._state = [concept for concept in state if concept in concepts]
        self._areas = areas
        self._left_out = left_out
        self._maker = NegativeMaker(negatives, seed, None)
        self._reader = Reader(negatives.spacy_model)

    def objects(self, found: Found) -> tuple[str, ...]:
        """Names of what is known to be in a photo: by its source, or by the masks'."""
        return tuple(sorted({*found.photo.objects, *self._masks.categories(found.photo)}))

    def look(self, batch: Sequence[Found]) -> None:
        """Adds the options of some photos to them."""
        for found in batch:
            for caption in found.photo.captions:
                if caption.negatives:
                    (tagged,) = self._reader.tagged([caption.text])
                    self._add(found, caption, tagged, Source(caption.text), are_made=False)
        bare = [f for f in batch if not any(c.negatives for c in f.photo.captions)]
        texts = [{c.text: Source(c.text) for c in found.photo.captions} for found in bare]
        self._add_made(bare, texts)
        self._add_made(batch, [self._stated(found) for found in batch])

    def _add_made(self, batch: Sequence[Found], texts: Sequence[Mapping[str, Source]]) -> None:
        """Adds the options of captions whose negatives are yet to be made.

        Args:
            texts: for each photo, captions and where they come from.
        """
        works = [(found, sources) for found, sources in zip(batch, texts, strict=True) if sources]
        samples = []
        for found, sources in works:
            # A negative must be false of the whole photo, whatever of it is said where.
            others = [c.text for c in found.photo.captions if c.text not in sources]
            captions = (*sources, *others)
            samples.append(CaptionedSample(found.photo.key, captions, self.objects(found)))
        all_tagged = iter(self._reader.tagged([text for _, sources in works for text in sources]))
        for (found, sources), made in zip(works, self._maker.make(samples), strict=True):
            for caption in made.captions[: len(sources)]:
                source, tagged = sources[caption.text], next(all_tagged)
                denials = () if source.stated else tuple(self._reader.denials(tagged))
                caption = Caption(caption.text, caption.negatives + denials)
                self._add(found, caption, tagged, source, are_made=True)

    def _add(
        self, found: Found, caption: Caption, tagged: TaggedCaption, source: Source, are_made: bool
    ) -> None:
        """Adds the options of one caption and its negatives.

        Args:
            are_made: whether the negatives were made here.
        """
        for negative in caption.negatives:
            if source.stated and source.stated != negative.span:
                continue  # an edit that the source's caption has already
            try:
                change = self._reader.change(tagged, negative)
                if change.concept not in self._concepts:
                    continue
                mask = self._mask(found, change.noun)
                self._require_free(found, change, mask)
            except LeftOut as error:
                key = found.photo.key
                self._left_out.add(key, error.reason, error.detail, caption.text, negative.concept)
                continue
            written = self._reader.plain(tagged, negative, change) if are_made else negative
            found.options.append(Option(source.caption, caption.text, written, change, mask))

    def _stated(self, found: Found) -> dict[str, Source]:
        """Captions with a word for what the photo shows of a thing that no caption describes so."""
        assert found.image_HWC is not None
        texts: dict[str, Source] = {}
        captions = self._reader.tagged([c.text for c in found.photo.captions])
        for tagged in captions:
            if not self._reader.nouns(tagged):
                self._left_out.add(found.photo.key, "no_noun", "", tagged.caption.text)
        for concept in self._state:
            described = self._reader.described(captions, concept)
            for tagged in captions:
                for noun, place in self._reader.places(tagged, concept):
                    if noun.lemma in described:
                        continue
                    try:
                        mask = self._mask(found, noun)
                    except LeftOut:
                        continue  # told where the noun itself is exchanged
                    word = qualities.STATED[concept](found.image_HWC, mask.mask_HW)
                    # "food" may mean more than the pizza that has a mask.
                    if word and not self._reader.is_broader(noun, mask.category):
                        caption = tagged.caption.text
                        text, span = wording.stated(caption, place, word)
                        texts.setdefault(text, Source(caption, span))
        return texts

    def _mask(self, found: Found, noun: Noun) -> Mask:
        """The mask of all that a noun means; found once. Errors as `_find_mask`."""
        key = (noun.text, noun.lemma, noun.number)
        if key not in found.masks:
            try:
                found.masks[key] = self._find_mask(found, noun)
            except LeftOut as error:
                found.masks[key] = error
        mask = found.masks[key]
        if isinstance(mask, LeftOut):
            raise mask
        return mask

    def _find_mask(self, found: Found, noun: Noun) -> Mask:
        """The mask of all that a noun means.

        Raises:
            LeftOut: those of `wording.count`, `small`, `large`, or what is wrong with the masks.
        """
        assert found.image_HWC is not None
        height, width = found.image_HWC.shape[:2]
        known = self.objects(found) or (noun.lemma,)
        named = [name for name in known if self._reader.may_name(noun, name)]
        try:
            word = noun.text.lower() if noun.number == 1 else noun.lemma
            things = self._masks.things(found.photo, (width, height), word, named)
        except BadMask as error:
            raise LeftOut(error.reason, error.detail) from error
        all_are = not any(self._reader.is_narrower(noun, thing.category) for thing in things)
        wording.count(noun, len(things), all_are)
        mask = Mask.of(things)
        least, most = self._areas
        if not least <= mask.area <= most:
            reason = "small" if mask.area < least else "large"
            raise LeftOut(reason, f"{noun.text}: {100 * mask.area:.2g} % of the photo")
        return mask

    def _require_free(self, found: Found, change: Change, mask: Mask) -> None:
        """Raises LeftOut if a thing can't be moved or taken away: `fixed`, `several`, `covered`."""
        if change.edit == "recolor":
            return
        if change.edit != "enlarge" and mask.category in _FIXED:
            raise LeftOut("fixed", f"{change.edit} a {mask.category}")
        if mask.things > 1 and change.edit != "remove":
            raise LeftOut("several", change.noun.text)
        if mask.digest not in found.covered:
            inside_HW = self._others(found, mask)[mask.hull_HW]
            found.covered[mask.digest] = float(inside_HW.mean())
        covered = found.covered[mask.digest]
        if covered > _MOST_COVERED:
            raise LeftOut("covered", f"{change.noun.text}: {covered:.0%} of its place is of others")

    def _others(self, found: Found, mask: Mask) -> np.ndarray:
        """bool (H x W), true on the photo's other things, as far as they are known."""
        mask_HW = mask.mask_HW
        joined_HW = np.zeros_like(mask_HW)
        size = mask_HW.shape[1], mask_HW.shape[0]
        for category in self.objects(found):
            try:
                things = self._masks.things(found.photo, size, category, [category])
            except BadMask:
                continue
            for thing in things:
                joined_HW |= thing.mask_HW
        return joined_HW & ~mask_HW
