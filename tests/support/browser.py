"""A headless Chromium for tests, driven by its DevTools protocol over a pipe.

`python -m tests.support.browser`, which `make test` runs first, sees to it that there is one: it
looks for it, else installs Debian's where it may, else says what to install.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_MISSING = (
    "no browser for the tests of pages: install Chromium "
    "(Debian, as root: apt-get install chromium fonts-dejavu-core)"
)
_SECONDS = 60.0


def find() -> str | None:
    """The path of a browser, or None."""
    return next(filter(None, map(shutil.which, _NAMES)), None)


def ensure() -> bool:
    """Whether there is a browser, once it was installed if that is possible."""
    if find() is None and os.geteuid() == 0 and shutil.which("apt-get"):
        print("installing chromium for the tests of pages", file=sys.stderr)
        quiet = ["apt-get", "-qq", "-o", "Dpkg::Use-Pty=0"]
        packages = ["chromium", "fonts-dejavu-core"]
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        for command in (["update"], ["install", "-y", "--no-install-recommends", *packages]):
            subprocess.run(
                [*quiet, *command], env=environment, stdout=subprocess.DEVNULL, check=False
            )
    return find() is not None


class Page:
    """One tab.

    Attributes:
        events: what the browser told unasked (requests, errors, ...), as (method, params).
    """

    def __init__(self, commands: int, answers: int) -> None:
        self._commands, self._answers = commands, answers
        self._buffer = b""
        self._number = 0
        self._session: str | None = None
        self.events: list[tuple[str, dict[str, Any]]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Sends one command and waits for its result; RuntimeError if it failed."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + _SECONDS
        while (answer := self._read(deadline)).get("id") != self._number:
            self.events.append((answer["method"], answer["params"]))
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]

    def _read(self, deadline: float) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            if not select.select([self._answers], [], [], deadline - time.monotonic())[0]:
                raise TimeoutError(f"the browser said nothing for {_SECONDS:.0f} s")
            data = os.read(self._answers, 2**20)
            if not data:
                raise RuntimeError("the browser ended")
            self._buffer += data
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    def open(self, url: str) -> None:
        """Opens a page and waits until it, with its images, is there; forgets earlier events."""
        # From elsewhere: another fragment of the same page would not load it again.
        for address in ("about:blank", url):
            self.events.clear()
            self.call("Page.navigate", url=address)
            deadline = time.monotonic() + _SECONDS
            while not any(method == "Page.loadEventFired" for method, _ in self.events):
                answer = self._read(deadline)
                self.events.append((answer["method"], answer["params"]))

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression in the page; RuntimeError if it throws."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(str(answer["exceptionDetails"]))
        return answer["result"].get("value")

    def click(self, selector: str) -> None:
        """Clicks with the mouse in the middle of what a CSS selector finds."""
        place = json.dumps(selector)
        self.run(f"document.querySelector({place}).scrollIntoView({{block: 'center'}})")
        box = self.run(f"document.querySelector({place}).getBoundingClientRect().toJSON()")
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def write(self, text: str) -> None:
        """Types a text where the cursor is."""
        self.call("Input.insertText", text=text)

    def resize(self, width: int, height: int, dark: bool = False) -> None:
        """Another window, in pixels, of a reader who likes light or dark pages."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def problems(self) -> list[str]:
        """Script errors, and what the browser logged: refused scripts, broken requests, ..."""
        texts = []
        for method, params in self.events:
            if method == "Runtime.exceptionThrown":
                texts.append(str(params["exceptionDetails"]))
            elif method == "Log.entryAdded":
                texts.append(params["entry"]["text"])
        return texts

    def requests(self) -> list[str]:
        """The URLs that the page asked for."""
        return [
            params["request"]["url"]
            for method, params in self.events
            if method == "Network.requestWillBeSent"
        ]


@contextlib.contextmanager
def browser(profile: Path) -> Iterator[Page]:
    """A browser with one tab; RuntimeError if none is installed.

    Args:
        profile: an empty folder for what the browser writes.
    """
    path = find()
    if path is None:
        raise RuntimeError(_MISSING)
    command_end, commands = os.pipe()
    answers, answer_end = os.pipe()
    arguments = [
        "--headless",
        "--no-sandbox",  # Chromium's own needs privileges that containers lack
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--no-first-run",
        "--disable-background-networking",
        f"--user-data-dir={profile}",
        "--remote-debugging-pipe",  # reads commands from 3, writes answers to 4
    ]
    # The shell puts the pipes' ends where Chromium looks for them; 8 and 9 in case one is 3 or 4.
    plumbing = f'exec 8<&{command_end} 9>&{answer_end} 3<&8 4>&9 8<&- 9>&-; exec "$@"'
    with subprocess.Popen(
        ["bash", "-c", plumbing, "browser", path, *arguments],
        pass_fds=(command_end, answer_end),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        os.close(command_end)
        os.close(answer_end)
        try:
            page = Page(commands, answers)
            yield page
            page._session = None
            page.call("Browser.close")
            process.wait(timeout=20)
        finally:
            process.kill()
            os.close(commands)
            os.close(answers)


if __name__ == "__main__":
    if not ensure():
        print(_MISSING, file=sys.stderr)
