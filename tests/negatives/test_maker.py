"""The maker: deterministic for (settings, seed, sample), spread over concepts, hard to break."""

import random
import subprocess
import sys

import pytest

from shard_tools.negatives import (
    CaptionedSample,
    MadeNegatives,
    NegativeMaker,
    NegativeSettings,
)

SAMPLES = [
    CaptionedSample("a", ("A small red car in front of a tree.", "A car is parked.")),
    CaptionedSample("b", ("Two dogs on a blue couch.", "Dogs sleep."), ("dog", "couch")),
    CaptionedSample("c", ("A man on a horse next to a large white barn.",)),
    CaptionedSample("d", ("A cup, a book and an umbrella on a long table.",)),
]


def _strip(made: list[MadeNegatives]) -> list[tuple[object, dict[str, int]]]:
    return [(one.captions, dict(one.rejects)) for one in made]


def test_the_batch_changes_nothing(maker: NegativeMaker) -> None:
    together = dict(zip("abcd", _strip(maker.make(SAMPLES)), strict=True))
    for seed in range(3):
        order = random.Random(seed).sample(SAMPLES, len(SAMPLES))
        again = maker.make([*order, CaptionedSample("x", ("A giraffe in a boat.",)), *order])
        for sample, made in zip(order, _strip(again), strict=False):
            assert made == together[sample.key]
    for sample in SAMPLES:
        assert _strip(maker.make([sample])) == [together[sample.key]]


def test_batch_size_changes_neither_negatives_nor_fingerprint(maker: NegativeMaker) -> None:
    small = NegativeMaker(NegativeSettings(batch_size=1), seed=0)
    assert small.fingerprint == maker.fingerprint
    assert _strip(small.make(SAMPLES)) == _strip(maker.make(SAMPLES))


def test_another_process_makes_the_same(maker: NegativeMaker) -> None:
    program = (
        "from shard_tools.negatives import *\n"
        "m = NegativeMaker(NegativeSettings(), 0)\n"
        f"print([n.text for o in m.make({SAMPLES[:1]!r}) for c in o.captions for n in c.negatives])"
    )
    environment = {"PYTHONHASHSEED": "17", "PATH": ""}
    out = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment
    )
    here = [n.text for o in maker.make(SAMPLES[:1]) for c in o.captions for n in c.negatives]
    assert out.stdout.strip() == str(here)


def test_seed_key_and_caption_number_change_the_draw(maker: NegativeMaker) -> None:
    other = NegativeMaker(NegativeSettings(), seed=1)
    assert other.fingerprint != maker.fingerprint
    assert _strip(other.make(SAMPLES)) != _strip(maker.make(SAMPLES))
    caption = SAMPLES[3].captions[0]
    keys = [
        maker.make([CaptionedSample(key, (caption,))])[0].captions[0].negatives for key in "pqrst"
    ]
    assert len({tuple(n.text for n in negatives) for negatives in keys}) > 1
    twice = maker.make([CaptionedSample("p", (caption, caption))])[0].captions
    assert twice[0].negatives != twice[1].negatives


def test_concepts_are_spread(maker: NegativeMaker) -> None:
    caption = "A small red car in front of a tree."
    for key in "abcdefgh":
        (made,) = maker.make([CaptionedSample(key, (caption,))])
        drawn = [negative.concept for negative in made.captions[0].negatives]
        assert sorted(drawn) == ["color", "location", "object", "size"]


@pytest.mark.parametrize("most", [0, 3])
def test_at_most_per_caption(most: int) -> None:
    settings = NegativeSettings(concepts=["object", "color"], per_caption=most)
    for made in NegativeMaker(settings, seed=0).make(SAMPLES):
        for caption in made.captions:
            assert len(caption.negatives) <= most
            assert {n.concept for n in caption.negatives} <= {"object", "color"}


def test_of_alike_words_one_is_drawn(maker_of_all: NegativeMaker) -> None:
    (made,) = maker_of_all.make([CaptionedSample("key", ("A large car by a wall.",))])
    sizes = [n.target for n in made.captions[0].negatives if n.concept == "size"]
    assert len(sizes) == 1
    assert sizes[0] in ("small", "tiny")


def test_never_equal_to_a_positive(maker_of_all: NegativeMaker) -> None:
    captions = ("A cat sits on a table.", "a CAT sits under a table")
    (made,) = maker_of_all.make([CaptionedSample("key", captions)])
    positives = {c.lower().rstrip(".") for c in captions}
    for caption in made.captions:
        assert not {n.text.lower().rstrip(".") for n in caption.negatives} & positives


@pytest.mark.parametrize(
    "caption",
    [
        "",
        " ",
        "\n\t",
        ".",
        "A",
        "A a an.",
        "\U0001f600\U0001f680",
        "\u4e00\u53ea\u732b\u5750\u5728\u6905\u5b50\u4e0a",
        "\u0130STANBUL'DA B\u0130R KED\u0130 RED CAR",
        "cafe\u0301 na\u00efve \u2014 \u201cquoted\u201d",
        "a\u0000b\ufffd",
        "$@#%^&*()_+-=[]{}|;':\",./<>?",
        "-dog-",
        "/red/ car",
        "dog/cat",
        "word " * 3000,
        "x" * 10_000,
        "a red car " * 150,
    ],
    ids=lambda caption: repr(caption[:12]),
)
def test_odd_captions_come_back_whole(maker: NegativeMaker, caption: str) -> None:
    (made,) = maker.make([CaptionedSample("key", (caption, "A dog."))])
    assert [c.text for c in made.captions] == [caption, "A dog."]
    for negative in made.captions[0].negatives:
        assert caption[slice(*negative.span)] == negative.source


def test_emoji_do_not_shift_spans(maker_of_all: NegativeMaker) -> None:
    caption = "\U0001f600 A r\u00e9d man \U0001f436\U0001f3fd in front of a car \u2764\ufe0f"
    (made,) = maker_of_all.make([CaptionedSample("key", (caption,))])
    assert {n.source for n in made.captions[0].negatives} >= {"in front of", "car"}
    for negative in made.captions[0].negatives:
        start, end = negative.span
        assert caption[start:end] == negative.source
        assert negative.text.endswith(negative.target + caption[end:])


def test_a_page_is_no_caption(maker: NegativeMaker) -> None:
    (made,) = maker.make([CaptionedSample("key", ("A dog. " * 500,))])
    assert made.rejects == {"too_long": 1}


def test_nothing_in_nothing_out(maker: NegativeMaker) -> None:
    assert maker.make([]) == []


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"per_caption": -1}, "per_caption=-1"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"concepts": ["color", "color"]}, "given twice"),
        ({"lexicons": {"colour": "x.yaml"}}, "did you mean 'color'"),
    ],
)
def test_wrong_settings(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NegativeSettings(**settings)  # type: ignore[arg-type]


def test_an_unknown_concept_and_a_missing_model_say_what_to_do() -> None:
    with pytest.raises(ValueError, match=r"did you mean 'object'.*negatives\.lexicons"):
        NegativeMaker(NegativeSettings(concepts=["objects"]), seed=0)
    with pytest.raises(ValueError, match="pip install"):
        NegativeMaker(NegativeSettings(spacy_model="en_core_web_huge"), seed=0)


def test_importing_loads_neither_torch_nor_spacy() -> None:
    program = "import sys, shard_tools.negatives; print({'torch', 'spacy'} & set(sys.modules))"
    out = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert out.stdout.strip() == "set()"
