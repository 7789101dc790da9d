"""`preview` shows samples: on the terminal, and as a page that is looked at in a real browser."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from hnpretrain.shards.index import read_index
from hnpretrain.shards.schema import Caption, Negative, Sample
from shard_tools.preview import draw_samples
from shard_tools.preview_page import write_page
from tests.shards.conftest import Ran
from tests.support.browser import Page, browser
from tests.support.shards import exchange, photo_samples, write_shards

Command = Callable[..., Ran]

# Each would say so in the page's title if it ran.
HOSTILE = (
    "</script><script>document.title = 'ran'</script>",
    "<img src=x onerror=\"document.title = 'ran'\">",
    "'\"><svg onload=document.title='ran'>",
    "{{ 7 * 7 }} &amp; &#60;b&#62; \\u003cscript\\u003e",
)


def test_the_terminal_marks_what_changed(tmp_path: Path, command: Command, photo: bytes) -> None:
    negatives = (
        Negative("a green car.", "color", "replace", "red", "green", (2, 5)),
        Negative("a red tree.", "object", "replace", "car", "tree", (6, 9)),
        Negative("an orange car.", "color", "replace", "red", "orange", (2, 5)),
    )
    caption = Caption("a red car.", negatives)
    write_shards(tmp_path, [Sample(key, photo, "jpg", (caption,)) for key in "abcdefg"])
    ran = command("shard", "preview", str(tmp_path), "--samples", "2", "--seed", "3")
    assert ran.status == 0
    assert ran.out.count("  + a red car.") == 2
    assert "    - a [green] car.  color/replace" in ran.out
    assert "    - a red [tree].  object/replace" in ran.out
    assert "    - [an orange] car.  color/replace" in ran.out
    again = command("shard", "preview", str(tmp_path), "--samples", "2", "--seed", "3")
    assert again.out == ran.out
    for options, count in ((["--samples", "9"], 7), ([], 5)):
        assert command("shard", "preview", str(tmp_path), *options).out.count("  + ") == count


def test_captions_do_not_command_the_terminal(
    tmp_path: Path, command: Command, photo: bytes
) -> None:
    text = "a \x1b[2J red\0 car [bold]"
    negative = exchange(text, "red", "blue", "color", "replace")
    write_shards(tmp_path, [Sample("a", photo, "jpg", (Caption("a"), Caption(text, (negative,))))])
    out = command("shard", "preview", str(tmp_path)).out
    assert "\x1b" not in out
    assert "  + a \ufffd[2J red\ufffd car [bold]" in out
    assert "    - a \ufffd[2J [blue]\ufffd car [bold]  color/replace" in out


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser(tmp_path_factory.mktemp("browser")) as page:
        yield page


@pytest.fixture(scope="module")
def photos_page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The address of a page of ten photos."""
    folder = tmp_path_factory.mktemp("page")
    shards = str(write_shards(folder / "shards", photo_samples(10)))
    index = read_index(shards)
    path = folder / "page.html"
    write_page(str(path), shards, index, 0, draw_samples(shards, index, 100, seed=0))
    return path.as_uri()


def shown(page: Page, selector: str) -> list[Any]:
    """What a selector finds, as far as it can be seen: the texts."""
    return page.run(
        f"[...document.querySelectorAll({selector!r})]"
        ".filter(found => found.checkVisibility()).map(found => found.textContent)"
    )


def is_clean(page: Page) -> bool:
    """Nothing went wrong, and nothing was asked for but the page's file and what is inside it."""
    assert page.problems() == []
    asked = {url.split(":", 1)[0] for url in page.requests()}
    return asked <= {"file", "data"} and sum(u.startswith("file:") for u in page.requests()) == 1


def test_a_page_of_photos(page: Page, photos_page: str) -> None:
    page.resize(1200, 900)
    page.open(photos_page)
    assert is_clean(page)
    widths = page.run(
        "[...document.images].map(image => [image.naturalWidth, image.naturalHeight])"
    )
    assert len(widths) == 10
    assert all(100 < min(size) <= max(size) <= 320 for size in widths)
    assert shown(page, ".broken") == []
    assert len(shown(page, "article")) == 10
    assert len(shown(page, ".caption")) == 50
    negatives = page.run("document.querySelectorAll('li').length")
    assert shown(page, "#shown") == [f"10 samples, {negatives} negatives"]
    # Without the fragment nothing is filtered, so the buttons count all there is.
    counts = map(int, shown(page, "button[data-concept] b"))
    assert sum(counts) == negatives > 50


def test_filters_are_clicked_and_typed(page: Page, photos_page: str) -> None:
    page.resize(1200, 900)
    page.open(photos_page)
    page.click("button[data-concept=color]")
    colors = shown(page, "li .label[data-concept]")
    assert colors
    assert set(colors) == {"color"}
    assert shown(page, "button[data-concept=color] b") == [str(len(colors))]
    samples = len(shown(page, "article"))
    assert 0 < samples < 10
    assert shown(page, "#shown")[0].startswith(f"{samples} of 10 samples, {len(colors)} of ")
    # Every caption shown has a negative shown, and only the words that those replace are marked.
    assert len(shown(page, ".caption")) == len(shown(page, "section:has(li:not([hidden]))"))
    off = page.run("document.querySelectorAll('.caption mark.off').length")
    assert off > 0
    assert page.run("location.hash") == "#concept=color"

    page.click("button[data-concept=size]")
    assert set(shown(page, "li .label[data-concept]")) == {"color", "size"}
    page.click("button[data-concept=color]")
    assert set(shown(page, "li .label[data-concept]")) == {"size"}

    page.click("#clear")
    assert len(shown(page, "article")) == 10
    assert shown(page, "#clear") == []
    page.click("#search")
    page.write("RED ")
    texts = shown(page, "section")
    assert 0 < len(texts) < 50
    assert all("red " in text.lower() for text in texts)
    assert page.run("location.hash") == "#q=RED%20"
    page.write("no caption says this")
    assert shown(page, "article") == []
    assert shown(page, "#nothing") == ["Nothing fits these filters."]
    assert is_clean(page)


def test_a_view_is_a_link(page: Page, photos_page: str) -> None:
    page.open(photos_page)
    page.click("button[data-concept=color]")
    page.click("#search")
    page.write("red")
    seen = shown(page, "li"), shown(page, "#shown")
    assert seen[0]
    page.open(photos_page + "#concept=color&q=red")
    assert (shown(page, "li"), shown(page, "#shown")) == seen
    assert page.run("document.getElementById('search').value") == "red"
    assert page.run("document.querySelectorAll('[aria-pressed=true]').length") == 1
    page.open(photos_page + "#concept=none%20such&strategy=%3Cb%3E")
    assert shown(page, "article") == []
    assert is_clean(page)


def test_the_pointer_shows_what_a_negative_replaces(page: Page, photos_page: str) -> None:
    page.resize(1200, 900)
    page.open(photos_page)
    lit = "[...document.querySelectorAll('.caption mark.on')].map(mark => mark.textContent)"
    assert page.run(lit) == []
    page.click("section li:nth-child(2)")
    (word,) = page.run(lit)
    edit = page.run("document.querySelector('.caption mark.on').dataset.edits.split(' ')")
    assert "1" in edit
    assert word in shown(page, "section:has(li:nth-child(2)) .caption")[0]


@pytest.mark.parametrize("width, dark", [(390, False), (390, True), (1200, True)])
def test_a_phone_and_the_dark(page: Page, photos_page: str, width: int, dark: bool) -> None:
    page.resize(width, 844, dark)
    page.open(photos_page)
    assert page.run("document.documentElement.scrollWidth") <= width
    ground, ink = (
        sum(
            int(part)
            for part in re.findall(r"\d+", page.run(f"getComputedStyle(document.body).{c}"))
        )
        for c in ("backgroundColor", "color")
    )
    assert (ground < 100 and ink > 500) if dark else (ground > 700 and ink < 150)
    # On a phone the picture stands above its captions.
    figure, text = (
        page.run(f"document.querySelector('article > {part}').getBoundingClientRect().toJSON()")
        for part in ("figure", "div")
    )
    assert (figure["bottom"] <= text["top"]) == (width == 390)


def test_hostile_samples(tmp_path: Path, page: Page, command: Command, photo: bytes) -> None:
    texts = [
        *HOSTILE,
        "\U0001f408 a cat \u200d and \u05d7\u05ea\u05d5\u05dc \u202e reversed",
        "\u0642\u0637\u0629 \u062d\u0645\u0631\u0627\u0621 cat",
        "a NUL \0 and \x1b[31m",
        "long " * 4000,
        "unbroken" * 100,
    ]
    captions = tuple(
        Caption(text, (Negative("x " + text, text, text, "", "x ", (0, 0)),)) for text in texts
    )
    png = io.BytesIO()
    Image.new("RGBA", (2, 90), (0, 0, 0, 0)).save(png, "PNG")
    write_shards(
        tmp_path,
        [
            Sample("a", photo, "jpg", (Caption("first"), *captions)),
            Sample("b", photo[:3000], "jpg", (Caption("cut short"),)),
            Sample("c", b"<script>document.title = 'ran'</script>", "png", (Caption("no photo"),)),
            Sample("d", png.getvalue(), "png", (Caption("tiny"),)),
        ],
    )
    html = tmp_path / "page.html"
    ran = command("shard", "preview", str(tmp_path), "--html", str(html))
    assert (ran.status, ran.out) == (0, f"written: {html}\n")
    page.resize(390, 844)
    page.open(html.as_uri())
    assert is_clean(page)
    assert page.run("document.title") == f"{tmp_path} - hard negatives"
    assert page.run("document.scripts.length") == 1
    assert page.run("document.documentElement.scrollWidth") <= 390
    fits = "[...document.querySelectorAll('.caption')].every(c => c.scrollWidth <= c.clientWidth)"
    assert page.run(fits)
    seen = shown(page, "article:first-of-type .caption")
    assert seen[: len(HOSTILE) + 1] == ["first", *HOSTILE]
    assert seen[5] == texts[4]
    assert shown(page, "li .negative")[0] == "x " + HOSTILE[0]
    rtl = page.run(
        "[...document.querySelectorAll('.caption')].map(c => getComputedStyle(c).direction)"
    )
    assert rtl[6] == "rtl"
    assert rtl[5] == "ltr"
    broken = shown(page, ".broken")
    assert len(broken) == 2
    assert broken[0].startswith("image brokenbroken_image: ")
    assert broken[1].startswith("image brokennot_an_image: ")
    assert page.run("[...document.images].map(image => image.naturalWidth)") == [320, 2]

    # Its own words filter too, whatever is in them.
    page.click("button[data-filter=strategy]:nth-of-type(2)")
    assert len(shown(page, "li")) == 1
    assert is_clean(page)


def test_a_picture_that_the_browser_cannot_show(
    tmp_path: Path, page: Page, photos_page: str
) -> None:
    html = Path(photos_page.removeprefix("file://")).read_text()
    start = html.index("base64,/9j/") + len("base64,")
    damaged = tmp_path / "damaged.html"
    damaged.write_text(html[:start] + "AAAA" + html[start + 4 :])
    page.open(damaged.as_uri())
    assert shown(page, ".broken") == ["image broken"]
    assert page.run("[...document.images].every(image => image.naturalWidth > 0)")


def test_the_policy_holds_where_escaping_would_not(
    tmp_path: Path, page: Page, photos_page: str
) -> None:
    html = Path(photos_page.removeprefix("file://")).read_text()
    inside = html.replace("<main>", f"<main>{HOSTILE[1]}<script>document.title = 'ran'</script>")
    hurt = tmp_path / "hurt.html"
    hurt.write_text(inside)
    page.open(hurt.as_uri())
    assert page.run("document.title") != "ran"
    assert any("Content Security Policy" in problem for problem in page.problems())
    failed = [params for method, params in page.events if method == "Network.loadingFailed"]
    assert [params["blockedReason"] for params in failed] == ["csp"]  # the picture x


def test_moved_words_and_inserted_ones(
    tmp_path: Path, page: Page, command: Command, photo: bytes
) -> None:
    caption = "a red car and a blue dog"
    swapped = exchange(caption, "red car and a blue", "blue car and a red", "order", "swap")
    negatives = (
        swapped,
        exchange(caption, "car", "bus", "object", "replace"),
        Negative(f"no {caption}", "negation", "negate", "", "no ", (0, 0)),
        exchange(caption, " dog", "", "object", "fill"),
        Negative("what is this", "object", "fill", "cat", "bus", (2, 5)),
    )
    write_shards(tmp_path, [Sample("a", photo, "jpg", (Caption(caption, negatives),))])
    assert command("shard", "preview", str(tmp_path), "--html", f"{tmp_path}/p.html").status == 0
    page.open((tmp_path / "p.html").as_uri())
    marks = page.run(
        "[...document.querySelectorAll('.caption mark')].map(m => [m.textContent, m.dataset.edits])"
    )
    assert marks == [["", "2"], ["red", "0 4"], ["car", "1"], ["blue", "0"], [" dog", "3"]]
    changed = page.run(
        "[...document.querySelectorAll('.negative')]"
        ".map(n => [...n.querySelectorAll('mark')].map(m => m.textContent))"
    )
    assert changed == [["blue", "red"], ["bus"], ["no "], [""], ["what is this"]]


def test_a_page_is_written_whole_or_not(tmp_path: Path, command: Command, photo: bytes) -> None:
    write_shards(tmp_path, [Sample("a", photo, "jpg", (Caption("a"),))])
    ran = command("shard", "preview", str(tmp_path), "--html", str(tmp_path / "0.tar" / "x.html"))
    assert ran.status == 1
    assert len(ran.err.splitlines()) == 1
