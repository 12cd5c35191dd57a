"""A time-out that a server cannot stretch by sending a byte now and then.

httpx gives every single read its time. Here each line of an answer must come within the client's read time-out too, or
the whole answer where it has no lines.
"""

import time
from collections.abc import Iterator
from typing import cast

import httpx


class _Timed(httpx.SyncByteStream):
    """A body that may be waited for so many seconds a line; what its reader does meanwhile is not counted."""

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
    """Hold a reply's body to its request's read time-out: an event hook of httpx, for when the header is there."""
    seconds = reply.request.extensions["timeout"]["read"]
    if seconds is not None:
        reply.stream = _Timed(cast(httpx.SyncByteStream, reply.stream), seconds)
