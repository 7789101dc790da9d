"""How often requests to a store had to be repeated, counted where somebody asks for it.

`storage` repeats what fails. The stores' clients do so too, unseen: s3fs and botocore each up to
five times. Of S3, reads that they repeat are counted as well; of other stores, only our own. What
aiohttp repeats (once, if a connection that it had kept open turns out to be closed) nobody sees.

The count belongs to whoever opened it and to the thread that runs it, so that there is nothing to
reset, and reads beside each other are told apart.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

# botocore tells its listeners of each request just before it sends it.
_S3_EVENT = "before-send.s3.GetObject"


@dataclass
class Retries:
    """A count.

    Attributes:
        count: requests beyond the first of each thing that was asked for.
    """

    count: int = 0
    _sent: int = 0  # by the store's client in the try at hand


_open: ContextVar[Retries | None] = ContextVar("retries", default=None)


@contextlib.contextmanager
def counted() -> Iterator[Retries]:
    """Counts the retries of what this thread asks of stores inside."""
    counter = Retries()
    token = _open.set(counter)
    try:
        yield counter
    finally:
        _open.reset(token)


def count() -> None:
    """Counts one retry, if anybody wants to know."""
    counter = _open.get()
    if counter is not None:
        counter.count += 1


def listen(fs: Any) -> None:
    """Counts what S3's client repeats of the one read that is about to be asked of `fs`."""
    counter = _open.get()
    client = getattr(fs, "s3", None) if counter is not None else None
    if counter is None or client is None:
        return
    counter._sent = 0
    # With an id, a second registration does nothing.
    client.meta.events.register(_S3_EVENT, _on_send, unique_id="hnpretrain.retries")


def _on_send(**_: Any) -> None:
    # fsspec's loop runs in a thread of its own, but its tasks take over the context of who asks.
    counter = _open.get()
    if counter is not None:
        counter._sent += 1
        counter.count += counter._sent > 1
