"""A web server on loopback that gives what it was told for each path, and 404 for others."""

import contextlib
import http.server
import mimetypes
import threading
from collections.abc import Iterator, Mapping


@contextlib.contextmanager
def serving_bytes(answers: Mapping[str, bytes]) -> Iterator[str]:
    """Serve bytes by their path; yields the server's address."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            body = answers.get(self.path)
            self.send_response(404 if body is None else 200)
            self.send_header("Content-Length", str(len(body or b"")))
            if kind := mimetypes.guess_type(self.path)[0]:
                self.send_header("Content-Type", kind)
            self.end_headers()
            if body and self.command == "GET":
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
