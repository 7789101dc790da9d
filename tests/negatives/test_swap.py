"""swap: two pieces change places where each can stand where the other does."""

import pytest

from shard_tools.negatives import CaptionedSample, NegativeMaker, NegativeSettings
from shard_tools.negatives.lexicon import load_lexicon
from shard_tools.negatives.settings import KINDS, SwapSettings
from shard_tools.negatives.strategies.swap import Swap
from shard_tools.negatives.tagger import Tagger
from tests.support.strategies import check, make, words_of

QUALITIES = ("color", "size", "attribute")


def _swap(*kinds: str, plausible: bool = True) -> Swap:
    objects, *qualities = map(load_lexicon, ("object", *QUALITIES))
    return Swap(kinds or KINDS["swap"], objects, qualities, plausible)


@pytest.fixture(scope="module")
def swap() -> Swap:
    return _swap()


@pytest.fixture(scope="module")
def loose() -> Swap:
    return _swap(plausible=False)


@pytest.mark.parametrize(
    "kind, caption, expected",
    [
        ("noun", "A dog chases a cat.", "A cat chases a dog."),
        ("noun", "A big dog chases an old elephant.", "A big elephant chases an old dog."),
        ("noun", "A DOG CHASES AN ELEPHANT.", "AN ELEPHANT CHASES A DOG."),
        ("noun_chunk", "A big dog chases an old cat.", "An old cat chases a big dog."),
        ("noun_chunk", "Two dogs are chasing cats.", "Cats are chasing two dogs."),
        ("arguments", "A man holding a small dog.", "A small dog holding a man."),
        ("arguments", "A man holding two dogs.", "Two dogs holding a man."),
        ("arguments", "A woman standing behind a horse.", "A horse standing behind a woman."),
        ("arguments", "A dog is held by a man.", "A man is held by a dog."),
        ("adjective", "A blue car by an orange bus.", "An orange car by a blue bus."),
        ("adjective", "An old man holding a young dog.", "A young man holding an old dog."),
        (
            "verb_phrase",
            "A man riding a bike and a woman walking a dog.",
            "A man walking a dog and a woman riding a bike.",
        ),
        (
            "adverb",
            "A dog is running quickly and a cat is walking slowly.",
            "A dog is running slowly and a cat is walking quickly.",
        ),
    ],
)
def test_pieces_change_places(
    swap: Swap, tagger: Tagger, kind: str, caption: str, expected: str
) -> None:
    assert expected in make(swap, tagger, caption).of(kind)


@pytest.mark.parametrize(
    "caption, reason",
    [
        ("A dog and a cat.", "list"),
        ("A toilet a sink and a bathtub.", "list"),
        ("A dog next to a cat.", "symmetric"),
        ("A dog playing with a cat.", "symmetric"),
        ("A man kissing a woman.", "symmetric"),
        ("A dog chases an animal.", "synonym"),
        ("A cat sleeping on a bed.", "context"),
        ("A dog chases a cat away from a dog.", "repeated"),
        ("A man holding a dog on his lap.", "pronoun"),
        ("A dog that is not a cat chases a horse.", "negated"),
        ("A red car by a red bus.", "synonym"),
        ("A red car next to a blue car.", "repeated"),
    ],
)
def test_what_would_say_the_same_is_left_alone(
    swap: Swap, tagger: Tagger, caption: str, reason: str
) -> None:
    made = make(swap, tagger, caption)
    assert not made.texts
    assert made.rejects[reason]


def test_verbs_must_agree(swap: Swap, tagger: Tagger) -> None:
    made = make(swap, tagger, "A dog chases two cats.")
    assert not made.texts
    assert made.rejects["number"]


@pytest.mark.parametrize(
    "caption, other",
    [
        ("A dog chases a cat.", "A cat that runs after a dog."),
        ("A red car by a blue bus.", "A blue small car on a street."),
    ],
)
def test_what_another_caption_says_is_no_negative(
    swap: Swap, tagger: Tagger, caption: str, other: str
) -> None:
    assert make(swap, tagger, caption).texts
    made = make(swap, tagger, caption, other)
    assert not made.texts
    assert made.rejects["mentioned_elsewhere"]


def test_any_two_things_are_swapped_on_request(swap: Swap, loose: Swap, tagger: Tagger) -> None:
    caption = "A cat sleeping on an orange couch."
    assert not make(swap, tagger, caption).texts
    assert make(loose, tagger, caption).of("noun_chunk") == {"An orange couch sleeping on a cat."}
    # What no grammar allows, or what says the same, is left alone there too.
    for other in ("A cat and a couch.", "A glass of water.", "A cat next to a couch."):
        assert not make(loose, tagger, other).texts


@pytest.mark.parametrize(
    "caption", ["An SUV passing behind a bus.", "The cat of Tom chases Dog.", "A man rides Horse."]
)
def test_names_stay_where_they_are(loose: Swap, tagger: Tagger, caption: str) -> None:
    assert not make(loose, tagger, caption).texts


@pytest.mark.parametrize(
    "caption",
    [
        "A motorcycle in a parking lot.",
        "A man in a white shirt.",
        "A man sitting at a desk.",
        "A boy taking a picture.",
        "Slices on a plate on a table.",
        "A cat lying amidst a computer.",
        "A red yellow and blue airplane.",
        "A man dressed sharply smiles happily.",
    ],
)
def test_what_no_one_would_read_to_its_end_is_not_made(
    loose: Swap, tagger: Tagger, caption: str
) -> None:
    assert not make(loose, tagger, caption).texts


def test_a_participle_is_no_part_of_the_noun_after_it(loose: Swap, tagger: Tagger) -> None:
    made = make(loose, tagger, "A child smiles while being handed an umbrella.")
    assert made.texts == {"An umbrella smiles while being handed a child."}


def test_what_a_verb_governs_stays_with_it(loose: Swap, tagger: Tagger) -> None:
    texts = make(loose, tagger, "A man riding a skateboard down the street.").texts
    assert "A skateboard riding a man down the street." in texts
    assert not any("riding the street" in text for text in texts)


@pytest.mark.parametrize(
    "caption", ["A woman skiing down a snowy hill.", "A man in a hat walks on street."]
)
def test_adjectives_and_articles_go_with_their_nouns(
    loose: Swap, tagger: Tagger, caption: str
) -> None:
    assert not make(loose, tagger, caption).of("noun")


def test_no_color_comes_to_a_person(swap: Swap, tagger: Tagger) -> None:
    caption = "A woman leading a white horse."
    assert not make(swap, tagger, caption).of("noun")
    assert make(swap, tagger, caption).of("noun_chunk") == {"A white horse leading a woman."}


@pytest.mark.parametrize("plausible", [True, False])
def test_the_published_mix_runs_on_real_captions(
    coco: list[CaptionedSample], plausible: bool
) -> None:
    settings = NegativeSettings(preset="negclip", swap=SwapSettings(plausible), per_caption=9)
    maker = NegativeMaker(settings, 0, None)
    made = [(c, n) for one in maker.make(coco[:500]) for c in one.captions for n in c.negatives]
    for caption, negative in made:
        check(caption.text, negative)
        assert negative.strategy == "swap"
        # Only the order changed.
        assert words_of(caption.text) == words_of(negative.text)
    concepts = {negative.concept for _, negative in made}
    assert concepts == {"order", "attribute"}
    assert len(made) > (30 if plausible else 400)


def test_the_setting_is_part_of_the_identity() -> None:
    assert _swap("noun").identity != _swap("noun", plausible=False).identity
