"""Time-outs that a server cannot stretch by sending a byte now and then.

httpx gives every single read its time; a server that drips holds such a client forever. Here a whole header, and after
it each whole line, must come within the client's read time-out. A line ends in a bare newline, as in Ollama's reports
of progress; the CR LF of HTTP's own framing is none.
"""

import re
import ssl
import time
from collections.abc import Iterable
from typing import Any

import httpcore
import httpx

_HEADER_END = b"\r\n\r\n"
_LINE_END = re.compile(rb"(?<!\r)\n")


class _Stream(httpcore.NetworkStream):
    """A connection on which the time for a header or line runs on from read to read."""

    def __init__(self, inner: httpcore.NetworkStream) -> None:
        self.inner = inner
        self.started: float | None = None
        self.in_header = True
        self.tail = b""

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        now = time.monotonic()
        self.started = now if self.started is None else self.started
        left = None if timeout is None else timeout - (now - self.started)
        if left is not None and left <= 0:
            raise httpcore.ReadTimeout("the answer comes too slowly")
        data = self.inner.read(max_bytes, left)
        seen = self.tail + data
        if self.in_header:
            _, ended, rest = seen.partition(_HEADER_END)
            if ended:  # what follows is the body, which has its own time
                self.in_header, self.started, self.tail = False, None, rest[-1:]
            else:
                self.tail = seen[-3:]
        else:
            if _LINE_END.search(seen, len(self.tail)):
                self.started = None
            self.tail = seen[-1:]
        return data

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self.started, self.in_header, self.tail = None, True, b""
        self.inner.write(buffer, timeout)

    def close(self) -> None:
        self.inner.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        return _Stream(self.inner.start_tls(ssl_context, server_hostname, timeout))

    def get_extra_info(self, info: str) -> Any:
        return self.inner.get_extra_info(info)


class _Backend(httpcore.NetworkBackend):
    def __init__(self, inner: httpcore.NetworkBackend) -> None:
        self.inner = inner

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        return _Stream(self.inner.connect_tcp(host, port, timeout, local_address, socket_options))

    def sleep(self, seconds: float) -> None:
        self.inner.sleep(seconds)


def enforce(client: httpx.Client) -> httpx.Client:
    """Make a client's read time-out hold for whole headers and lines; returns the same client.

    httpx has no public way to name httpcore's network backend (httpcore's own pool has one), so it is replaced in the
    pools, a proxy's among them; tests/test_deadlines.py fails should they ever be elsewhere.
    """
    transports = (client._transport, *client._mounts.values())
    for pool in (getattr(transport, "_pool", None) for transport in transports):
        if pool is not None:
            pool._network_backend = _Backend(pool._network_backend)
    return client
