"""A hub on loopback with data sets: as much of its API as `datasets` needs to find and fetch their files."""

import contextlib
import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

COMMIT = "d" * 40


@dataclass
class DataHub:
    """Data sets `owner/name` in folders of that name. `asked` are the paths of the requests; /gated/ is refused."""

    folder: Path
    url: str = ""
    asked: list[str] = field(default_factory=list)


def _entry(path: Path, root: Path) -> dict[str, Any]:
    if path.is_dir():
        return {"type": "directory", "path": str(path.relative_to(root)), "size": 0, "oid": "0" * 40}
    body = path.read_bytes()
    oid = hashlib.sha1(b"blob %d\0" % len(body) + body, usedforsecurity=False).hexdigest()
    return {"type": "file", "path": str(path.relative_to(root)), "size": len(body), "oid": oid}


@contextlib.contextmanager
def serving_data(folder: Path) -> Iterator[DataHub]:
    """Serve the data sets in a folder."""
    hub = DataHub(folder)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.do_GET()

        def do_POST(self) -> None:
            length = int(self.headers.get("Content-Length", 0))
            asked = self.rfile.read(length)
            parts = self.path.strip("/").split("/")
            hub.asked.append(self.path)
            root = hub.folder.joinpath(*parts[2:4])
            wanted = json.loads(asked)["paths"] if asked.startswith(b"{") else []
            found = [root / name for name in wanted if (root / name).exists()]
            self._send(200, json.dumps([_entry(path, root) for path in found]).encode())

        def do_GET(self) -> None:
            parts = self.path.split("?")[0].strip("/").split("/")
            hub.asked.append(self.path)
            if "gated" in parts:
                return self._send(403, b"Access to this dataset is restricted.", {"X-Error-Code": "GatedRepo"})
            api = parts[:2] == ["api", "datasets"]
            root = hub.folder.joinpath(*(parts[2:4] if api else parts[1:3]))
            if not root.is_dir() or (parts[0] != "datasets" and not api):
                return self._send(404, b"", {"X-Error-Code": "RepoNotFound"})
            files = sorted(path for path in root.rglob("*") if path.is_file())
            if api and "tree" in parts:
                place = root.joinpath(*parts[6:])
                if not place.is_dir():
                    return self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
                found = place.rglob("*") if "recursive=true" in self.path else place.glob("*")
                return self._send(200, json.dumps([_entry(path, root) for path in sorted(found)]).encode())
            if api:
                siblings = [{"rfilename": str(path.relative_to(root))} for path in files]
                about = {"id": "/".join(parts[2:4]), "sha": COMMIT, "siblings": siblings, "private": False}
                return self._send(200, json.dumps({**about, "gated": False, "tags": [], "downloads": 0}).encode())
            path = root.joinpath(*parts[5:])
            if not path.is_file():
                return self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
            tag = {"ETag": f'"{_entry(path, root)["oid"]}"', "X-Repo-Commit": COMMIT}
            self._send(200, path.read_bytes(), tag)

        def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
                self.send_header(name, value)
            self.end_headers()
            with contextlib.suppress(ConnectionError):
                if self.command != "HEAD":
                    self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


def use_data(url: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make this the hub of the test's process, with the caches of `datasets` in `home`."""
    import datasets
    from huggingface_hub import constants

    for module, name, value in (
        (constants, "ENDPOINT", url),
        (constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}"),
        (constants, "HF_HUB_CACHE", str(home / "hub")),
        (datasets.config, "HF_ENDPOINT", url),
        (datasets.config, "HF_DATASETS_CACHE", home / "datasets"),
        (datasets.config, "DOWNLOADED_DATASETS_PATH", home / "datasets" / "downloads"),
        (datasets.config, "HF_MODULES_CACHE", home / "modules"),
    ):
        monkeypatch.setattr(module, name, value)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
