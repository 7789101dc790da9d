"""Plurals, articles and case."""

import pytest

from shard_tools.negatives import english


@pytest.mark.parametrize(
    "word, article",
    [
        ("hour", "an"),
        ("honest", "an"),
        ("horse", "a"),
        ("unicorn", "a"),
        ("uniform", "a"),
        ("unimportant", "an"),
        ("umbrella", "an"),
        ("underneath", "an"),
        ("European", "a"),
        ("ewe", "a"),
        ("egg", "an"),
        ("one-eyed", "a"),
        ("orange", "an"),
        ("SUV", "an"),
        ("UFO", "a"),
        ("U-turn", "a"),
        ("x-ray", "an"),
        ("utensil", "a"),
        ("ukulele", "a"),
        ("apple", "an"),
    ],
)
def test_article_follows_the_sound(word: str, article: str) -> None:
    assert english.article(word) == article


@pytest.mark.parametrize(
    "singular, plural",
    [
        ("dog", "dogs"),
        ("bus", "buses"),
        ("box", "boxes"),
        ("church", "churches"),
        ("city", "cities"),
        ("key", "keys"),
        ("butter knife", "butter knives"),
        ("snowman", "snowmen"),
        ("human", "humans"),
        ("person", "people"),
        ("hot dog", "hot dogs"),
        ("bookshelf", "bookshelves"),
        ("sheep", "sheep"),
        ("tomato", "tomatoes"),
        ("skateboard", "skateboards"),
    ],
)
def test_plural(singular: str, plural: str) -> None:
    assert english.plural(singular) == plural


@pytest.mark.parametrize("text", ["A DOG", "TWO DOGS, ONE CAT!"])
def test_all_caps(text: str) -> None:
    assert english.is_all_caps(text)


@pytest.mark.parametrize("text", ["", "A", "USA", "A dog", "123 456"])
def test_not_all_caps(text: str) -> None:
    assert not english.is_all_caps(text)


def test_lowering_keeps_every_character_in_place() -> None:
    text = "\u0130STANBUL \u1e9e GRO\u00df"  # the first letter lowers to two characters
    assert len(english.lowered(text)) == len(text)
