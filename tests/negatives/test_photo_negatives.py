"""What must hold for every negative of the 73 real photos."""

import json
import re
from pathlib import Path

import pytest

from hnpretrain.shards.schema import Caption, Negative
from shard_tools.negatives import CaptionedSample, MadeNegatives, NegativeMaker

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def made(maker: NegativeMaker) -> list[tuple[CaptionedSample, MadeNegatives]]:
    lines = (ROOT / "tests/assets/coco_ccby/data.jsonl").read_text("utf-8").splitlines()
    samples = []
    for line in lines:
        record = json.loads(line)
        categories = tuple(sorted({one["category"] for one in record["instances"]}))
        key = f"{record['coco_id']:012d}"
        samples.append(CaptionedSample(key, tuple(record["captions"]), categories))
    return list(zip(samples, maker.make(samples), strict=True))


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
    assert sum(bool(caption.negatives) for caption in captions) >= 0.85 * len(captions)


def test_every_concept_occurs(
    negatives: list[tuple[CaptionedSample, Caption, Negative]],
) -> None:
    concepts = {negative.concept for _, _, negative in negatives}
    assert concepts == {"object", "color", "size", "location"}


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
        everything = " ".join(sample.captions).lower()
        word = re.escape(negative.target.lower())
        assert not re.search(rf"\b{word}\b", everything), (negative, sample.captions)
        assert negative.target.lower() not in sample.objects


def test_articles_agree(negatives: list[tuple[CaptionedSample, Caption, Negative]]) -> None:
    for _, caption, negative in negatives:
        word = re.escape(negative.target)
        assert not re.search(rf"\ba\s+(?=[aeiou]){word}", negative.text, re.IGNORECASE)
        wrong_an = re.search(rf"\ban\s+(?=[^aeiou]){word}", negative.text, re.IGNORECASE)
        assert not wrong_an, (caption.text, negative.text)


def test_case_is_kept(negatives: list[tuple[CaptionedSample, Caption, Negative]]) -> None:
    for _, caption, negative in negatives:
        if caption.text.isupper():
            assert negative.text.isupper()
        else:
            assert negative.text[:1].isupper() == caption.text[:1].isupper()


def test_the_list_that_was_read_is_the_one_that_is_made(
    negatives: list[tuple[CaptionedSample, Caption, Negative]],
) -> None:
    """docs/photo-negatives.jsonl was judged; a change of rules must be read anew, not slip by."""
    listed = [
        (record["caption"], record["negative"], record["concept"], record["from"], record["to"])
        for record in map(
            json.loads, (ROOT / "docs/photo-negatives.jsonl").read_text("utf-8").splitlines()
        )
    ]
    assert [(c.text, n.text, n.concept, n.source, n.target) for _, c, n in negatives] == listed
