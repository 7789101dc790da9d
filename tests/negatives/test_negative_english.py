"""Plurals, verb forms, stems, articles and case."""

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


@pytest.mark.parametrize(
    "verb, shape, form",
    [
        ("ride", "base", "ride"),
        ("ride", "s", "rides"),
        ("ride", "ing", "riding"),
        ("like", "past", "liked"),
        ("sit", "ing", "sitting"),
        ("stand", "ing", "standing"),
        ("lie", "ing", "lying"),
        ("see", "ing", "seeing"),
        ("carry", "s", "carries"),
        ("carry", "ing", "carrying"),
        ("carry", "past", "carried"),
        ("play", "past", "played"),
        ("watch", "s", "watches"),
        ("pet", "past", "petted"),
        ("fix", "past", "fixed"),
        ("look", "past", "looked"),
        ("chew", "ing", "chewing"),
    ],
)
def test_verb_forms(verb: str, shape: str, form: str) -> None:
    assert english.verb_form(verb, shape) == form


@pytest.mark.parametrize(
    "form, lemma",
    [
        ("dogs", "dog"),
        ("boxes", "box"),
        ("horses", "horse"),
        ("cities", "city"),
        ("riding", "ride"),
        ("sitting", "sit"),
        ("carried", "carry"),
        ("parked", "park"),
        ("liked", "like"),
        ("bigger", "big"),
        ("largest", "large"),
        ("dog", "dog"),
    ],
)
def test_stems_hold_the_lemma(form: str, lemma: str) -> None:
    assert lemma in english.stems(form)


def test_short_words_are_no_forms() -> None:
    assert english.stems("bus") == {"bus"}
    assert english.stems("bed") == {"bed"}
    assert english.stems("ring") == {"ring"}
    assert english.stems("") == {""}


@pytest.mark.parametrize(
    "before, word, expected",
    [
        ("There is a ", "apple", "There is an "),
        ("There is an ", "cup", "There is a "),
        ("An ", "cup", "A "),
        ("A ", "apple", "An "),
        ("a  ", "apple", "an  "),
        ("the ", "apple", "the "),
        ("", "apple", ""),
        ("banana ", "apple", "banana "),
        ("a big ", "apple", "a big "),
    ],
)
def test_the_article_before_a_word(before: str, word: str, expected: str) -> None:
    assert english.with_article(before, word, False) == expected


def test_an_article_in_capitals_stays_so() -> None:
    assert english.with_article("AN ", "CUP", True) == "A "
    assert english.with_article("A ", "APPLE", True) == "AN "
    assert english.with_article("IT IS AN ", "Cup", False) == "IT IS A "
