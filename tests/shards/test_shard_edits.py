"""Where a negative differs from its caption, for all strategies and for records that lie."""

from __future__ import annotations

import pytest

from hnpretrain.shards.schema import Negative
from shard_tools.edits import changed_pieces, locate

CAT = "a cat by a red car"


def replaced(caption: str, source: str, target: str, text: str) -> Negative:
    start = caption.index(source)
    return Negative(text, "object", "replace", source, target, (start, start + len(source)))


@pytest.mark.parametrize(
    "caption, source, target, text, article, changed",
    [
        (CAT, "red", "blue", "a cat by a blue car", "a", False),
        (CAT, "red", "orange", "a cat by an orange car", "an", True),
        ("An apple", "apple", "pear", "A pear", "A", True),
        ("A CUP", "CUP", "UMBRELLA", "AN UMBRELLA", "AN", True),
        ("two cats", "two", "three", "three cats", None, False),
        ("on  a  cup", "cup", "oar", "on  an  oar", "an", True),
        ("a sofa cup", "cup", "oar", "a sofa oar", None, False),
        ("a cat runs", "runs", "", "a cat ", None, False),
    ],
)
def test_an_edit_is_found(
    caption: str, source: str, target: str, text: str, article: str | None, changed: bool
) -> None:
    edit = locate(caption, replaced(caption, source, target, text))
    assert caption[slice(*edit.source)] == source
    assert text[slice(*edit.target)] == target
    assert (edit.article and text[slice(*edit.article)]) == article
    assert edit.article_changed == changed


def test_an_insertion_is_found() -> None:
    negative = Negative("a cat not by a red car", "negation", "negate", "", "not ", (6, 6))
    assert locate(CAT, negative).target == (6, 10)
    assert changed_pieces(CAT, negative) == ([(6, 6)], [(6, 10)])


@pytest.mark.parametrize(
    "negative, message",
    [
        (Negative("x", "object", "replace", "cat", "dog", (2, 50)), "lies outside"),
        (Negative("x", "object", "replace", "cat", "dog", (5, 2)), "lies outside"),
        (Negative("x", "object", "replace", "dog", "dog", (2, 5)), "is not 'dog'"),
        (
            Negative("a dog by a red bus", "object", "replace", "cat", "dog", (2, 5)),
            "with 'dog' at",
        ),
        (Negative("the dog by a red car", "object", "replace", "cat", "dog", (2, 5)), "with 'dog'"),
        (
            Negative("a cow by a red car", "object", "replace", "cat", "dog", (2, 5)),
            "with 'dog' at",
        ),
        (Negative("a dog by an orange car", "color", "replace", "red", "orange", (11, 14)), "with"),
        (Negative("dog", "object", "replace", "cat", "dog", (2, 5)), "with 'dog' at"),
        (Negative("x" * 10**5, "object", "replace", "cat", "dog", (2, 5)), "with 'dog' at"),
    ],
)
def test_a_record_that_does_not_fit(negative: Negative, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        locate(CAT, negative)
    assert len(str(caught.value)) < 300
    _, pieces = changed_pieces(CAT, negative)
    assert pieces == [(0, len(negative.text))]


@pytest.mark.parametrize(
    "caption, source, target, left, entered",
    [
        # Two words changed places: both are marked, and nothing between them.
        (
            "a red car and a blue dog",
            "red car and a blue",
            "blue car and a red",
            ["red", "blue"],
            ["blue", "red"],
        ),
        # One went elsewhere: only it is marked.
        ("a man rides a horse", "rides a horse", "a horse rides", ["rides"], ["rides"]),
        ("big dog, small cat", "big dog, small cat", "small dog, big cat", ["big", "small"],
         ["small", "big"]),
        # Other words: the whole edit.
        ("a hot dog", "hot dog", "dog", ["hot dog"], ["dog"]),
        ("a red car", "red car", "blue bus", ["red car"], ["blue bus"]),
    ],
)  # fmt: skip
def test_moved_pieces_are_told_apart(
    caption: str, source: str, target: str, left: list[str], entered: list[str]
) -> None:
    text = caption.replace(source, target)
    old, new = changed_pieces(caption, replaced(caption, source, target, text))
    assert [caption[slice(*span)] for span in old] == left
    assert [text[slice(*span)] for span in new] == entered


def test_an_article_that_changed_is_marked_with_its_words() -> None:
    old, new = changed_pieces(CAT, replaced(CAT, "red", "orange", "a cat by an orange car"))
    assert (old, new) == ([(11, 14)], [(9, 18)])
