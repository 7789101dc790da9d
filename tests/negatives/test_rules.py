"""When a word must not stand in another's place: what the image may show, and denials."""

import pytest

from shard_tools.negatives.captions import CaptionText, SampleText
from shard_tools.negatives.lexicon import load_lexicon
from shard_tools.negatives.rules import denies, refusal

_ELSEWHERE = "mentioned_elsewhere"


def _refusal(
    concept: str, source: str, target: str, *captions: str, objects: tuple[str, ...] = ()
) -> str:
    """Why the target may not stand for the source in the first caption."""
    lexicon = load_lexicon(concept)
    sample = SampleText.of(captions, objects)
    caption = sample.captions[0]
    (mention,) = [each for each in caption.mentions(lexicon) if " ".join(each.form.words) == source]
    return refusal(lexicon, sample, caption, mention, target)


@pytest.mark.parametrize(
    "concept, source, target, captions, reason",
    [
        ("object", "dog", "cat", ("A dog on grass.",), ""),
        # Another caption, or this one, names the target or what it may be.
        ("object", "dog", "cat", ("A dog on grass.", "A cat."), _ELSEWHERE),
        ("object", "dog", "cat", ("A dog by a cat.",), _ELSEWHERE),
        ("object", "dog", "cat", ("A dog on grass.", "Kittens."), _ELSEWHERE),
        ("object", "dog", "cat", ("A dog on grass.", "Some animals."), _ELSEWHERE),
        ("object", "dog", "cat", ("A dog on grass.", "An animal."), ""),
        ("object", "sandwich", "cake", ("A sandwich.", "Food."), _ELSEWHERE),
        ("object", "seagull", "pigeon", ("A seagull.", "Birds."), _ELSEWHERE),
        ("object", "man", "woman", ("A man on grass.", "A woman."), _ELSEWHERE),
        ("object", "man", "woman", ("A man on grass.", "Two people."), _ELSEWHERE),
        ("object", "man", "woman", ("A man on grass.", "A person."), ""),
        # Also inside a longer name: a dog house tells of a dog.
        ("object", "cat", "dog", ("A cat.", "A dog house."), _ELSEWHERE),
        ("color", "red", "blue", ("A red car.", "A blue bus."), _ELSEWHERE),
        ("color", "red", "blue", ("A red car.", "Navy trucks."), _ELSEWHERE),
        ("color", "red", "blue", ("A red car.", "Colorful cars."), _ELSEWHERE),
        ("color", "red", "blue", ("A red car.", "A green bus."), ""),
        ("size", "big", "tiny", ("A big dog.", "A small cat."), _ELSEWHERE),
        ("attribute", "open", "closed", ("An open door.", "It is shut."), _ELSEWHERE),
        ("action", "sits", "stand", ("A dog sits.", "Standing dogs."), _ELSEWHERE),
        ("action", "sits", "stand", ("A dog sits.", "A dog on grass."), ""),
        ("count", "two", "three", ("two dogs.", "A trio."), _ELSEWHERE),
        ("count", "two", "five", ("two dogs.", "Several dogs."), _ELSEWHERE),
        # A relation is of the things it stands between.
        ("location", "on", "under", ("A cat on a table.", "A cup under the table."), _ELSEWHERE),
        ("location", "on", "under", ("A cat on a table.", "A cup beneath a table."), _ELSEWHERE),
        ("location", "on", "under", ("A cat on a table.", "A cup under a chair."), ""),
        ("location", "on", "under", ("A cat on a table under a lamp.",), _ELSEWHERE),
        ("location", "behind", "in front of", ("A dog behind it.", "In front of it."), _ELSEWHERE),
        # What a scene may hold.
        ("object", "fork", "spoon", ("A fork on a table.",), "scene"),
        ("object", "toilet", "sink", ("A toilet in a bathroom.",), "scene"),
        ("object", "toilet", "sink", ("A toilet by a barn.",), "scene"),  # a sign itself
        ("object", "toilet", "bed", ("A toilet by a barn.",), ""),
        # Pronouns keep the sex.
        ("object", "woman", "man", ("A woman and her dog.",), "pronoun"),
        ("object", "woman", "man", ("A woman and a dog.", "Her dog."), ""),
        ("object", "dog", "cat", ("A woman and her dog.",), ""),
    ],
)  # fmt: skip
def test_refusal_by_text(
    concept: str, source: str, target: str, captions: tuple[str, ...], reason: str
) -> None:
    assert _refusal(concept, source, target, *captions) == reason


@pytest.mark.parametrize(
    "source, target, caption, objects, reason",
    [
        ("dog", "cat", "A dog.", ("cat",), "annotated"),
        ("dog", "cat", "A dog.", ("Cat",), "annotated"),
        ("dog", "cat", "A dog.", ("dog", "bench"), ""),
        # A name of a broad class covers its kinds: an annotated "bird" may be a pigeon.
        ("seagull", "pigeon", "A seagull.", ("bird",), "annotated"),
        ("frisbee", "tennis ball", "A frisbee.", ("sports ball",), "annotated"),
        ("frisbee", "ball", "A frisbee.", ("sports ball",), "annotated"),
        ("scissors", "glove", "Scissors.", ("baseball glove",), "annotated"),
        # "Person" says nothing about the sex.
        ("man", "woman", "A man.", ("person",), ""),
        # An annotation opens a scene, too.
        ("bed", "couch", "A bed.", ("tv",), "scene"),
        ("dog", "cat", "A dog.", ("no such thing",), ""),
    ],
)
def test_refusal_by_annotations(
    source: str, target: str, caption: str, objects: tuple[str, ...], reason: str
) -> None:
    assert _refusal("object", source, target, caption, objects=objects) == reason


@pytest.mark.parametrize(
    "caption",
    [
        "A bathroom with no toilet.",
        "The cat isn't on the bed.",
        "The cat isn\u2019t on the bed.",
        "THE CAT ISN'T ON THE BED.",
        "The cat isnt on the bed.",
        "A sign prohibiting dogs.",
        "A dog or a cat on a bed.",
        "A cat that cannot reach the chair.",
        "A cat barely reaches the chair.",
        "A street without cars.",
        "An elephant, maybe a statue.",
    ],
)
def test_denials(caption: str) -> None:
    assert denies(CaptionText(caption))


@pytest.mark.parametrize(
    "caption", ["A dog on a bed.", "A knot in a rope.", "A notable car.", "The dog's bed.", ""]
)
def test_no_denials(caption: str) -> None:
    assert not denies(CaptionText(caption))
