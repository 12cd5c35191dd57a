"""A fake server that answers what a test says, and a proxy on loopback that injects faults before a real server."""

import http.client
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

Fault = Callable[["Handler"], bool]


class Handler(BaseHTTPRequestHandler):
    """Hand each request to the server's `respond`."""

    protocol_version = "HTTP/1.1"

    def respond(self) -> None:
        self.taken = None
        self.server.respond(self)  # type: ignore[attr-defined]

    do_GET = do_POST = do_HEAD = do_DELETE = respond

    def log_message(self, format: str, *args: object) -> None:
        pass

    taken: bytes | None = None

    def body(self) -> bytes:
        if self.taken is None:
            self.taken = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        return self.taken

    def answer(self, status: int, body: bytes, kind: str = "application/json") -> bool:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
        self.close_connection = True
        return True

    def reset(self) -> bool:
        """Drop the connection without a word."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.connection.close()
        self.close_connection = True
        return True


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    respond: Callable[[Handler], object]

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # a client that goes away is what these tests are about


@contextmanager
def serving(respond: Callable[[Handler], object], certificate: tuple[Path, Path] | None = None) -> Iterator[str]:
    """Run a server that gives each request to `respond`; yields its address. `certificate` and key make it https."""
    server = _Server(("127.0.0.1", 0), Handler)
    server.respond = respond
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        yield f"{'https' if certificate else 'http'}://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@dataclass
class Proxy:
    """Passes requests to a real server unless `fault` answers them (returns True); `seen` lists what was asked.

    `then` is called when the server has done what was asked; if it returns True, its answer is not passed on.
    """

    upstream: str
    fault: Fault = lambda handler: False
    then: Fault = lambda handler: False
    seen: list[str] = field(default_factory=list)

    def respond(self, handler: Handler) -> None:
        self.seen.append(f"{handler.command} {handler.path}")
        if self.fault(handler):
            return
        connection = http.client.HTTPConnection(self.upstream.removeprefix("http://"), timeout=60)
        headers = {key: value for key, value in handler.headers.items() if key.lower() not in ("host", "connection")}
        connection.request(handler.command, handler.path, handler.body(), headers)
        reply = connection.getresponse()
        body = reply.read()
        connection.close()
        if not self.then(handler):
            handler.answer(reply.status, body, reply.headers.get("Content-Type", ""))


@dataclass
class Strike:
    """A fault for requests of this method and path whose body holds `body`: after the first `after`, `times` times."""

    method: str
    path: str
    how: Fault
    body: bytes = b""
    after: int = 0
    times: int = 1
    seen: int = 0
    struck: int = 0

    def __call__(self, handler: Handler) -> bool:
        if handler.command != self.method or not handler.path.startswith(self.path):
            return False
        if not self.path.startswith("/api/blobs") and self.body not in handler.body():
            return False
        self.seen += 1
        if self.seen <= self.after or self.struck >= self.times:
            return False
        self.struck += 1
        return self.how(handler)


def says(status: int, text: str, kind: str = "application/x-ndjson") -> Fault:
    """Answer with this text instead of the server's."""
    return lambda handler: handler.answer(status, text.encode(), kind)


def drips(status: int, text: str, pause: float) -> Fault:
    """Answer as slowly as a slow-loris: the header at once, then a byte now and then."""

    def respond(handler: Handler) -> bool:
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(text)))
        handler.end_headers()
        for char in text.encode():
            handler.wfile.write(bytes([char]))
            handler.wfile.flush()
            time.sleep(pause)
        handler.close_connection = True
        return True

    return respond


@contextmanager
def proxy(upstream: str, certificate: tuple[Path, Path] | None = None) -> Iterator[tuple[str, Proxy]]:
    passing = Proxy(upstream)
    with serving(passing.respond, certificate) as url:
        yield url, passing
