"""Web servers on loopback: one that gives what it was told for each path, and what others are made of."""

import contextlib
import http.server
import mimetypes
import threading
from collections.abc import Iterator, Mapping


class Answering(http.server.BaseHTTPRequestHandler):
    """A request; HEAD is GET without the body."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        raise NotImplementedError

    def answer(self, status: int, body: bytes = b"", headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        with contextlib.suppress(ConnectionError):
            if self.command != "HEAD":
                self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def listening(handler: type[Answering]) -> Iterator[str]:
    """Answer requests in threads; yields the server's address."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@contextlib.contextmanager
def serving_bytes(answers: Mapping[str, bytes]) -> Iterator[str]:
    """Serve bytes by their path; yields the server's address."""

    class Handler(Answering):
        def do_GET(self) -> None:
            body, kind = answers.get(self.path), mimetypes.guess_type(self.path)[0]
            self.answer(404 if body is None else 200, body or b"", {"Content-Type": kind} if kind else {})

    with listening(Handler) as url:
        yield url
