"""What holds for every strategy that needs no model of its own; each has its own test file too."""

from collections import Counter

import pytest

from shard_tools.negatives import CaptionedSample, NegativeMaker, NegativeSettings
from shard_tools.negatives.captions import SampleText
from shard_tools.negatives.settings import KINDS
from shard_tools.negatives.strategies import strategies_of
from shard_tools.negatives.strategies.base import Task
from tests.support.strategies import WORDNET, check

STRATEGIES = ("swap", "negate", "shuffle", "wordnet")
ODD = [
    "",
    " ",
    "\n\t",
    ".",
    "A",
    "A a an.",
    "\U0001f600\U0001f680",
    "\U0001f600 A r\u00e9d dog \U0001f436\U0001f3fd chases a small cat \u2764\ufe0f",
    "\u4e00\u53ea\u732b\u5750\u5728\u6905\u5b50\u4e0a",
    "THE SMALL DOG \u0130S CHASING AN ELEPHANT",
    "cafe\u0301 na\u00efve \u2014 \u201cquoted\u201d dog chases a cat",
    "A dog\nchases\ta  cat\u00a0by a\u2028red bus and a blue car.",
    "a\u0000b\ufffd dog chases a cat",
    "$@#%^&*()_+-=[]{}|;':\",./<>?",
    "-dog- chases /red/ cat",
    "dog/cat",
    "word " * 390,
    "x" * 1999,
    "a small dog chases a cat " * 79,
]


def _settings(strategy: str, **changes: object) -> NegativeSettings:
    mix = {f"{strategy}.{kind}": 1.0 for kind in KINDS[strategy]}
    return NegativeSettings(mix=mix, wordnet=str(WORDNET), per_caption=99, **changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module", params=STRATEGIES)
def maker(request: pytest.FixtureRequest) -> NegativeMaker:
    return NegativeMaker(_settings(request.param), 0, None)


def test_odd_captions_come_back_whole(maker: NegativeMaker) -> None:
    samples = [CaptionedSample(str(n), (text, "A dog.")) for n, text in enumerate(ODD)]
    for text, made in zip(ODD, maker.make(samples), strict=True):
        assert [c.text for c in made.captions] == [text, "A dog."]
        for negative in made.captions[0].negatives:
            check(text, negative)


def test_the_batch_changes_nothing(maker: NegativeMaker, coco: list[CaptionedSample]) -> None:
    samples = coco[:30]
    together = [one.captions for one in maker.make(samples)]
    assert [maker.make([sample])[0].captions for sample in samples] == together
    assert [one.captions for one in maker.make(samples[::-1])] == together[::-1]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_order_of_the_mix_changes_nothing(strategy: str) -> None:
    settings = _settings(strategy)
    backwards = dict(reversed(settings.mix.items()))
    other = NegativeSettings(mix=backwards, wordnet=str(WORDNET), per_caption=99)
    one, two = (strategies_of(s, [], None)[0].kinds for s in (settings, other))
    assert one == two == tuple(sorted(one))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_thousands_of_captions_of_one_image_are_each_looked_at_once(
    strategy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = Counter[str]()
    from shard_tools.negatives import rules

    denies = rules.denies
    monkeypatch.setattr(
        rules, "denies", lambda caption: bool(looks.update(["x"])) or denies(caption)
    )
    (made,) = strategies_of(_settings(strategy), [], None)
    sample = SampleText.of(
        [f"A dog chases a cat by a red bus and a blue car {n}" for n in range(300)]
    )
    for number, caption in enumerate(sample.captions):
        made.begin(Task(sample, caption, Counter(), (0, "key", number, "x")))
    assert looks["x"] <= 600


def test_a_lexicon_of_ones_own_is_consulted() -> None:
    with pytest.raises(ValueError, match=r"'nowhere/object\.yaml' is not a file"):
        NegativeMaker(_settings("swap", lexicons={"object": "nowhere/object.yaml"}), 0, None)
    with pytest.raises(ValueError, match=r"'location' is not used in this mix \(only attribute"):
        _settings("swap", lexicons={"location": "location.yaml"})


def test_word_lists_of_every_concept_run_on_real_captions(coco: list[CaptionedSample]) -> None:
    made = NegativeMaker(NegativeSettings(preset="tsvlc", per_caption=9), 0, None).make(coco[:100])
    concepts = Counter(n.concept for one in made for c in one.captions for n in c.negatives)
    assert set(concepts) == {"object", "color", "size", "attribute", "action", "count"}
    for one in made:
        for caption in one.captions:
            for negative in caption.negatives:
                check(caption.text, negative)
