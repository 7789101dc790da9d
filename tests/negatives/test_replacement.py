"""Concept replacement: which words it takes for the concept, and what it puts there."""

import re

import pytest

from hnpretrain.shards.schema import Negative
from shard_tools.negatives import CaptionedSample, NegativeMaker


def _negatives(
    maker: NegativeMaker, *captions: str, objects: tuple[str, ...] = ()
) -> tuple[Negative, ...]:
    """The negatives of the first caption, under enough keys that all alike targets are drawn."""
    samples = [CaptionedSample(f"key{i}", captions, objects) for i in range(8)]
    return tuple(n for made in maker.make(samples) for n in made.captions[0].negatives)


def _edits(negatives: tuple[Negative, ...], concept: str) -> dict[str, set[str]]:
    edits: dict[str, set[str]] = {}
    for negative in negatives:
        if negative.concept == concept:
            edits.setdefault(negative.source, set()).add(negative.target)
    return edits


@pytest.mark.parametrize(
    "caption, concept, sources",
    [
        # Roles: the same word is and is not of the concept.
        ("An orange sits on a plate.", "color", set()),
        ("An orange cat sits on a chair.", "color", {"orange"}),
        ("An orange boat can be seen.", "color", {"orange"}),
        ("The boat is orange.", "color", {"orange"}),
        ("A glass of orange juice on a table.", "color", set()),
        ("An orange cat sits on a chair.", "object", {"cat", "chair"}),
        ("A black and white photo of a dog.", "color", set()),
        ("A black man and a white woman.", "color", set()),
        ("A red-haired girl.", "color", set()),
        ("A woman dressed in red by a wall.", "color", {"red"}),
        ("How long is the train?", "size", set()),
        ("A long train on the tracks.", "size", {"long"}),
        ("A man with a short sleeve shirt.", "size", set()),
        ("A little bit of snow.", "size", set()),
        ("A large group of people.", "size", set()),
        ("Big Ben is a clock.", "size", set()),
        ("The man left the house.", "location", set()),
        ("A cup to the left of a lamp.", "location", {"to the left of"}),
        ("A man puts on a shirt.", "location", set()),
        ("A sign near the road.", "location", {"near"}),
        ("Cars under a blue sky.", "location", set()),
        ("A cat on top of a car.", "location", {"on top of"}),
        # Compounds and idioms.
        ("A car seat.", "object", set()),
        ("A fire truck by a wall.", "object", {"fire truck"}),
        ("A teddy bear by a wall.", "object", {"teddy bear"}),
        ("Two hot dogs by a wall.", "object", {"hot dogs"}),
        ("A person with a tennis racket.", "object", {"tennis racket"}),
        ("A tennis player serving.", "object", set()),
        ("A glass table by a wall.", "object", set()),
        # Words that go together.
        ("A cat in a fireplace.", "object", {"cat"}),
        ("A statue of a cat.", "object", {"cat"}),
        # Negation, likeness, alternatives: a false word may make a true caption.
        ("A bathroom with no toilet.", "object", set()),
        ("The cat isn't on the bed.", "object", set()),
        ("The cat isn\u2019t on the bed.", "object", set()),
        ("A sign prohibiting dogs.", "object", set()),
        ("It looks like a dog.", "object", set()),
        ("A dog or a cat on a bed.", "object", set()),
        ("The cat isnt on the bed.", "object", set()),
        ("A cat that cannot reach the chair.", "object", set()),
        ("A cat barely reaches the chair.", "object", set()),
        # The one of two that is not changed may be meant.
        ("A dog looks at another dog.", "object", set()),
        ("An elephant walks behind another elephant.", "location", set()),
        ("An elephant walks behind another.", "location", set()),
        ("Two buses, one in front of the other.", "location", set()),
        ("A car to the left of another vehicle.", "location", set()),
        ("A bird above other birds.", "location", set()),
        ("A box on top of another container.", "location", set()),
        ("A train behind a train.", "location", set()),
        ("A train behind a bus.", "location", {"behind"}),
        ("A bird above a boat.", "location", {"above"}),
        # Not known whether one or more.
        ("The sheep stands in snow.", "object", {"snow"}),
    ],
)
def test_roles(maker_of_all: NegativeMaker, caption: str, concept: str, sources: set[str]) -> None:
    assert set(_edits(_negatives(maker_of_all, caption), concept)) == sources


@pytest.mark.parametrize(
    "caption, negative",
    [
        ("An apple on a chair.", "A potato on a chair."),
        ("A cup by a wall.", "An umbrella by a wall."),
        ("A  cup by a wall.", "An  umbrella by a wall."),
        ("Cup by a wall.", "Umbrella by a wall."),
        ("A CUP BY A WALL", "AN UMBRELLA BY A WALL"),
        ("A red car.", "A blue car."),
        ("A blue car.", "An orange car."),
        ("Two dogs run.", "Two cats run."),
        ("Two bookshelves by a wall.", "Two bathtubs by a wall."),
        ("Three sheep on a hill.", "Three goats on a hill."),
        ("The dog's bowl.", "The cat's bowl."),
        ("Some cake on a chair.", "Some pizza on a chair."),
        ("A cat on a table.", "A cat under a table."),
        ("A man in front of a car.", "A man behind a car."),
        ("A tall tree.", "A short tree."),
        ("Stop sign by a wall", "Lantern by a wall"),
        ("A man throws a ball.", "A man throws a frisbee."),
        ("A man throws a frisbee.", "A man throws a ball."),
        ("A man carrying skis.", "A man carrying surfboards."),
        ("A cat in a sink.", "A cat in a suitcase."),
        ("A statue by a wall.", "A mailbox by a wall."),
    ],
)
def test_edits(maker_of_all: NegativeMaker, caption: str, negative: str) -> None:
    assert negative in {n.text for n in _negatives(maker_of_all, caption)}


@pytest.mark.parametrize(
    "caption, forbidden",
    [
        # Synonyms, broader and narrower words.
        ("A man on a bench.", {"person", "people", "boy", "guy"}),
        ("A boy on a bench.", {"child", "kid", "person", "man"}),
        ("A couch by a wall.", {"sofa", "furniture", "seat"}),
        ("A large car.", {"big", "huge", "tall", "long"}),
        ("A tall tree.", {"small", "tiny"}),
        ("A red car.", {"orange", "pink", "brown", "purple"}),
        ("A sign near a road.", {"next to", "behind", "in front of"}),
        # Number and countability.
        ("Two dogs run.", {"cat"}),
        ("A dog is running.", {"cats"}),
        ("Some cake on a chair.", {"sandwich"}),
        ("A piece of luggage.", {"suitcase"}),
        # Worn at the same time.
        ("A man carrying skis.", {"gloves", "headphones"}),
        ("A man wearing sunglasses.", {"gloves"}),
        ("A man wearing headphones.", {"gloves"}),
        ("A man wearing a shirt.", {"coat", "robe"}),
        # What the words around it do not go with.
        ("A cat in a sink.", {"couch", "bed", "piano", "fireplace"}),
    ],
)
def test_never(maker_of_all: NegativeMaker, caption: str, forbidden: set[str]) -> None:
    targets = {n.target for n in _negatives(maker_of_all, caption)}
    assert targets
    assert not targets & forbidden


@pytest.mark.parametrize(
    "captions, objects, concept, source, target",
    [
        (("A dog on grass.", "A cat."), (), "object", "dog", "cat"),
        (("A dog on grass.", "Kittens."), (), "object", "dog", "cat"),
        (("A dog on grass.", "Some animals."), (), "object", "dog", "cat"),
        (("A dog on grass.",), ("cat",), "object", "dog", "cat"),
        (("A dog on grass.",), ("Cat",), "object", "dog", "cat"),
        (("A man throws a frisbee.",), ("sports ball",), "object", "frisbee", "ball"),
        (("A boy has scissors.",), ("baseball glove",), "object", "scissors", "gloves"),
        (("A seagull on grass.",), ("bird",), "object", "seagull", "pigeon"),
        (("A man on grass.", "A woman."), (), "object", "man", "woman"),
        (("A man on grass.", "Two people."), (), "object", "man", "woman"),
        (("A red car.", "A blue bus."), (), "color", "red", "blue"),
        (("A red car.", "Navy trucks."), (), "color", "red", "blue"),
        (("A red car.", "Colorful cars."), (), "color", "red", "blue"),
        (("A big dog.", "A small cat."), (), "size", "big", "tiny"),
        (("A cat on a table.", "A cup below it."), (), "location", "on", "under"),
        (("Cars on the left.", "right"), (), "location", "on the left", "on the right"),
        # What a scene may hold.
        (("A fork on a table.",), (), "object", "fork", "spoon"),
        (("A bathroom with a toilet.",), (), "object", "toilet", "sink"),
    ],
)
def test_what_the_image_may_show_is_no_negative(
    maker_of_all: NegativeMaker,
    captions: tuple[str, ...],
    objects: tuple[str, ...],
    concept: str,
    source: str,
    target: str,
) -> None:
    edits = _edits(_negatives(maker_of_all, *captions, objects=objects), concept)
    assert target not in edits.get(source, set())


def test_one_person_may_be_the_man_himself(maker_of_all: NegativeMaker) -> None:
    alone = _negatives(maker_of_all, "A man on grass.", "A person rests.", objects=("person",))
    assert _edits(alone, "object")["man"] == {"woman"}


def test_pronouns_keep_the_gender(maker_of_all: NegativeMaker) -> None:
    edits = _edits(_negatives(maker_of_all, "A woman and her dog."), "object")
    assert "woman" not in edits
    assert "cat" in edits["dog"]


def test_the_span_marks_the_concept_alone(maker_of_all: NegativeMaker) -> None:
    caption = "There is a cup on AN ice block."
    umbrella = next(n for n in _negatives(maker_of_all, caption) if n.target == "umbrella")
    assert umbrella.text == "There is an umbrella on AN ice block."
    assert caption[slice(*umbrella.span)] == umbrella.source == "cup"
    assert umbrella.strategy == "replace"


@pytest.mark.parametrize(
    "caption, reason",
    [
        ("A bathroom with no toilet.", "negated"),
        ("A car seat by a dog bed.", "no_candidate"),
        ("A glass table.", "role"),
        ("A dog and a dog.", "repeated"),
        ("A woman and her cup.", "pronoun"),
        ("A dog. A cat. A fox.", "mentioned_elsewhere"),
        ("A vase in a bathroom.", "scene"),
        ("A black man.", "context"),
        ("A train behind a train.", "repeated"),
    ],
)
def test_rejects_are_counted_by_reason(
    maker_of_all: NegativeMaker, caption: str, reason: str
) -> None:
    (made,) = maker_of_all.make([CaptionedSample("key", (caption,))])
    assert made.rejects[reason] > 0


def test_objects_are_counted_as_annotated(maker_of_all: NegativeMaker) -> None:
    (made,) = maker_of_all.make([CaptionedSample("key", ("A dog.",), ("cat", "sports ball"))])
    assert made.rejects["annotated"] == 1


def test_articles_agree_in_every_negative(maker_of_all: NegativeMaker) -> None:
    captions = ["A cup.", "An apple by a wall.", "A blue car.", "An elephant.", "A dog on a chair."]
    for caption in captions:
        for negative in _negatives(maker_of_all, caption):
            assert not re.search(r"\b[Aa] [aeiou]|\b[Aa]n [^aeiou]", negative.text), negative.text
