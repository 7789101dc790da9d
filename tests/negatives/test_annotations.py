"""Object negatives against what COCO annotated in the photos: none names an annotated thing."""

import dataclasses

import pytest

from shard_tools.bench.negatives import read_samples
from shard_tools.negatives import CaptionedSample, FrequencyTable, NegativeMaker
from shard_tools.negatives.lexicon import load_lexicon
from tests.negatives import photo_list

SEEDS = range(5)
LEXICON = load_lexicon("object")
SETTINGS = dataclasses.replace(photo_list.SETTINGS, mix={"replace.object": 1})


@pytest.fixture(scope="module")
def table() -> FrequencyTable:
    return photo_list.count(read_samples(str(photo_list.COCO_CAPTIONS)))


def _names_annotated(word: str, categories: tuple[str, ...]) -> bool:
    """Whether a word is a name of one of COCO's categories, or of a kind of it ("seagull")."""
    form = LEXICON.forms.get(tuple(word.lower().split()))
    if form is None or LEXICON.words[form.lemma].gender:
        return False  # that a person is annotated says nothing about which
    annotated = {LEXICON.forms[tuple(name.split())].lemma for name in categories}
    return form.lemma in annotated or not LEXICON.broader(form.lemma).isdisjoint(annotated)


def _named(table: FrequencyTable, with_annotations: bool) -> tuple[int, int]:
    """Object negatives that name an annotated thing, and all."""
    named = made = 0
    for seed in SEEDS:
        maker = NegativeMaker(SETTINGS, seed, table)
        photos = photo_list.photos()
        given = [
            photo if with_annotations else CaptionedSample(photo.key, photo.captions)
            for photo in photos
        ]
        for photo, result in zip(photos, maker.make(given), strict=True):
            for caption in result.captions:
                for negative in caption.negatives:
                    made += 1
                    named += _names_annotated(negative.target, photo.objects)
    return named, made


def test_annotated_things_are_never_named(table: FrequencyTable) -> None:
    named, made = _named(table, with_annotations=True)
    assert named == 0
    assert made > 1500


def test_without_annotations_some_are(table: FrequencyTable) -> None:
    """About 2 in 100: what the filter is for."""
    named, made = _named(table, with_annotations=False)
    assert 0.01 < named / made < 0.04
