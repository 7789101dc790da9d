"""The page: whole, without scripts or requests, and safe from what data sets hold."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from hnpretrain.eval.benchmarks.base import About, By, Selection
from hnpretrain.eval.images import ImageSource
from hnpretrain.eval.items import GROUP, TEXT, Item, choose_caption
from hnpretrain.eval.page import write_comparison, write_html
from hnpretrain.eval.results import ModelName, Withheld, read_json, write_json
from hnpretrain.eval.scorers import Random
from tests.support.browser import browser

HOSTILE = "</title></svg>--><script>alert(1)</script><img src=x onerror=alert(1)> $\\frac{ & \"'"
MISSING = {f"{number}.png": f"image {number}.png: no such file" for number in range(40)}


def evaluate(encoder, paint, seed, name="pairs", word="colour", groups=("warm", "cold"), count=24):
    """A result of two images and two captions an item, by groups."""
    items = [
        Item(
            f"{word} {number}",
            (
                ImageSource(f"{number} a", paint("red", 300)),
                ImageSource(f"{number} b", paint("blue", 300)),
            ),
            (f"a red {word}", f"a blue {word}"),
            {"kind": groups[number % len(groups)]},
        )
        for number in range(count)
    ]
    kind = Selection(
        About(name, "", "", "", "", ""), lambda *_: items, (TEXT, GROUP), (By("kind"),)
    )
    return kind.load(Path("data"), None, False).run(encoder, Random(seed))


class Seen(HTMLParser):
    """The elements, their attributes, and the text outside of styles."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.attributes, self.words = [], [], []
        self.feed(page)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.words.append(data)

    def check_harmless(self):
        assert "script" not in self.tags
        for name, value in self.attributes:
            assert not name.startswith("on")
            if name in ("src", "href", "xlink:href", "data", "action"):
                assert value.startswith(("data:image/jpeg;base64,", "#"))


def test_the_page_of_one_run(color_encoder, paint, tmp_path):
    path = tmp_path / "page.html"
    result = evaluate(color_encoder, paint, 0)
    write_html(path, [result], [], ModelName("ViT-B-32", "openai"))
    page = path.read_text()
    seen = Seen(page)
    seen.check_harmless()
    assert "Evaluation of ViT-B-32:openai (random)" in seen.text
    for score in result.scores:
        assert score.name in seen.text
        assert f"{100 * score.accuracy.value:.2f} +- {100 * score.accuracy.standard_error:.2f}" in (
            seen.text
        )
    assert "The 12 items that went most wrong" in seen.text
    assert seen.tags.count("img") == 24
    assert seen.text.count("a blue colour") == 12
    assert seen.tags.count("svg") == 1
    assert "Paired differences" not in seen.text
    assert list(tmp_path.iterdir()) == [path]


def test_the_page_of_three_runs_from_their_files_alone(color_encoder, paint, tmp_path):
    paths = [tmp_path / f"{letter}.json" for letter in "abc"]
    for seed, path in enumerate(paths):
        results = [evaluate(color_encoder, paint, seed)]
        if path.name == "a.json":
            results.append(evaluate(color_encoder, paint, seed, "more"))
        write_json(path, results, [], ModelName(f"model-{seed}", ""))
    write_comparison(tmp_path / "page.html", [read_json(path) for path in paths])
    seen = Seen((tmp_path / "page.html").read_text())
    seen.check_harmless()
    assert "Evaluation of 3 models" in seen.text
    for part in ("model-0", "model-1", "model-2", "Paired differences: B less A"):
        assert part in seen.text
    assert "Paired differences: C less A" in seen.text
    # Of both: text, group and text_only, each of all, of two groups and their mean.
    assert "corrected over the 24 differences told here" in seen.text
    for letter, file in (("B", "b.json"), ("C", "c.json")):
        reason = f"{letter} with A: more (image_caption_selection): {tmp_path / file} has none"
        assert f"not compared: {reason}" in seen.text


def test_what_is_missing_is_told_first(color_encoder, paint, tmp_path):
    path = tmp_path / "page.html"
    result = evaluate(color_encoder, paint, 0)
    partial = type(result)(
        result.dataset,
        result.task,
        result.data,
        result.scores,
        ("PARTIAL: 3 items left out", "another note"),
        left_out=3,
    )
    withheld = Withheld("winoground", "items", 40, 400, MISSING)
    write_html(path, [partial], [withheld], ModelName("m", ""))
    page = path.read_text()
    text = Seen(page).text
    assert "WITHHELD: winoground" in text
    assert "40 images are missing" in text
    assert "image 9.png: no such file ... and 30 more" in text
    assert text.index("WITHHELD") < text.index("PARTIAL: 3 items") < text.index("another note")
    assert page.count('class="alarm"') == 2


def test_a_page_of_nothing_but_what_was_withheld(tmp_path):
    write_html(tmp_path / "p.html", [], [Withheld("a", "items", 1, 1, MISSING)], ModelName("m", ""))
    text = Seen((tmp_path / "p.html").read_text()).text
    assert "WITHHELD: a" in text
    assert "There are no scores" in text


def test_hostile_words_are_words(color_encoder, paint, tmp_path):
    path = tmp_path / "page.html"
    groups = (HOSTILE, "a$b$", "$x^$", "two\nlines")
    results = [evaluate(color_encoder, paint, 0, HOSTILE, HOSTILE, groups)]
    withheld = [Withheld(HOSTILE, "items", 1, 2, {"x": HOSTILE})]
    write_html(path, results, withheld, ModelName(HOSTILE, ""))
    write_json(tmp_path / "a.json", results, withheld, ModelName(HOSTILE, ""))
    write_comparison(tmp_path / "two.html", [read_json(tmp_path / "a.json")] * 2)
    for each in (path, tmp_path / "two.html"):
        seen = Seen(each.read_text())
        seen.check_harmless()
        assert " ".join(f"a blue {HOSTILE}".split()) in seen.text
        assert not re.search(r"<script|onerror=alert\(1\)>", each.read_text())


def test_a_thousand_groups_are_not_all_drawn(color_encoder, paint, tmp_path):
    groups = [f"group {number}" for number in range(100)]
    result = evaluate(color_encoder, paint, 0, groups=groups, count=100)
    write_html(tmp_path / "page.html", [result], [], ModelName("m", ""))
    page = (tmp_path / "page.html").read_text()
    text = Seen(page).text
    assert "The first rows only; the table has all." in text
    assert "text/group 99" in text
    heights = re.findall(r'<svg role="img"[^>]* height="([\d.]+)pt"', page)
    assert len(heights) == 1
    assert float(heights[0]) < 1500


def test_rules_without_groups_share_a_plot(color_encoder, paint, tmp_path):
    items = [Item("a", (ImageSource("a", paint("red")),), ("red", "blue"), {})]
    kind = Selection(About("one", "", "", "", "", ""), lambda *_: items, (choose_caption(),))
    result = kind.load(Path("data"), None, False).run(color_encoder, Random())
    write_html(tmp_path / "page.html", [result], [], ModelName("m", ""))
    assert Seen((tmp_path / "page.html").read_text()).attributes.count(("id", "axes_1")) == 1
    assert 'id="axes_2"' not in (tmp_path / "page.html").read_text()


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    with browser(tmp_path_factory.mktemp("browser")) as page:
        yield page


def test_a_browser_shows_all_and_asks_for_nothing(color_encoder, paint, tmp_path, tab):
    results = [evaluate(color_encoder, paint, 0, groups=(HOSTILE, "warm"))]
    for letter in "ab":
        write_json(tmp_path / f"{letter}.json", results, [], ModelName(HOSTILE, ""))
    runs = [read_json(tmp_path / f"{letter}.json") for letter in "ab"]
    write_comparison(tmp_path / "page.html", runs)
    address = (tmp_path / "page.html").as_uri()
    tab.resize(1200, 900)
    tab.open(address)
    assert tab.problems() == []
    assert [url for url in tab.requests() if not url.startswith("data:")] == [address]
    assert tab.run("document.querySelectorAll('img').length") == 48
    assert tab.run("[...document.querySelectorAll('details[open] img')].every(i => i.naturalWidth)")
    assert tab.run("document.querySelector('svg').getBoundingClientRect().width") > 700
    for width in (1200, 400):
        tab.resize(width, 900)
        assert tab.run("document.documentElement.scrollWidth") <= width
