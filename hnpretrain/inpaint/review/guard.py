"""Which requests are heard: those of the page that the printed link opened, and no others.

Other programs and other people of this machine can reach a loopback port, and so can any page that
the same browser shows. Hence
- a token, drawn at random for each server, without which nothing is told;
- a host that is this machine's own name, against names that were pointed at it (DNS rebinding);
- for what changes something, JSON and a header of our own: other pages' requests with these a
  browser sends only once the server has allowed it, and this one never does (CSRF);
- a policy under which the page can load and run nothing but the server's own files, should a
  caption ever become more than text.
"""

from __future__ import annotations

import secrets

from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

REVIEWER_HEADER = "x-reviewer"
TOKEN_HEADER = "x-token"

# A forwarded port (ssh -L) may have any number here, so the port is not looked at.
_HOSTS = ["127.0.0.1", "localhost", "[::1]"]
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_READING = ("GET", "HEAD")


def middleware(token: str, cookie: str) -> list[Middleware]:
    """What stands before the application.

    Args:
        token: that a request must bring: in the link, in the cookie that the link sets, or in the
            header X-Token.
        cookie: its name. Ports share cookies, so that each server needs a name of its own.
    """
    return [
        Middleware(_Headers),
        Middleware(TrustedHostMiddleware, allowed_hosts=_HOSTS, www_redirect=False),
        Middleware(_Guard, token=token, cookie=cookie),
    ]


class _Headers:
    """Adds _HEADERS to every answer that does not have its own."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await self._app(scope, receive, send_with_headers)


class _Guard:
    def __init__(self, app: ASGIApp, token: str, cookie: str) -> None:
        self._app = app
        self._token = token.encode()
        self._cookie = cookie

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = self._answer(Request(scope)) if scope["type"] == "http" else None
        await (answer or self._app)(scope, receive, send)

    def _answer(self, request: Request) -> Response | None:
        """What is said instead of the application's answer; None if that is to be heard."""
        in_link = request.query_params.get("token")
        if request.url.path == "/" and in_link is not None and self._is_token(in_link):
            # Away with the token from the address, which people copy and browsers remember.
            answer = RedirectResponse("/", status_code=303)
            answer.set_cookie(
                self._cookie, self._token.decode(), httponly=True, samesite="lax", path="/"
            )
            return answer
        given = request.cookies.get(self._cookie) or request.headers.get(TOKEN_HEADER, "")
        if not self._is_token(given):
            return PlainTextResponse(
                "This page needs the link that `hnpretrain inpaint review` printed when it was "
                "started last; open that.\n",
                status_code=403,
            )
        if request.method not in _READING:
            kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
            if kind != "application/json":
                return PlainTextResponse("the content type must be application/json\n", 415)
            if REVIEWER_HEADER not in request.headers:
                return PlainTextResponse("the header X-Reviewer is missing\n", 403)
        return None

    def _is_token(self, given: str) -> bool:
        # In a time that tells nothing of how much of it was right.
        return secrets.compare_digest(given.encode("utf-8", "replace"), self._token)
