"""What must hold for every negative of the 73 real photos."""

import json
import re

import pytest

from hnpretrain.shards.schema import Caption, Negative
from shard_tools.negatives import CaptionedSample, FrequencyTable, MadeNegatives
from shard_tools.negatives.captions import CaptionText, SampleText
from shard_tools.negatives.lexicon import load_lexicon
from tests.negatives import photo_list


@pytest.fixture(scope="module")
def made(coco_table: FrequencyTable) -> list[tuple[CaptionedSample, MadeNegatives]]:
    return photo_list.make(coco_table)


@pytest.fixture(scope="module")
def negatives(
    made: list[tuple[CaptionedSample, MadeNegatives]],
) -> list[tuple[CaptionedSample, Caption, Negative]]:
    return [
        (sample, caption, negative)
        for sample, result in made
        for caption in result.captions
        for negative in caption.negatives
    ]


def test_most_captions_have_some(made: list[tuple[CaptionedSample, MadeNegatives]]) -> None:
    captions = [caption for _, result in made for caption in result.captions]
    assert len(captions) == 365
    assert sum(bool(caption.negatives) for caption in captions) >= 0.65 * len(captions)


def test_every_concept_occurs(
    negatives: list[tuple[CaptionedSample, Caption, Negative]],
) -> None:
    concepts = {negative.concept for _, _, negative in negatives}
    assert concepts == set(photo_list.CONCEPTS)


def test_the_edit_gives_the_text(
    negatives: list[tuple[CaptionedSample, Caption, Negative]],
) -> None:
    for _, caption, negative in negatives:
        start, end = negative.span
        assert caption.text[start:end] == negative.source
        before, after = caption.text[:start], caption.text[end:]
        plain = before + negative.target + after
        # The article before the words may change with them, and nothing else.
        other = (
            re.sub(
                r"\b(a)(n?)(\s+)$",
                lambda m: m[1] + ("" if m[2] else "n") + m[3],
                before,
                flags=re.IGNORECASE,
            )
            + negative.target
            + after
        )
        assert negative.text in (plain, other)


def test_none_is_a_positive(
    negatives: list[tuple[CaptionedSample, Caption, Negative]],
) -> None:
    for sample, _, negative in negatives:
        assert negative.text.lower() not in {caption.lower() for caption in sample.captions}


def test_no_target_is_mentioned_or_annotated(
    negatives: list[tuple[CaptionedSample, Caption, Negative]],
) -> None:
    for sample, _, negative in negatives:
        if negative.concept == "location":
            continue
        everything = " ".join(sample.captions).lower()
        word = re.escape(negative.target.lower())
        assert not re.search(rf"\b{word}\b", everything), (negative, sample.captions)
        assert negative.target.lower() not in sample.objects


def test_no_place_is_told_elsewhere_of_the_same_thing(
    negatives: list[tuple[CaptionedSample, Caption, Negative]],
) -> None:
    lexicon = load_lexicon("location")
    places = 0
    for sample, _, negative in negatives:
        if negative.concept == "location":
            told = SampleText.of(sample.captions).mentioned(lexicon).governed
            start = negative.text.index(negative.target, max(0, negative.span[0] - 1))
            changed = CaptionText(negative.text)
            (mention,) = [
                each
                for each in changed.mentions(lexicon)
                if changed.words.spans[each.start][0] == start
            ]
            assert changed.governed(mention.end) not in told.get(mention.form.lemma, ())
            places += 1
    assert places > 30


def test_articles_agree(negatives: list[tuple[CaptionedSample, Caption, Negative]]) -> None:
    for _, caption, negative in negatives:
        word = re.escape(negative.target)
        assert not re.search(rf"\ba\s+(?=[aeiou])(?!ewe|urin){word}", negative.text, re.IGNORECASE)
        wrong_an = re.search(rf"\ban\s+(?=[^aeiou]){word}", negative.text, re.IGNORECASE)
        assert not wrong_an, (caption.text, negative.text)


def test_case_is_kept(negatives: list[tuple[CaptionedSample, Caption, Negative]]) -> None:
    for _, caption, negative in negatives:
        if caption.text.isupper():
            assert negative.text.isupper()
        else:
            assert negative.text[:1].isupper() == caption.text[:1].isupper()


def test_the_list_that_was_read_is_the_one_that_is_made(
    made: list[tuple[CaptionedSample, MadeNegatives]],
) -> None:
    """docs/photo-negatives.jsonl was judged; a change of rules must be read anew, not slip by."""
    lines = photo_list.LIST.read_text("utf-8").splitlines()
    assert list(photo_list.records(made)) == [json.loads(line) for line in lines]
