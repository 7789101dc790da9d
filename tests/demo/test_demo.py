"""The demo's path on a handful of scenes, and its report."""

import json
import re

import pytest

from hnpretrain.demo import path
from hnpretrain.demo.report import _mark
from hnpretrain.shards.schema import Negative


@pytest.mark.parametrize(
    "positive, negative, marked",
    [
        ("a red car", "a blue car", "a <mark>blue</mark> car"),
        ("a cup by it", "an apple by it", "<mark>an apple</mark> by it"),
        ("a car on a bus", "a car under a bus", "a car <mark>under</mark> a bus"),
        ("cars", "boats", "<mark>boats</mark>"),
        ("a <b> car", "a <i> car", "a <mark>&lt;i&gt;</mark> car"),
    ],
)
def test_changed_words_are_marked(positive, negative, marked):
    made = Negative(negative, "object", "replace", "", "", (0, 0))
    assert str(_mark(positive, made)).strip() == marked


def test_the_whole_path(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(path, "SCENES", 70)
    monkeypatch.setattr(path, "PAIRS_PER_CONCEPT", 4)
    path.run(tmp_path, seed=1)

    results = json.loads((tmp_path / "results.json").read_text())
    assert results["seed"] == 1
    for run in ("standard", "negatives"):
        for score in ("pair", "group"):
            values = results["accuracy"][run][score]
            assert set(values) == {"object", "color", "size", "location", "all"}
            assert all(0 <= value <= 1 for value in values.values())

    report = (tmp_path / "report.html").read_text()
    assert len(re.findall(r'<img src="data:image/png;base64,', report)) == 8
    assert report.count("<mark>") > 20
    assert report.count("<svg") == 2
    assert "K = 3 negatives" in capsys.readouterr().out


def test_two_demos_do_not_mix(tmp_path, monkeypatch):
    path._keep_settings(tmp_path / "demo.json", 0)
    path._keep_settings(tmp_path / "demo.json", 0)
    with pytest.raises(ValueError, match=r"made with seed=0, not 1: give another folder"):
        path.run(tmp_path, seed=1)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(path._RECIPE.read_text() + "\n# changed")
    monkeypatch.setattr(path, "_RECIPE", recipe)
    with pytest.raises(ValueError, match=r"made with recipe\.yaml=\w+, not \w+: give"):
        path.run(tmp_path, seed=0)


def test_a_command_that_fails_stops_the_demo(tmp_path, monkeypatch):
    monkeypatch.setattr(path, "SCENES", 0)
    with pytest.raises(OSError, match="hnpretrain world ended with status 2"):
        path.run(tmp_path, seed=0)
