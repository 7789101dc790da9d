"""The review's page in a real browser: what people do with it, and what is on the disk then."""

from __future__ import annotations

import base64
import io
import json
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageChops, ImageStat

from hnpretrain.inpaint.decisions import read_decisions
from hnpretrain.inpaint.folder import Folder
from tests.inpaint.reviewing import Served, add_candidate, make_folder, served
from tests.support.browser import Page, browser

HOSTILE = "<img src=x onerror=\"document.title='ran'\"> a <b>red</b> bus"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser(tmp_path_factory.mktemp("browser")) as page:
        yield page


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return make_folder(tmp_path / "set")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server for tests that decide nothing, of all candidates."""
    with served(make_folder(tmp_path_factory.mktemp("shared")), "ana", everything=True) as server:
        yield server


def wait(page: Page, condition: str) -> None:
    """Until a JavaScript expression is true."""
    deadline = time.monotonic() + 20
    while not page.run(condition):
        if time.monotonic() > deadline:
            pytest.fail(f"never true: {condition}\n{page.run('document.body?.innerText')}")
        time.sleep(0.02)


def text(page: Page, selector: str) -> str:
    return page.run(f"document.querySelector({selector!r}).textContent")


def value(page: Page, field: str) -> str:
    return page.run(f"document.getElementById({field!r}).value")


def press(page: Page, key: str, repeat: bool = False) -> None:
    # What the browser itself does at a key (close, submit, move the focus) goes by these numbers.
    number = {"Escape": 27, "Enter": 13, "Tab": 9}.get(key, 0)
    letters = {"text": "\r" if key == "Enter" else key} if len(key) == 1 or key == "Enter" else {}
    common = {"key": key, "windowsVirtualKeyCode": number}
    page.call("Input.dispatchKeyEvent", type="keyDown", autoRepeat=repeat, **common, **letters)
    page.call("Input.dispatchKeyEvent", type="keyUp", **common)


def there(page: Page, proposal: str) -> None:
    """Waits until a proposal is shown."""
    wait(page, f"document.querySelector('#title code')?.textContent === {proposal!r}")
    wait(page, "document.getElementById('accept').getAttribute('aria-disabled') === 'false'")


def saved(page: Page, what: str) -> None:
    """Waits until the page says that something is saved."""
    wait(page, f"document.getElementById('status').textContent.startsWith('Saved: {what}')")


def look(page: Page, server: Served, proposal: str, fragment: str = "") -> None:
    """Opens the link, and waits until a proposal is shown."""
    page.resize(1280, 860)
    page.open(server.link + fragment)
    there(page, proposal)


def rewrite(page: Page, field: str, words: str) -> None:
    page.run(f"document.getElementById({field!r}).select()")
    page.write(words)


def on_disk(folder: Folder, reviewer: str = "ana") -> list[tuple[str, str]]:
    made = read_decisions(folder).get(reviewer, [])
    return [(decision.proposal, decision.verdict) for decision in made]


def test_a_kill_after_each_click_loses_nothing(page: Page, folder: Folder) -> None:
    expected: list[tuple[str, str]] = []
    port = 0
    add_candidate(folder, "p2-train", "recolor-2", Image.new("RGB", (64, 48)))

    def killed(server: Served, proposal: str, verdict: str) -> None:
        server.kill()
        expected.append((proposal, verdict))
        assert on_disk(folder) == expected

    with served(folder, "ana") as server:
        port = server.port
        look(page, server, "p0-bus")
        page.click("#accept")
        saved(page, "accepted recolor-0 of p0-bus.")
        killed(server, "p0-bus", "accept")

    with served(folder, "ana", port) as server:
        look(page, server, "p1-dog")
        assert text(page, "#progress") == "1 of 5 judged"
        page.click("#reject")
        saved(page, "rejected p1-dog.")
        killed(server, "p1-dog", "reject")

    with served(folder, "ana", port) as server:
        look(page, server, "p2-train")
        press(page, "e")
        rewrite(page, "new_caption", "a pink train")
        press(page, "Escape")
        press(page, "2")
        press(page, "a")
        saved(page, "accepted recolor-2 of p2-train.")
        killed(server, "p2-train", "accept")

    with served(folder, "ana", port) as server:
        look(page, server, "p3-cat")
        press(page, "u")  # of what was decided last, since p3 is open
        saved(page, "undone p2-train.")
        killed(server, "p2-train", "undo")
        assert text(page, "#verdict") == "open"
        assert value(page, "new_caption") == "a pink train"

    with served(folder, "ana", port) as server:
        # It is open again, and what was written in the decision is there to be mended.
        look(page, server, "p2-train")
        assert value(page, "new_caption") == "a pink train"
        assert text(page, "#progress") == "2 of 5 judged"
        page.click("#skip")
        saved(page, "skipped p2-train.")
        killed(server, "p2-train", "skip")

    with served(folder, "ana", port) as server:
        look(page, server, "p3-cat")
        press(page, "a")
        saved(page, "accepted")
        there(page, "p4-pizza")
        press(page, "r")
        saved(page, "rejected p4-pizza. All are decided.")
        assert text(page, "#progress") == "4 of 5 judged, 1 skipped"
        server.kill()

    made = read_decisions(folder)["ana"]
    its = [(each.verdict, each.candidate, each.new_caption) for each in made[2:5]]
    assert its == [
        ("accept", "recolor-2", "a pink train"),
        ("undo", "recolor-2", "a pink train"),
        ("skip", "recolor-0", "a pink train"),
    ]
    assert made[2].caption == "There is a yellow train in the picture."


def test_what_is_not_saved_is_said_and_kept(page: Page, folder: Folder) -> None:
    with served(folder, "ana") as server:
        port = server.port
        look(page, server, "p0-bus")
        press(page, "e")
        rewrite(page, "new_caption", "a teal bus")
        press(page, "Enter")
        server.kill()
        page.click("#accept")
        wait(page, "document.getElementById('problem').textContent !== ''")
        assert text(page, "#problem").startswith("Not saved: the server does not answer")
        assert text(page, "#status") == ""
        assert text(page, "#verdict") == "open"
        assert value(page, "new_caption") == "a teal bus"
        assert on_disk(folder) == []
    with served(folder, "ana", port) as server:
        # The page of the earlier server has another token.
        press(page, "a")
        wait(page, "document.getElementById('problem').textContent.includes('needs the link')")
        assert on_disk(folder) == []
        look(page, server, "p0-bus")
        assert value(page, "new_caption") == "a teal bus"
        press(page, "a")
        saved(page, "accepted")
        assert text(page, "#problem") == ""
        assert read_decisions(folder)["ana"][0].new_caption == "a teal bus"


def test_no_key_decides_while_a_save_is_on_its_way(page: Page, folder: Folder) -> None:
    with served(folder, "ana") as server:
        look(page, server, "p0-bus")
        server.process.send_signal(signal.SIGSTOP)
        page.click("#accept")
        wait(page, "document.getElementById('status').textContent === 'Saving...'")
        for key in "arsu":
            press(page, key)
        page.click("#reject")
        assert page.run("document.getElementById('caption').readOnly")
        disabled = "[...document.querySelectorAll('.buttons button')].map(b => b.ariaDisabled)"
        assert page.run(disabled) == ["true"] * 4
        assert text(page, "#verdict") == "open"
        server.process.send_signal(signal.SIGCONT)
        saved(page, "accepted")
        there(page, "p1-dog")
        press(page, "r", repeat=True)  # a key that is held down
        press(page, "s")
        saved(page, "skipped p1-dog.")
        assert on_disk(folder) == [("p0-bus", "accept"), ("p1-dog", "skip")]


def test_what_the_server_refuses_is_said(page: Page, folder: Folder) -> None:
    with served(folder, "ana") as server:
        look(page, server, "p0-bus")
        press(page, "e")
        rewrite(page, "new_caption", value(page, "caption"))
        assert text(page, "#difference") == "The captions are the same."
        press(page, "Escape")
        press(page, "a")
        wait(page, "document.getElementById('problem').textContent.includes('are the same')")
        press(page, "r")
        saved(page, "rejected")
        assert on_disk(folder) == [("p0-bus", "reject")]
        # Another window decides on what this one shows as open.
        there(page, "p1-dog")
        page.run(
            "fetch('/api/decisions', {method: 'POST', headers: {'X-Reviewer': 'ana', "
            "'Content-Type': 'application/json'}, body: JSON.stringify({proposal: 'p1-dog', "
            "verdict: 'reject', candidate: '', caption: 'a', new_caption: 'b', note: '', seen: 0})"
            "}).then(answer => { document.title = answer.status; })"
        )
        wait(page, "document.title === '200'")
        press(page, "a")
        wait(page, "document.getElementById('problem').textContent.includes('decided elsewhere')")
        wait(page, "document.getElementById('verdict').textContent.includes('rejected')")
        press(page, "u")
        saved(page, "undone p1-dog.")
        press(page, "u")  # and again: of what was decided before
        saved(page, "undone p0-bus.")
        press(page, "u")
        wait(page, "document.getElementById('status').textContent === 'There is nothing to undo.'")


def test_a_reload_in_the_middle(page: Page, folder: Folder) -> None:
    with served(folder, "ana") as server:
        look(page, server, "p0-bus")
        press(page, "j")
        there(page, "p1-dog")
        assert page.run("location.href") == f"http://127.0.0.1:{server.port}/#p1-dog"
        press(page, "e")
        rewrite(page, "new_caption", "a dog as big as a car")
        press(page, "Tab")
        page.click("#note")
        page.write("looks odd")
        page.run("document.title = 'before'")
        page.call("Page.reload")
        wait(page, "document.title.startsWith('Review')")
        there(page, "p1-dog")
        assert value(page, "new_caption") == "a dog as big as a car"
        assert value(page, "note") == "looks odd"
        press(page, "k")
        there(page, "p0-bus")
        assert value(page, "new_caption") == "There is a green bus in the picture."
        press(page, "j")
        there(page, "p1-dog")
        press(page, "a")
        saved(page, "accepted")
        (made,) = read_decisions(folder)["ana"]
        assert (made.new_caption, made.note) == ("a dog as big as a car", "looks odd")
        # Without a place in the address, it begins with the first open one.
        look(page, server, "p0-bus")
        look(page, server, "p3-cat", "#p3-cat")
        look(page, server, "p0-bus", "#nothing")
        assert page.problems() == []


def test_the_name_is_asked_once_and_others_are_not_told(page: Page, folder: Folder) -> None:
    with served(folder) as server:
        page.resize(1280, 860)
        page.open(server.link)
        wait(page, "document.getElementById('who').open")
        for _ in range(3):
            press(page, "Escape")
            wait(page, "document.getElementById('who').open")
        page.write("ana maria")
        press(page, "Enter")
        wait(page, "document.getElementById('who-problem').textContent.includes('1 to 40 letters')")
        rewrite(page, "who-name", "ana")
        press(page, "Enter")
        wait(page, "!document.getElementById('who').open")  # keys are its own until then
        there(page, "p0-bus")
        assert text(page, "#name") == "Reviewer: ana"
        press(page, "a")
        saved(page, "accepted")
        look(page, server, "p1-dog")  # not asked again
        press(page, "a")
        saved(page, "accepted")

        page.click("#name")
        rewrite(page, "who-name", "bob")
        press(page, "Enter")
        wait(page, "!document.getElementById('who').open")
        wait(page, "document.getElementById('name').textContent === 'Reviewer: bob'")
        there(page, "p2-train")  # the address is that of the one last seen
        look(page, server, "p0-bus")
        assert text(page, "#agreement") == ""
        assert text(page, "#others") == ""
        assert "ana" not in page.run("document.body.innerText")
        press(page, "r")
        saved(page, "rejected p0-bus.")
        there(page, "p1-dog")
        assert text(page, "#others") == ""
        assert text(page, "#agreement") == "with ana: 0 of 1 alike (0%, kappa 0.00)"
        press(page, "k")
        there(page, "p0-bus")
        assert text(page, "#others") == "ana accepted it"
        assert page.problems() == []
    assert on_disk(folder) == [("p0-bus", "accept"), ("p1-dog", "accept")]
    assert on_disk(folder, "bob") == [("p0-bus", "reject")]


def test_the_key_after_the_name_decides(page: Page, folder: Folder) -> None:
    with served(folder) as server:
        page.resize(1280, 860)
        page.open(server.link)
        wait(page, "document.getElementById('who').open")
        # A key in the very moment in which the question is gone, wherever the focus is then.
        page.run(
            "new MutationObserver(() => document.activeElement.dispatchEvent(new KeyboardEvent("
            "'keydown', {key: 'r', bubbles: true}))).observe(document.getElementById('who'), "
            "{attributeFilter: ['open']})"
        )
        page.write("ana")
        server.process.send_signal(signal.SIGSTOP)
        for _ in range(3):
            press(page, "Enter")  # asks once
        press(page, "Escape")
        page.write("x")
        assert page.run("document.getElementById('who').open")
        assert value(page, "who-name") == "ana"
        server.process.send_signal(signal.SIGCONT)
        saved(page, "rejected p0-bus.")
        there(page, "p1-dog")
        assert sum(url.endswith("/api/review") for url in page.requests()) == 1
        # The same of the other dialog.
        page.click("#help")
        page.run(
            "new MutationObserver(() => document.activeElement.dispatchEvent(new KeyboardEvent("
            "'keydown', {key: 's', bubbles: true}))).observe(document.getElementById('keys'), "
            "{attributeFilter: ['open']})"
        )
        press(page, "Enter")
        saved(page, "skipped p1-dog.")
        assert page.problems() == []
    assert on_disk(folder) == [("p0-bus", "reject"), ("p1-dog", "skip")]


def test_a_name_that_another_server_took_meanwhile(page: Page, folder: Folder) -> None:
    with served(folder) as server:
        page.resize(1280, 860)
        page.open(server.link)
        wait(page, "document.getElementById('who').open")
        page.write("ana")
        press(page, "Enter")
        there(page, "p0-bus")
        press(page, "e")
        rewrite(page, "new_caption", "a teal bus")
        press(page, "Escape")
        with served(folder, "ana"):
            press(page, "a")
            wait(page, "document.getElementById('problem').textContent.includes('is held by')")
            assert text(page, "#problem").startswith("Not saved: ")
            assert value(page, "new_caption") == "a teal bus"
            press(page, "j")  # nor is anything else of hers shown here
            wait(page, "document.getElementById('problem').textContent.includes('p1-dog cannot')")
            assert on_disk(folder) == []
        press(page, "k")
        there(page, "p0-bus")
        assert value(page, "new_caption") == "a teal bus"
        press(page, "a")
        saved(page, "accepted")
    assert read_decisions(folder)["ana"][0].new_caption == "a teal bus"


def test_looking(page: Page, shared: Served) -> None:
    shown = (
        "[...document.querySelectorAll('figure')]"
        ".filter(f => getComputedStyle(f).visibility === 'visible').map(f => f.id)"
    )
    sizes = (
        "[...document.querySelectorAll('figure .picture')].map(i => [i.naturalWidth, i.complete])"
    )
    look(page, shared, "p0-bus")
    wait(page, f"{sizes}.every(([width, done]) => width && done)")
    assert page.run(shown) == ["original", "edited"]
    assert page.run("[...document.querySelectorAll('mark')].map(m => m.textContent)") == [
        "red",
        "green",
    ]
    assert text(page, "#difference") == "Words that differ: red \u2192 green"
    press(page, "2")
    assert text(page, "#shown-candidate") == "recolor-1"
    assert text(page, "#checked") == "1 failed"
    assert text(page, "#checks .failed") == "\u2717 seam9.88 failed"
    press(page, "ArrowLeft")
    assert text(page, "#shown-candidate") == "recolor-0"
    assert text(page, "#checked") == "all pass"
    press(page, "ArrowLeft")
    press(page, "9")
    assert text(page, "#shown-candidate") == "recolor-0"
    page.click("[data-candidate='recolor-1']")
    assert text(page, "#shown-candidate") == "recolor-1"

    press(page, "m")
    lines = "[...document.querySelectorAll('.line-art')].map(i => !i.hidden && i.naturalWidth)"
    wait(page, f"{lines}.every(width => width > 0)")
    # The outline lies on its picture.
    boxes = page.run(
        "[...document.querySelectorAll('#original img')]"
        ".map(i => JSON.stringify(i.getBoundingClientRect()))"
    )
    assert boxes[0] == boxes[1]
    press(page, "m")
    assert page.run(lines) == [False, False]

    press(page, "f")
    assert page.run(shown) == ["edited"]
    wait(page, f"{shown}[0] === 'original'")
    wait(page, f"{shown}[0] === 'edited'")
    press(page, "x")
    assert page.run(shown) == ["original"]
    time.sleep(1)
    assert page.run(shown) == ["original"]  # by hand from here on
    press(page, "f")
    assert page.run(shown) == ["original", "edited"]

    press(page, "?")
    assert page.run("document.getElementById('keys').open")
    press(page, "a")
    press(page, "Escape")
    assert not page.run("document.getElementById('keys').open")
    page.call(
        "Emulation.setEmulatedMedia",
        features=[{"name": "prefers-reduced-motion", "value": "reduce"}],
    )
    press(page, "f")
    time.sleep(1)
    assert page.run(shown) == ["edited"]  # nothing moves unasked
    press(page, "x")
    assert page.run(shown) == ["original"]
    press(page, "f")
    assert on_disk(shared.folder) == []
    assert page.problems() == []
    assert all(
        url.startswith(f"http://127.0.0.1:{shared.port}/") or url == "about:blank"
        for url in page.requests()
    )


def test_damage_is_shown_and_stops_nothing(page: Page, folder: Folder) -> None:
    (folder.root / "candidates/p0-bus/recolor-1.json").write_bytes(b"{")
    (folder.root / "candidates/p0-bus/recolor-0.png").write_bytes(b"<script>")
    (folder.root / "photos/p1-dog.jpg").unlink()
    with served(folder, "ana", everything=True) as server:
        look(page, server, "p0-bus")
        wait(page, "document.querySelector('#edited .broken').checkVisibility()")
        assert "not_an_image" in text(page, "#edited .broken")
        assert re.search(r"damaged: .*recolor-1\.json: not JSON", text(page, "#damaged"))
        press(page, "r")
        there(page, "p1-dog")
        wait(page, "document.querySelector('#original .broken').checkVisibility()")
        assert "its file is missing" in text(page, "#original .broken")
        press(page, "s")
        there(page, "p2-train")
        for broken in ("#original .broken", "#edited .broken"):
            assert not page.run(f"document.querySelector('{broken}').checkVisibility()")
    for path in (folder.root / "candidates/p5-car").iterdir():
        path.unlink()
    with served(folder, "ana", everything=True) as server:
        page.open(server.link + "#p5-car")
        wait(page, "document.querySelector('#edited .broken').textContent === 'No candidate yet.'")
        press(page, "a")
        wait(page, "document.getElementById('problem').textContent.startsWith('There is no cand')")
        press(page, "r")
        saved(page, "rejected p5-car.")
    assert on_disk(folder) == [("p0-bus", "reject"), ("p1-dog", "skip"), ("p5-car", "reject")]


def test_nothing_to_review(page: Page, folder: Folder) -> None:
    for path in folder.root.glob("candidates/*/recolor-0.json"):
        path.unlink()
    with served(folder, "ana") as server:
        page.open(server.link)
        wait(page, "document.getElementById('nothing').checkVisibility()")
        assert text(page, "#nothing").startswith("None of the 6 proposals has a candidate that")
        press(page, "a")
        assert page.problems() == []


def test_hostile_texts_are_texts(page: Page, folder: Folder) -> None:
    lines = [json.loads(line) for line in folder.proposals_file.read_text().splitlines()]
    lines[0] |= {"caption": HOSTILE, "noun": HOSTILE, "concept": HOSTILE, "edit": HOSTILE}
    lines[1] |= {
        "caption": "\u05d7\u05ea\u05d5\u05dc \u05d0\u05d3\u05d5\u05dd",
        "new_caption": "x" * 900,
    }
    folder.proposals_file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    record = folder.root / "candidates/p0-bus/recolor-1.json"
    checks = {HOSTILE: {"value": 1.0, "passed": False}}
    record.write_text(json.dumps(json.loads(record.read_text()) | {"checks": checks}))
    with served(folder, "ana", everything=True) as server:
        look(page, server, "p0-bus")
        press(page, "2")
        assert value(page, "caption") == HOSTILE
        assert HOSTILE in text(page, "#title")
        assert HOSTILE in text(page, "#checks")
        press(page, "a")
        saved(page, "accepted")
        there(page, "p1-dog")
        page.resize(390, 844)
        assert page.run("document.documentElement.scrollWidth") <= 390
        tall = page.run("document.getElementById('new_caption').clientHeight")
        assert tall > 200  # the field grows with its text, so that all of it is seen
        assert page.run("document.title") == "Review - hnpretrain inpaint"
        assert page.problems() == []
    assert read_decisions(folder)["ana"][0].caption == HOSTILE


@pytest.mark.parametrize("width, dark", [(390, False), (390, True), (1280, True), (2200, False)])
def test_windows_wide_and_narrow_light_and_dark(
    page: Page, shared: Served, width: int, dark: bool
) -> None:
    look(page, shared, "p0-bus")
    page.resize(width, 860, dark)
    assert page.run("document.documentElement.scrollWidth") <= width
    ground, ink = (
        sum(int(n) for n in re.findall(r"\d+", page.run(f"getComputedStyle(document.body).{c}")))
        for c in ("backgroundColor", "color")
    )
    assert (ground < 100 and ink > 500) if dark else (ground > 700 and ink < 150)
    original, edited = (
        page.run(f"document.getElementById('{name}').getBoundingClientRect().toJSON()")
        for name in ("original", "edited")
    )
    assert (original["bottom"] <= edited["top"]) == (width == 390)
    # The buttons are always in sight.
    box = page.run("document.getElementById('accept').getBoundingClientRect().toJSON()")
    assert 0 < box["top"] < box["bottom"] <= 860


def test_everything_has_a_name_and_is_reached_by_tab(page: Page, shared: Served) -> None:
    look(page, shared, "p0-bus")
    page.call("Accessibility.enable")
    nodes: list[dict[str, Any]] = page.call("Accessibility.getFullAXTree")["nodes"]
    roles = ("button", "textbox", "progressbar", "image", "dialog", "group", "heading")
    named = [
        (node["role"]["value"], node.get("name", {}).get("value", ""))
        for node in nodes
        if not node.get("ignored") and node["role"]["value"] in roles
    ]
    assert [role for role, name in named if not name] == []
    assert {role for role, _ in named} >= {"button", "textbox", "progressbar", "image", "group"}
    assert ("textbox", "Caption of the original") in named
    reached = []
    for _ in range(20):
        press(page, "Tab")
        focused = page.run("document.activeElement.id || document.activeElement.dataset.candidate")
        reached.append(focused)
        # A ring shows where one is.
        if focused:
            ring = page.run("getComputedStyle(document.activeElement).outlineStyle")
            assert ring == "solid", focused
    for name in (
        "help",
        "flicker",
        "outline",
        "caption",
        "new_caption",
        "note",
        "recolor-1",
        "accept",
        "reject",
        "skip",
        "undo",
    ):
        assert name in reached, reached


def test_a_turned_photo_lies_as_its_candidates_do(page: Page, folder: Folder) -> None:
    path = folder.root / "photos/p0-bus.jpg"
    photo = Image.open(path)
    exif = Image.Exif()
    exif[0x0112] = 6  # of a camera that was held upright
    photo.save(path, exif=exif)
    with served(folder, "ana") as server:
        look(page, server, "p0-bus")
        wait(page, "[...document.querySelectorAll('.picture')].every(i => i.naturalWidth)")
        screen = Image.open(
            io.BytesIO(base64.b64decode(page.call("Page.captureScreenshot")["data"]))
        )
        shown = []
        for frame in ("#original .frame", "#edited .frame"):
            box = page.run(f"document.querySelector('{frame}').getBoundingClientRect().toJSON()")
            left, top = round(box["left"]), round(box["top"])
            shown.append(screen.convert("L").crop((left, top, left + 600, top + 340)))
    difference = ImageStat.Stat(ImageChops.difference(*shown)).mean[0]
    # But for the bus they are the same; turned, they differ by 50 and more.
    assert difference < 8
