"""A time-out that a server cannot stretch by sending a byte now and then.

httpx applies its time-out to every single read. Here each line of an answer must come within the client's read time-out
too, or the whole answer if it has no lines.
"""

import time
from collections.abc import Iterator
from typing import cast

import httpx


class _Timed(httpx.SyncByteStream):
    """A body with a limit of seconds per line; the time that its reader takes is not counted."""

    def __init__(self, inner: httpx.SyncByteStream, seconds: float) -> None:
        self.inner, self.seconds = inner, seconds

    def __iter__(self) -> Iterator[bytes]:
        waited = 0.0
        pieces = iter(self.inner)
        while True:
            started = time.monotonic()
            piece = next(pieces, None)
            if piece is None:
                return
            waited = 0.0 if b"\n" in piece else waited + time.monotonic() - started
            if waited > self.seconds:
                raise httpx.ReadTimeout("the answer comes too slowly")
            yield piece

    def close(self) -> None:
        self.inner.close()


def enforce(reply: httpx.Response) -> None:
    """Apply a request's read time-out to its reply's body: an event hook of httpx, called once the header is there."""
    seconds = reply.request.extensions["timeout"]["read"]
    if seconds is not None:
        reply.stream = _Timed(cast(httpx.SyncByteStream, reply.stream), seconds)
