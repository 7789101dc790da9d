"""Serves the review to a browser on this machine.

    /                                 the page; ?token=... of the printed link lets a browser in
    /page.css, /page.js, ...          its files
    /api/hello                        for whom, and of which folder
    /api/review                       what there is to review, and what the reviewer decided
    /api/proposals/ID                 one proposal: captions, candidates with checks, decision
    POST /api/decisions               a `desk.Asked`; answered when it is on the disk
    /images/KIND/ID?candidate=NAME    one picture; KIND is of `pictures.KINDS`

A request names its reviewer in the header X-Reviewer. What is refused is answered with one line of
plain text that says why.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import secrets
import socket
import sys
from collections.abc import Callable, Mapping
from importlib import resources
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from hnpretrain.inpaint.decisions import check_reviewer
from hnpretrain.inpaint.folder import Folder
from hnpretrain.inpaint.records import Candidate, Decision
from hnpretrain.inpaint.review.desk import Asked, Conflict, Desk
from hnpretrain.inpaint.review.guard import REVIEWER_HEADER, middleware
from hnpretrain.inpaint.review.pictures import KINDS, picture
from hnpretrain.inpaint.review.shelf import Item, Shelf
from hnpretrain.shards.images import DEFAULT_MAX_PIXELS, require_max_pixels
from hnpretrain.shards.lock import Locked

HOST = "127.0.0.1"

_PAGE_FILES = {
    "page.html": "text/html",
    "page.css": "text/css",
    "page.js": "text/javascript",
    "server.js": "text/javascript",
    "words.js": "text/javascript",
    "icon.svg": "image/svg+xml",
}
_MAX_BODY = 64 * 1024
# Pictures are asked for ahead, and then shown.
_PICTURE_CACHE = "private, max-age=120"
# For what is being answered when the server is stopped.
_GRACE_SECONDS = 3


def serve(
    folder: Folder,
    reviewer: str = "",
    port: int = 0,
    only: str = "passed",
    max_pixels: int = DEFAULT_MAX_PIXELS,
) -> None:
    """Serves the review on this machine until Ctrl-C; prints the link that opens it.

    Args:
        folder: with proposals, and candidates.
        reviewer: who reviews; if empty, the page asks, and several people can use one server.
        port: of 127.0.0.1; 0 takes any free one.
        only: `passed` shows candidates whose checks pass, and what the reviewer accepted earlier;
            `all` shows all, and proposals without any.
        max_pixels: largest width x height of a picture that is shown.

    Raises:
        ValueError: a setting is wrong, or there are no proposals, or their file or the reviewer's
            is damaged.
        OSError: the port is taken; or another server has the reviewer's decisions.
    """
    import uvicorn

    if not 0 <= port < 65536:
        raise ValueError(f"port={port}: between 0 (any free one) and 65535")
    require_max_pixels(max_pixels)
    notes = Notes()
    shelf = Shelf(folder, only)
    with Desk(folder, notes.tell) as desk, _listen(port) as listening:
        accepted: Mapping[str, str] = {}
        if reviewer:
            desk.admit(reviewer)
            accepted = _accepted(desk.standing(reviewer))
        token = secrets.token_urlsafe(24)
        chosen = listening.getsockname()[1]
        cookie = f"hnpretrain-review-{chosen}"
        app = application(shelf, desk, notes, reviewer, max_pixels, token, cookie)
        print(f"{len(shelf.items(accepted))} of {len(shelf)} proposals to review; Ctrl-C ends it")
        print(f"open http://{HOST}:{chosen}/?token={token}", flush=True)
        config = uvicorn.Config(
            app,
            http="h11",
            ws="none",
            lifespan="off",
            log_level="warning",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_graceful_shutdown=_GRACE_SECONDS,
        )
        with contextlib.suppress(KeyboardInterrupt):  # raised again once all is answered
            uvicorn.Server(config).run(sockets=[listening])
    print("\nreview stopped; every decision that the page called saved is on the disk")


def _listen(port: int) -> socket.socket:
    try:
        return socket.create_server((HOST, port))
    except OSError as error:
        raise OSError(
            f"port {port} of {HOST}: {error.strerror}; give another, or 0 for any free one"
        ) from error


class Notes:
    """What reviewers should know of damaged files: told once on stderr, and on the page."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def tell(self, note: str) -> None:
        if note not in self.told:
            self.told.append(note)
            print(f"note: {note}", file=sys.stderr, flush=True)


def application(
    shelf: Shelf,
    desk: Desk,
    notes: Notes,
    reviewer: str,
    max_pixels: int,
    token: str,
    cookie: str,
) -> Starlette:
    """The application, without a port.

    Args:
        shelf: what is reviewed.
        desk: takes the decisions.
        notes: that the desk tells.
        reviewer: the only one, unless empty.
        max_pixels: largest width x height of a picture.
        token: see `guard.middleware`.
        cookie: see `guard.middleware`.
    """
    view = _Views(shelf, desk, notes, reviewer, max_pixels)
    files = [Route(f"/{name}", _page_file(name)) for name in _PAGE_FILES if name != "page.html"]
    return Starlette(
        routes=[
            Route("/", _page_file("page.html")),
            *files,
            Route("/api/hello", view.hello),
            Route("/api/review", view.review),
            Route("/api/proposals/{proposal}", view.proposal),
            Route("/api/decisions", view.decide, methods=["POST"]),
            Route("/images/{kind}/{proposal}", view.image),
        ],
        middleware=middleware(token, cookie),
        exception_handlers={
            ValueError: _refused(400),
            Conflict: _refused(409),
            Locked: _refused(409),
            OSError: _refused(500),
        },
    )


def _page_file(name: str) -> Callable[[Request], Response]:
    data = (resources.files("hnpretrain.inpaint.review") / "page" / name).read_bytes()

    def answer(_: Request) -> Response:
        return Response(data, media_type=_PAGE_FILES[name])

    return answer


def _refused(status: int) -> Callable[[Request, Exception], Response]:
    def answer(_: Request, error: Exception) -> Response:
        return Response(" ".join(str(error).split()), status, media_type="text/plain")

    return answer


class _Views:
    """The answers; those that are not `async` run in threads, since they wait for the disk."""

    def __init__(
        self, shelf: Shelf, desk: Desk, notes: Notes, reviewer: str, max_pixels: int
    ) -> None:
        self._shelf = shelf
        self._desk = desk
        self._notes = notes
        self._only_reviewer = reviewer
        self._max_pixels = max_pixels

    def hello(self, _: Request) -> Response:
        root = str(self._shelf.folder.root.resolve())
        return _json({"folder": root, "reviewer": self._only_reviewer})

    def review(self, request: Request) -> Response:
        reviewer = self._reviewer(request)
        stands = self._desk.standing(reviewer)
        verdicts = {name: decision.verdict for name, decision in stands.items()}
        items = [
            {
                "id": item.proposal.id,
                "concept": item.proposal.concept,
                "verdict": verdicts.get(item.proposal.id, ""),
            }
            for item in self._shelf.items(_accepted(stands))
        ]
        return _json(
            {
                "only": self._shelf.only,
                "items": items,
                "not_shown": len(self._shelf) - len(items),
                "latest": next(reversed(verdicts), None),
                "agreement": self._desk.agreement(reviewer),
                "notes": self._notes.told,
            }
        )

    def proposal(self, request: Request) -> Response:
        reviewer = self._reviewer(request)
        item = self._item(request.path_params["proposal"])
        state = self._desk.state(reviewer, item.proposal.id)
        decision = state["decision"]
        accepts = decision is not None and decision["verdict"] == "accept"
        shown = self._shelf.shown(item, decision["candidate"] if accepts else "")
        return _json(_describe(shown) | {"state": state})

    async def decide(self, request: Request) -> Response:
        body = await _body(request)
        return await run_in_threadpool(self._decide, self._reviewer(request), body)

    def _decide(self, reviewer: str, body: bytes) -> Response:
        try:
            value = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"the decision is not JSON: {error}") from error
        asked = Asked.read(value)
        return _json(self._desk.decide(reviewer, self._item(asked.proposal), asked))

    def image(self, request: Request) -> Response:
        kind = request.path_params["kind"]
        if kind not in KINDS:
            raise HTTPException(404, f"no pictures of this kind; there are {', '.join(KINDS)}")
        item = self._item(request.path_params["proposal"])
        name = request.query_params.get("candidate", "")
        try:
            found = picture(self._shelf.folder, item, name, kind, self._max_pixels)
        except KeyError as error:
            raise HTTPException(404, error.args[0]) from error
        except FileNotFoundError as error:
            raise HTTPException(404, f"its file is missing: {error.filename}") from error
        return Response(
            found.data, media_type=found.media_type, headers={"Cache-Control": _PICTURE_CACHE}
        )

    def _item(self, proposal: str) -> Item:
        item = self._shelf.item(proposal)
        if item is None:
            raise HTTPException(404, "there is no such proposal")
        return item

    def _reviewer(self, request: Request) -> str:
        name = check_reviewer(request.headers.get(REVIEWER_HEADER, ""))
        if self._only_reviewer not in ("", name):
            raise HTTPException(
                403, f"this server was started for {self._only_reviewer}; start one for {name}"
            )
        return name


def _accepted(stands: Mapping[str, Decision]) -> dict[str, str]:
    """Proposal to the candidate that was accepted."""
    return {name: each.candidate for name, each in stands.items() if each.verdict == "accept"}


async def _body(request: Request) -> bytes:
    """A request's body; HTTPException 413 as soon as it is known to be too large."""
    told = request.headers.get("content-length", "0")
    body = bytearray()
    if told.isdecimal() and int(told) <= _MAX_BODY:
        async for part in request.stream():
            body += part
            if len(body) > _MAX_BODY:
                break
        else:
            return bytes(body)
    raise HTTPException(413, f"more than {_MAX_BODY} bytes", {"Connection": "close"})


def _describe(item: Item) -> dict[str, Any]:
    """All that the page shows of an item, which is the same for all reviewers."""
    proposal = item.proposal
    names = ("id", "concept", "edit", "noun", "category", "caption", "new_caption")
    return {
        **{name: getattr(proposal, name) for name in names},
        "source_caption": proposal.source_caption,
        "things": proposal.things,
        "area": proposal.area,
        "candidates": [_describe_candidate(candidate) for candidate in item.candidates],
        "damaged": item.damaged,
    }


def _describe_candidate(candidate: Candidate) -> dict[str, Any]:
    return {
        "id": candidate.id,
        "editor": candidate.editor,
        "passed": candidate.passed,
        "checks": {name: dataclasses.asdict(check) for name, check in candidate.checks.items()},
    }


def _json(value: Any) -> Response:
    return JSONResponse(_finite(value))


def _finite(value: Any) -> Any:
    """The same without infinity (the PSNR of equal pictures) and NaN, which JSON does not know."""
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
