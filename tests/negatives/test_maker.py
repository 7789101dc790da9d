"""The maker: deterministic for (settings, seed, sample), spread over concepts, hard to break."""

import json
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from shard_tools.negatives import (
    CaptionedSample,
    MadeNegatives,
    NegativeMaker,
    NegativeSettings,
    frequency_counter,
)
from shard_tools.negatives.lexicon import load_lexicon
from shard_tools.negatives.settings import PRESETS
from tests.negatives.conftest import MANY

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
    small = NegativeMaker(NegativeSettings(per_caption=4, draws=40, batch_size=1), 0, None)
    assert small.fingerprint == maker.fingerprint
    assert _strip(small.make(SAMPLES)) == _strip(maker.make(SAMPLES))


def test_another_process_makes_the_same(maker: NegativeMaker) -> None:
    program = (
        "from shard_tools.negatives import *\n"
        "m = NegativeMaker(NegativeSettings(per_caption=4, draws=40), 0, None)\n"
        f"print([n.text for o in m.make({SAMPLES[:1]!r}) for c in o.captions for n in c.negatives])"
    )
    environment = {"PYTHONHASHSEED": "17", "PATH": ""}
    out = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment
    )
    here = [n.text for o in maker.make(SAMPLES[:1]) for c in o.captions for n in c.negatives]
    assert out.stdout.strip() == str(here)


def test_seed_key_and_caption_number_change_the_draw(maker: NegativeMaker) -> None:
    other = NegativeMaker(NegativeSettings(per_caption=4, draws=40), 1, None)
    assert other.fingerprint != maker.fingerprint
    assert _strip(other.make(SAMPLES)) != _strip(maker.make(SAMPLES))
    caption = SAMPLES[3].captions[0]
    keys = [
        maker.make([CaptionedSample(key, (caption,))])[0].captions[0].negatives for key in "pqrst"
    ]
    assert len({tuple(n.text for n in negatives) for negatives in keys}) > 1
    twice = maker.make([CaptionedSample("p", (caption, caption))])[0].captions
    assert twice[0].negatives != twice[1].negatives


def test_concepts_are_spread(maker_of_all: NegativeMaker) -> None:
    """The first four of all that can be made are of four concepts."""
    caption = "A small red car in front of a tree."
    for key in "abcdefgh":
        (made,) = maker_of_all.make([CaptionedSample(key, (caption,))])
        drawn = [negative.concept for negative in made.captions[0].negatives]
        assert len(drawn) > 8
        assert sorted(drawn[:4]) == ["color", "location", "object", "size"]


def test_every_place_comes_once_before_one_comes_twice(maker_of_all: NegativeMaker) -> None:
    caption = "A ball, a book and an umbrella by a wall."
    for key in "abcdefgh":
        (made,) = maker_of_all.make([CaptionedSample(key, (caption,))])
        drawn = [negative.source for negative in made.captions[0].negatives]
        assert set(drawn[:3]) == {"ball", "book", "umbrella"}


def test_weights_say_whose_turn_comes_first() -> None:
    mix = {"replace.object": 9.0, "replace.color": 1.0}
    maker = NegativeMaker(NegativeSettings(mix=mix, per_caption=1, draws=MANY), 0, None)
    samples = [CaptionedSample(f"{key}", ("A red car by a wall.",)) for key in range(400)]
    concepts = Counter(
        negative.concept for made in maker.make(samples) for negative in made.captions[0].negatives
    )
    assert concepts.total() == 400
    assert 340 <= concepts["object"] <= 380  # 360, and three standard deviations of 6


@pytest.mark.parametrize("most", [0, 2])
def test_at_most_per_caption(most: int) -> None:
    mix = {"replace.object": 1.0, "replace.color": 1.0}
    maker = NegativeMaker(NegativeSettings(mix=mix, per_caption=most, draws=40), 0, None)
    counts = set()
    for made in maker.make(SAMPLES):
        for caption in made.captions:
            counts.add(len(caption.negatives))
            assert {n.concept for n in caption.negatives} <= {"object", "color"}
    assert max(counts) == most


def test_of_alike_words_one_is_drawn(maker_of_all: NegativeMaker) -> None:
    (made,) = maker_of_all.make([CaptionedSample("key", ("A large car by a wall.",))])
    sizes = [n.target for n in made.captions[0].negatives if n.concept == "size"]
    assert len(sizes) == 1
    lexicon = load_lexicon("size")
    assert lexicon.forms[(sizes[0],)].lemma in ("small", "little", "tiny")


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


def test_all_that_decides_is_in_the_identity(tmp_path: Path, maker: NegativeMaker) -> None:
    settings = {"per_caption": 4, "draws": 40}
    path = tmp_path / "size.yaml"
    path.write_text("concept: size\nextends: builtin\nwords: [vast]\n", encoding="utf-8")
    counter = frequency_counter(NegativeSettings())
    counter.add(("A red car.",))
    others = [
        NegativeMaker(NegativeSettings(**settings | change), seed, table)  # type: ignore[arg-type]
        for change, seed, table in [
            ({}, 1, None),
            ({"draws": 41}, 0, None),
            ({"per_caption": 3}, 0, None),
            ({"mix": {"replace.color": 1.0}}, 0, None),
            ({"lexicons": {"size": str(path)}}, 0, None),
            ({}, 0, counter.table()),
        ]
    ]
    prints = {each.fingerprint for each in (maker, *others)}
    assert len(prints) == 1 + len(others)
    for other in others:
        assert other.identity != maker.identity
        assert json.loads(json.dumps(other.identity)) == other.identity
    # The same lexicon under another name is the same, and so is what the preset says anyway.
    elsewhere = tmp_path / "again.yaml"
    elsewhere.write_text(path.read_text("utf-8"), encoding="utf-8")
    mix = dict(PRESETS["hn"].mix)
    again = NegativeSettings(lexicons={"size": str(elsewhere)}, mix=mix, **settings)  # type: ignore[arg-type]
    assert NegativeMaker(again, 0, None).fingerprint == others[4].fingerprint


def test_an_unknown_concept_and_a_missing_model_say_what_to_do() -> None:
    with pytest.raises(ValueError, match=r"did you mean 'object'.*negatives\.lexicons"):
        NegativeMaker(NegativeSettings(mix={"replace.objects": 1}), 0, None)
    with pytest.raises(ValueError, match="pip install"):
        NegativeMaker(NegativeSettings(spacy_model="en_core_web_huge"), 0, None)


def test_importing_loads_neither_torch_nor_spacy() -> None:
    program = "import sys, shard_tools.negatives; print({'torch', 'spacy'} & set(sys.modules))"
    out = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert out.stdout.strip() == "set()"
