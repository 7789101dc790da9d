"""The adversary: what text alone gives away is thinned until it is at chance."""

import random
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from hnpretrain.cli import app
from shard_tools.negatives import CaptionedSample, NegativeMaker, NegativeSettings
from shard_tools.negatives.adversary import Adversary, Judged, learn

ROOT = Path(__file__).parents[2]
NOUNS = ("dog", "cat", "horse", "cow", "bird", "sheep", "goat", "bear")


def _pairs(count: int, seed: int, bias: float) -> list[Judged]:
    """Animals change places; a "bear" comes in as often as `bias` says, and never goes."""
    generator = random.Random(seed)
    pairs = []
    for number in range(count):
        source, target = generator.sample(NOUNS[:-1], 2)
        if generator.random() < bias:
            target = "bear"
        place = f"near pole {number}"
        pairs.append(
            Judged(f"{number}", f"a {source} stands {place}", f"a {target} stands {place}")
        )
    return pairs


def _seen_through(pairs: list[Judged]) -> float:
    """Pair accuracy of one who knows that bears are false, and tosses a coin without one."""
    return float(np.mean([1.0 if "bear" in pair.negative else 0.5 for pair in pairs]))


@pytest.fixture(scope="module")
def adversary() -> Adversary:
    return learn(_pairs(4000, 0, bias=0.4), rounds=2, seed=0)


def test_what_it_sees_through_is_thinned(adversary: Adversary) -> None:
    fresh = _pairs(3000, 1, bias=0.4)
    generator = random.Random(0)
    spared = [pair for pair in fresh if adversary.spares(pair, generator)]
    assert _seen_through(fresh) > 0.68
    assert _seen_through(spared) < 0.56
    assert len(spared) > 0.4 * len(fresh)


def test_nothing_to_see_is_left_alone() -> None:
    harmless = learn(_pairs(4000, 2, bias=0.0), rounds=2, seed=0)
    fresh = _pairs(2000, 3, bias=0.0)
    generator = random.Random(0)
    assert sum(harmless.spares(pair, generator) for pair in fresh) > 0.75 * len(fresh)


def test_the_file_gives_the_same_again(adversary: Adversary) -> None:
    data = adversary.to_bytes()
    again = Adversary.from_bytes(data, "file")
    assert again.to_bytes() == data
    assert again.digest == adversary.digest
    assert learn(_pairs(4000, 0, bias=0.4), rounds=2, seed=0).to_bytes() == data


@pytest.mark.parametrize("damage", ["nothing", "cut", "json", "other"])
def test_a_bad_file_is_one_line(adversary: Adversary, damage: str) -> None:
    data = adversary.to_bytes()
    if damage == "other":
        data = Adversary(*(np.zeros((1, 2, 3)),) * 3).to_bytes()
    else:
        data = {"nothing": b"", "cut": data[: len(data) // 2], "json": b"{}"}[damage]
    with pytest.raises(ValueError, match=r"^there\.bin: ") as error:
        Adversary.from_bytes(data, "there.bin")
    assert "\n" not in str(error.value)


def test_too_few_pairs_say_so() -> None:
    with pytest.raises(ValueError, match="more captions"):
        learn(_pairs(50, 0, bias=0.0), rounds=1, seed=0)


def test_the_command_and_the_maker(tmp_path: Path) -> None:
    """On real captions: what `shard adversary` learned, the maker counts as guessable."""
    common = (
        "source.kind=jsonl",
        f"source.path={ROOT / 'tests/assets/coco_ccby/data.jsonl'}",
        f"output={tmp_path / 'shards'}",
        "negatives.mix={shuffle.words: 1}",
        "negatives.per_caption=4",
    )
    file = tmp_path / "adversary.safetensors"
    result = CliRunner().invoke(
        app, ["shard", "adversary", str(file), *common, "--rounds", "1"], catch_exceptions=False
    )
    assert result.exit_code == 0, result.output
    settings = NegativeSettings(mix={"shuffle.words": 1}, per_caption=4, adversary=str(file))
    samples = [
        CaptionedSample(str(n), (f"A {a} dog on the {b} grass near a {c} house.",))
        for n, (a, b, c) in enumerate([("brown", "green", "red"), ("big", "wet", "old")] * 50)
    ]
    with_it = NegativeMaker(settings, 0, None)
    without = NegativeMaker(NegativeSettings(mix={"shuffle.words": 1}, per_caption=4), 0, None)
    assert with_it.fingerprint != without.fingerprint
    made = with_it.make(samples)
    dropped = sum(one.rejects["guessable"] for one in made)
    left = sum(len(c.negatives) for one in made for c in one.captions)
    before = sum(len(c.negatives) for one in without.make(samples) for c in one.captions)
    assert dropped > 0
    assert left + dropped == before


def test_words_must_be_counted_first(tmp_path: Path) -> None:
    arguments = (
        "source.kind=jsonl",
        f"source.path={ROOT / 'tests/assets/coco_ccby/data.jsonl'}",
        f"output={tmp_path / 'shards'}",
    )
    result = CliRunner().invoke(app, ["shard", "adversary", str(tmp_path / "a"), *arguments])
    assert isinstance(result.exception, ValueError)
    assert "shard count" in str(result.exception)


def test_a_missing_file_is_named() -> None:
    with pytest.raises(ValueError, match="'absent' is not a file"):
        NegativeMaker(NegativeSettings(adversary="absent"), 0, None)
