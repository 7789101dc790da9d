"""A proxy on loopback that makes a store fail as real ones do, at chosen or at drawn requests."""

from __future__ import annotations

import contextlib
import http.client
import os
import random
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import fsspec
import pytest

from hnpretrain.shards import storage

SLOW_DOWN = "slow_down"  # 503, as S3 says it
UNAVAILABLE = "unavailable"  # 503 without a word, as a load balancer says it
RESET = "reset"  # the connection is reset before the request reaches the store
LOST = "lost"  # the store did it, but the connection is reset instead of an answer
CUT = "cut"  # half of the body that Content-Length promised, then the connection ends
SLOW = "slow"  # a good answer after a while
SILENT = "silent"  # no answer at all, and the connection stays open

FAULTS = (SLOW_DOWN, UNAVAILABLE, RESET, LOST, CUT, SLOW)
_SLOW_SECONDS = 0.2
_SLOW_DOWN_BODY = (
    b'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>SlowDown</Code>'
    b"<Message>Please reduce your request rate.</Message></Error>"
)


@dataclass(frozen=True)
class Request:
    """What the store is asked.

    Attributes:
        operation: `read`, `head`, `list`, `put`, `part` (of an upload), `remove`, or `other` (the
            beginning and the end of an upload in parts, ...).
        target: path and query.
        span: the Range header, or empty.
    """

    operation: str
    target: str
    span: str


# The fault of a request, or None for none; the number tells how often this very request came.
Plan = Callable[[Request, int], str | None]


def no_faults(_request: Request, _number: int) -> None:
    return None


def drawn(seed: int, share: float, in_a_row: int) -> Plan:
    """Faults at a share of all requests, never more than `in_a_row` for one and the same.

    They depend on the request and on how often it came, not on time or on other requests, so that
    any number of processes meet the same ones.
    """

    def fault(request: Request, number: int) -> str | None:
        draw = random.Random(f"{seed} {request} {number}")
        if number >= in_a_row or draw.random() >= share:
            return None
        return draw.choice(FAULTS)

    return fault


@contextlib.contextmanager
def before_the_bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyStore]:
    """A proxy in front of the server of the fixture `bucket`; we repeat without long waits."""
    forget = fsspec.get_filesystem_class("s3").clear_instance_cache
    monkeypatch.setattr(storage, "_FIRST_WAIT", 0.01)
    with FaultyStore(os.environ["AWS_ENDPOINT_URL"]) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        forget()
        yield proxy
    forget()


class FaultyStore:
    """Stands in front of an HTTP store; a context manager.

    Attributes:
        url: where the proxy listens.
        upstream: the URL of the store itself.
        plan: which requests fail, and how; may be set at any time.
        faults: counts of (operation, fault) so far.
        requests: all requests so far.
    """

    def __init__(self, upstream: str, plan: Plan = no_faults) -> None:
        self.plan = plan
        self.faults: Counter[tuple[str, str]] = Counter()
        self.requests: list[Request] = []
        self.upstream = upstream
        self._numbers: Counter[Request] = Counter()
        self._lock = threading.Lock()
        self._closing = threading.Event()
        store = self

        class Handler(_Handler):
            def handle_request(self) -> None:
                store._handle(self)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.block_on_close = False
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> FaultyStore:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()

    def _handle(self, handler: _Handler) -> None:
        # The body is taken in any case: a client that is still sending would not see the answer.
        body = handler.rfile.read(int(handler.headers.get("Content-Length", 0)))
        request = _request(handler)
        with self._lock:
            fault = self.plan(request, self._numbers[request])
            self._numbers[request] += 1
            self.requests.append(request)
            if fault is not None:
                self.faults[request.operation, fault] += 1
        if fault == SLOW_DOWN:
            _answer(handler, 503, {"Content-Type": "application/xml"}, _SLOW_DOWN_BODY)
        elif fault == UNAVAILABLE:
            _answer(handler, 503, {}, b"")
        elif fault == RESET:
            handler.reset()
        elif fault == SILENT:
            self._closing.wait()
            handler.close_connection = True
        else:
            if fault == SLOW:
                self._closing.wait(_SLOW_SECONDS)
            status, headers, data = self._forward(handler, body)
            if fault == LOST:
                handler.reset()
                return
            sent = data[: len(data) // 2] if fault == CUT else data
            _answer(handler, status, headers, sent, len(data))
            if fault == CUT:
                handler.close_connection = True

    def _forward(self, handler: _Handler, body: bytes) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection(urlsplit(self.upstream).netloc, timeout=60)
        try:
            headers = {k: v for k, v in handler.headers.items() if k.lower() not in _HOP_BY_HOP}
            connection.request(handler.command, handler.path, body, headers)
            answer = connection.getresponse()
            data = answer.read()
            kept = {k: v for k, v in answer.getheaders() if k.lower() not in _HOP_BY_HOP}
            return answer.status, kept, data
        finally:
            connection.close()


_HOP_BY_HOP = ("connection", "keep-alive", "transfer-encoding", "expect", "date", "server")


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def handle_request(self) -> None:
        raise NotImplementedError

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except ConnectionError:  # the client gave up, or was killed
            self.close_connection = True

    def do_GET(self) -> None:
        self.handle_request()

    do_HEAD = do_PUT = do_POST = do_DELETE = do_GET

    def log_message(self, *_: Any) -> None:
        pass

    def reset(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True


def _answer(
    handler: _Handler,
    status: int,
    headers: dict[str, str],
    data: bytes,
    promised: int | None = None,
) -> None:
    handler.send_response(status)
    for name, value in headers.items():
        if name.lower() != "content-length" or handler.command == "HEAD":
            handler.send_header(name, value)
    if handler.command != "HEAD":
        handler.send_header("Content-Length", str(len(data) if promised is None else promised))
    handler.end_headers()
    if handler.command != "HEAD":
        handler.wfile.write(data)
    handler.wfile.flush()


def _request(handler: _Handler) -> Request:
    query = parse_qs(urlsplit(handler.path).query, keep_blank_values=True)
    operations = {"HEAD": "head", "PUT": "put", "GET": "read", "DELETE": "remove"}
    operation = operations.get(handler.command, "other")
    if operation == "read" and "list-type" in query:
        operation = "list"
    elif operation == "put" and "partNumber" in query:
        operation = "part"
    return Request(operation, handler.path, handler.headers.get("Range", ""))
