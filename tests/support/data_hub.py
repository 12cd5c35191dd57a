"""A hub on loopback with data sets: as much of its API as `datasets.load_dataset` needs to find and download one."""

import contextlib
import hashlib
import http.server
import json
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

COMMIT = "d" * 40
GATED = "owner/gated"


@contextlib.contextmanager
def serving_data(sets: Mapping[str, Mapping[str, bytes]]) -> Iterator[tuple[str, list[str]]]:
    """Serve data sets: id → file → content. Yields the address and the paths that were asked for."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.do_GET()

        def do_POST(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            self.answer(json.loads(self.rfile.read(length) or b"{}"))

        def do_GET(self) -> None:
            self.answer({})

        def answer(self, body: Any) -> None:
            path = unquote(urlsplit(self.path).path)
            asked.append(path)
            parts = path.strip("/").split("/")
            api = parts[:2] == ["api", "datasets"]
            parts = parts[2:] if api else parts[1:]
            name, rest = "/".join(parts[:2]), parts[2:]
            if name == GATED:
                return self.send(403, {"error": "Access to dataset is restricted."}, {"X-Error-Code": "GatedRepo"})
            if name not in sets:
                return self.send(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
            files = sets[name]
            if rest[:1] == ["tree"]:
                return self.send(200, [entry(one, files[one]) for one in sorted(files)])
            if rest[:1] == ["paths-info"]:
                wanted = body.get("paths", [])
                return self.send(200, [entry(one, files[one]) for one in sorted(files) if one in wanted])
            if rest[:1] == ["resolve"]:
                one = "/".join(rest[2:])
                if one not in files:
                    return self.send(404, {}, {"X-Error-Code": "EntryNotFound"})
                return self.send(200, files[one], {"ETag": f'"{digest(files[one])}"', "X-Repo-Commit": COMMIT})
            if api:
                siblings = [{"rfilename": one} for one in sorted(files)]
                return self.send(200, {"id": name, "sha": COMMIT, "siblings": siblings, "private": False, "tags": []})
            self.send(404, {}, {})

        def send(self, status: int, body: Any, headers: Mapping[str, str] | None = None) -> None:
            content = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            for key, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command != "HEAD":
                with contextlib.suppress(ConnectionError):
                    self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()


def digest(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def entry(name: str, content: bytes) -> dict[str, Any]:
    return {"type": "file", "path": name, "size": len(content), "oid": digest(content)}


def use_data_hub(url: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make this the hub of the test's process, with its caches in `home`."""
    import datasets
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", url)
    monkeypatch.setattr(datasets.config, "HUB_DATASETS_URL", url + "/datasets/{repo_id}/resolve/{revision}/{path}")
