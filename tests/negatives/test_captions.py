"""What a sample's captions mention, and how words and tokens find each other."""

import pytest

from shard_tools.negatives.captions import CaptionText, SampleText, TaggedCaption
from shard_tools.negatives.lexicon import load_lexicon
from shard_tools.negatives.tagger import Tagger


def test_a_sample_knows_what_it_mentions() -> None:
    sample = SampleText.of(
        ("A kitten by a dog house.", "Fruit."), ("cat", "Sports Ball", "fire truck", "xyzzy", "")
    )
    mentioned = sample.mentioned(load_lexicon("object"))
    # Also the dog of the dog house, where nothing is replaced.
    assert {"cat", "dog", "house", "fruit"} <= mentioned.lemmas
    assert mentioned.annotated == {"cat", "ball", "truck"}
    assert "fruit" in mentioned.several
    assert "dog" not in mentioned.several
    assert mentioned.governed == {}
    assert "tree" in mentioned.held  # where a house is


def test_relations_are_known_with_what_they_govern() -> None:
    sample = SampleText.of(("A cat on the two tables.", "A cup BENEATH his CHAIR, under an."))
    governed = sample.mentioned(load_lexicon("location")).governed
    assert set(governed) == {"on", "beneath", "under"}
    assert {"tables", "table"} <= governed["on"]
    assert governed["beneath"] == {"chair"}
    assert governed["under"] == set()


@pytest.mark.parametrize(
    "text, words",
    [
        ("An apple.", ("a", "apple", "$")),
        ("the dog's BED", ("the", "dog", "'", "s", "bed")),
        ("", ()),
        ("caf\u00e9 \U0001f600", ("caf\u00e9", "\U0001f600")),
    ],
)
def test_contexts_take_a_for_an(text: str, words: tuple[str, ...]) -> None:
    assert CaptionText(text).context == words


def test_captions_that_differ_in_case_and_punctuation_are_one() -> None:
    sample = SampleText.of(("A dog -- runs!", "a DOG runs", "A cat."))
    assert sample.plain == {"a dog runs", "a cat"}


@pytest.mark.parametrize(
    "text",
    [
        "A hot dog, and a teddy bear.",
        "\U0001f600 A hot dog\u00a0by  a teddy bear",
        "CAN'T a hot dog's teddy bear?",
        "\u0130\u0130\u0130 hot dog and teddy bear",  # letters that grow when lowered
    ],
)
def test_a_mention_finds_its_tokens(tagger: Tagger, text: str) -> None:
    caption = CaptionText(text)
    (doc,) = tagger.tag([text])
    tagged = TaggedCaption(caption, doc)
    assert len(tagged.tokens) == len(tagged.tags) == len(doc)
    found = [tagged.tokens_of(mention) for mention in caption.mentions(load_lexicon("object"))]
    assert [tagged.text_of(tokens) for tokens in found] == ["hot dog", "teddy bear"]
    assert [[tagged.tokens[i] for i in tokens] for tokens in found] == [
        ["hot", "dog"],
        ["teddy", "bear"],
    ]


def test_what_is_cut_otherwise_has_no_tokens(tagger: Tagger) -> None:
    caption = CaptionText("An ice cream-cone by a wall.")
    (doc,) = tagger.tag(["An icecream"])  # not this caption's tokens
    mention, *_ = caption.mentions(load_lexicon("object"))
    assert not TaggedCaption(caption, doc).tokens_of(mention)
