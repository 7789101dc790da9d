"""Which words are taken to be used in their lexicon's role, and what surrounds them."""

import pytest

from shard_tools.negatives.captions import CaptionText, TaggedCaption
from shard_tools.negatives.lexicon import load_lexicon
from shard_tools.negatives.roles import Use, use_of
from shard_tools.negatives.tagger import Tagger
from tests.support.proposals import Proposer


@pytest.mark.parametrize(
    "caption, concept, sources",
    [
        # The same word is and is not of the concept.
        ("An orange sits on a plate.", "color", set()),
        ("An orange cat sits on a chair.", "color", {"orange"}),
        ("An orange boat can be seen.", "color", {"orange"}),
        ("The boat is orange.", "color", {"orange"}),
        ("A glass of orange juice on a table.", "color", set()),
        ("An orange cat sits on a chair.", "object", {"cat", "chair"}),
        ("A black and white photo of a dog.", "color", set()),
        ("A green and white bus.", "color", {"green", "white"}),
        ("A black man and a white woman.", "color", set()),
        ("A brown bear in a river.", "color", set()),
        ("A red-haired girl.", "color", set()),
        ("A woman dressed in red by a wall.", "color", {"red"}),
        ("How long is the train?", "size", set()),
        ("A long train on the tracks.", "size", {"long"}),
        ("A man with a short sleeve shirt.", "size", set()),
        ("A little bit of snow.", "size", set()),
        ("A large number of people.", "size", set()),
        ("A large group of people.", "size", {"large"}),
        ("A very large bus.", "size", set()),
        ("Big Ben is a clock.", "size", set()),
        ("A little girl by a wall.", "size", set()),
        ("The man left the house.", "location", set()),
        ("A cup to the left of a lamp.", "location", {"to the left of"}),
        ("A man puts on a shirt.", "location", set()),
        ("A dog in the background.", "location", {"in the background"}),
        ("Cars under a blue sky.", "location", set()),
        ("A cat on top of a car.", "location", {"on top of"}),
        ("Outside tables by a wall.", "location", set()),
        ("A dog outside.", "location", {"outside"}),
        ("A man walks up a hill.", "location", {"up"}),
        ("A man looks up a word.", "location", set()),
        # "Near" is not undone by being behind: it has no opposite that captions write.
        ("A sign near the road.", "location", set()),
        # Materials and states.
        ("A wooden table.", "attribute", {"wooden"}),
        ("A glass table.", "attribute", {"glass"}),
        ("A glass of wine.", "attribute", set()),
        ("The door is open.", "attribute", {"open"}),
        ("A man opens a door.", "attribute", set()),
        ("A hot dog on a plate.", "attribute", set()),
        ("An old man on a bench.", "attribute", {"old"}),
        ("A two year old boy.", "attribute", set()),
        # Actions.
        ("A dog sits on a couch.", "action", {"sits"}),
        ("A man who is eating pizza.", "action", {"eating"}),
        ("A sleeping dog on a bed.", "action", set()),
        ("A parked car by a wall.", "action", set()),
        ("A man is sitting up in bed.", "action", set()),
        ("A swimming pool by a wall.", "action", set()),
        ("A train sits on the tracks.", "action", set()),
        ("A man takes a walk.", "action", set()),
        # Numbers.
        ("Two large brown dogs by a wall.", "count", {"Two"}),
        ("Four people and three dogs.", "count", {"Four", "three"}),
        ("A two story house.", "count", set()),
        ("A two year old boy.", "count", set()),
        ("Two of the men stand.", "count", set()),
        ("Bus number 5 by a wall.", "count", set()),
        ("A dozen donuts in a box.", "count", set()),
        ("One dog by a wall.", "count", set()),
        # Compounds and idioms.
        ("A car seat.", "object", set()),
        ("A fire truck by a wall.", "object", {"fire truck"}),
        ("A teddy bear by a wall.", "object", {"teddy bear"}),
        ("Two hot dogs by a wall.", "object", {"hot dogs"}),
        ("A person with a tennis racket.", "object", {"tennis racket"}),
        ("A tennis player serving.", "object", {"tennis player"}),
        ("A glass table by a wall.", "object", set()),
        ("A statue of a cat.", "object", {"cat"}),
        ("A Dog Walker by a wall.", "object", set()),
        # What a noun does stands before it: "a standing lamp" names a kind.
        ("A sleeping dog by a wall.", "object", set()),
        # Not known whether one or more.
        ("The sheep stands in snow.", "object", {"snow"}),
        ("Three sheep stand in snow.", "object", {"snow"}),
        ("A sheep stands in snow.", "object", {"sheep", "snow"}),
        ("Three lambs stand in snow.", "object", {"lambs", "snow"}),
    ],
)
def test_what_is_replaced(propose: Proposer, caption: str, concept: str, sources: set[str]) -> None:
    assert set(propose(caption, concept=concept).edits()) == sources


def _use(tagger: Tagger, text: str, concept: str, word: str) -> Use | None:
    """The use of the word in the text."""
    lexicon = load_lexicon(concept)
    caption = CaptionText(text)
    (doc,) = tagger.tag([text])
    (mention,) = [
        each for each in caption.mentions(lexicon) if " ".join(each.form.words) == word.lower()
    ]
    tagged = TaggedCaption(caption, doc)
    return use_of(tagged, mention, lexicon.words[mention.form.lemma], lexicon.role)


@pytest.mark.parametrize(
    "text, concept, word, heads, after, before",
    [
        ("A man riding a brown horse.", "object", "horse", {"ride", "brown"}, "", "."),
        ("A bird that is flying.", "object", "bird", {"fly"}, "", "that"),
        ("A man sits on a bench by a wall.", "object", "bench", {"sit"}, "on", "by"),
        # Of joined things the first tells what governs them all.
        ("A plate with meat, rice and broccoli.", "object", "broccoli", {"plate"}, "with", "."),
        ("A small red car.", "color", "red", {"car"}, "small", "car"),
        ("A red and white city bus.", "color", "red", {"bus"}, "a", "and"),
        ("The old boat is red.", "color", "red", {"boat"}, "is", "."),
        ("A dog on the wet grass.", "location", "on", {"grass"}, "dog", "the"),
        ("A dog behind it.", "location", "behind", {"it"}, "dog", "it"),
        ("Two old men.", "count", "two", {"men"}, "", "old"),
        ("A man in a hat rides a horse.", "action", "rides", {"hat"}, "hat", "a"),
        ("A man quietly rides a horse.", "action", "rides", {"man"}, "quietly", "a"),
    ],
)
def test_what_surrounds_a_word(
    tagger: Tagger, text: str, concept: str, word: str, heads: set[str], after: str, before: str
) -> None:
    use = _use(tagger, text, concept, word)
    assert use is not None
    assert heads <= use.heads
    assert (use.after, use.before) == (after, before)


@pytest.mark.parametrize(
    "text, word, countable, determined",
    [
        ("A cup.", "cup", "single", True),
        ("Two cups.", "cups", "plural", True),
        ("Cups on a wall.", "cups", "plural", False),
        ("Some cake.", "cake", "mass", True),
        ("The cake.", "cake", "open", True),
        ("His cake.", "cake", "open", True),
        ("Cake by a wall.", "cake", "open", False),
        ("One more cake.", "cake", "single", True),
    ],
)
def test_countable(tagger: Tagger, text: str, word: str, countable: str, determined: bool) -> None:
    use = _use(tagger, text, "object", word)
    assert use is not None
    assert (use.countable, use.determined) == (countable, determined)


@pytest.mark.parametrize(
    "text", ["A red-brown dog.", "A red/white car.", "-red car", "A dark-red car."]
)
def test_a_word_joined_to_another_is_left_alone(tagger: Tagger, text: str) -> None:
    caption, lexicon = CaptionText(text), load_lexicon("color")
    (doc,) = tagger.tag([text])
    joined = [m for m in caption.mentions(lexicon) if m.form.lemma == "red"]
    assert joined
    for mention in joined:
        word = lexicon.words[mention.form.lemma]
        assert use_of(TaggedCaption(caption, doc), mention, word, lexicon.role) is None
