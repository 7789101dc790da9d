"""The section `negatives:`: mixes and presets, and what is refused."""

import pytest

from hnpretrain.config import load
from shard_tools.negatives import NegativeSettings, needs_frequencies
from shard_tools.negatives.settings import KINDS, PRESETS


def test_the_defaults_are_those_of_the_paper() -> None:
    settings = NegativeSettings()
    assert set(settings.concepts()) == {"object", "color", "size", "location"}
    assert settings.most() == 3
    assert needs_frequencies(settings)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_a_mix_of_known_kinds(name: str) -> None:
    settings = NegativeSettings(preset=name)
    assert settings.weights() == dict(PRESETS[name].mix)
    assert settings.most() == PRESETS[name].per_caption > 0
    for kind in settings.weights():
        NegativeSettings(mix={kind: 1})  # each alone is allowed
    assert needs_frequencies(settings) == (name in ("hn", "tsvlc"))


def test_a_mix_takes_the_place_of_the_presets() -> None:
    settings = NegativeSettings(preset="negclip", mix={"replace.color": 2, "swap.noun": 0})
    assert settings.weights() == {"replace.color": 2}
    assert settings.kinds_of("swap") == []
    assert settings.most() == 1


def test_per_caption_may_be_none_at_all() -> None:
    assert NegativeSettings(per_caption=0).most() == 0
    assert NegativeSettings(per_caption=7).most() == 7


def test_settings_come_from_the_command_line() -> None:
    settings = load(
        NegativeSettings, None, ["mix={replace.color: 2, shuffle.words: 1}", "fill.top=5"]
    )
    assert settings.weights() == {"replace.color": 2, "shuffle.words": 1}
    assert settings.fill.top == 5


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"preset": "hnn"}, r"negatives\.preset.*hnn.*hn, negclip"),
        ({"per_caption": -1}, r"per_caption=-1: must be at least 0"),
        ({"draws": 0}, r"draws=0: must be at least 1"),
        ({"count_captions": 0}, r"count_captions=0"),
        ({"batch_size": 0}, r"batch_size=0"),
        ({"mix": {"replace.color": -1}}, r"replace\.color=-1"),
        ({"mix": {"replace.color": float("nan")}}, r"replace\.color=nan"),
        ({"mix": {"replace.color": float("inf")}}, r"replace\.color=inf"),
        ({"mix": {"replace.color": 0}}, r"all weights are 0"),
        ({"mix": {"replac.color": 1}}, r"did you mean 'replace'"),
        ({"mix": {"swap.nuon": 1}}, r"swap has swap\.noun_chunk, .*did you mean 'swap\.noun'"),
        ({"mix": {"swap": 1}}, r"'swap' is no kind"),
        ({"mix": {"replace": 1}}, r"replace has replace\.CONCEPT"),
        ({"lexicons": {"colour": "x.yaml"}}, r"did you mean 'color'"),
        ({"preset": "negclip", "lexicons": {"count": "x.yaml"}}, r"'count' is not used"),
        ({"mix": {"shuffle.words": 1}, "lexicons": {"color": "x.yaml"}}, r"only nothing is"),
    ],
)
def test_wrong_settings(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        NegativeSettings(**settings)  # type: ignore[arg-type]
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("key", ["fill.top=0", "fill.batch_size=0"])
def test_wrong_settings_of_the_language_model(key: str) -> None:
    with pytest.raises(ValueError, match=key):
        load(NegativeSettings, None, [key])


def test_every_strategy_of_the_presets_is_known() -> None:
    used = {kind.partition(".")[0] for preset in PRESETS.values() for kind in preset.mix}
    assert used <= set(KINDS)
