"""A hub on loopback: as much of its API as a download needs, with ranges, hashes, and faults on request."""

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.support.web import Answering, listening
from toolkit.model import hub_pieces, hub_range

COMMIT = "c" * 40
LARGE = (".safetensors",)  # in LFS, with a SHA-256


@dataclass
class Hub:
    """One model, `owner/model`, in a folder; /gated/ is refused as the real hub does.

    `asked` are the ranges of weights that were sent, as (file, first byte, bytes). `fault` sees each such request: what
    it returns is sent instead of the bytes; it may be shorter than what was promised.
    """

    folder: Path
    url: str = ""
    ranges: bool = True
    asked: list[tuple[str, int, int]] = field(default_factory=list)
    fault: Callable[[str, int, bytes], bytes | int] = lambda name, start, body: body

    def environment(self, home: Path) -> dict[str, str]:
        """Return what makes this the hub of a process."""
        return {"HF_ENDPOINT": self.url, "HF_HOME": str(home)}

    def bytes_of(self, name: str) -> int:
        """Return how many bytes of a file were sent."""
        return sum(count for asked, _, count in self.asked if asked == name)


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[Hub]:
    """Serve a model's folder."""
    hub = Hub(folder)

    class Handler(Answering):
        def do_GET(self) -> None:
            parts = self.path.split("?")[0].strip("/").split("/")
            if "gated" in parts:
                return self.answer(403, b"Access to model gated/model is restricted.", {"X-Error-Code": "GatedRepo"})
            if parts[:2] == ["api", "models"]:
                if parts[2:4] != ["owner", "model"]:
                    return self.answer(404, b"", {"X-Error-Code": "RepoNotFound"})
                if "tree" in parts:
                    return self.answer(200, json.dumps([entry(path) for path in files()]).encode())
                body = {"id": "owner/model", "sha": COMMIT, "siblings": [sibling(path) for path in files()]}
                return self.answer(200, json.dumps(body).encode())
            path = hub.folder / parts[-1]
            if not path.is_file():
                return self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})
            headers = {"ETag": f'"{path.name}"', "X-Repo-Commit": COMMIT}
            if path.suffix not in LARGE or self.command == "HEAD":
                return self.answer(200, path.read_bytes(), headers)
            return self._weights(path, headers)

        def _weights(self, path: Path, headers: dict[str, str]) -> None:
            stated = self.headers.get("Range", "").removeprefix("bytes=")
            whole, size = not (stated and hub.ranges), path.stat().st_size
            start, end = (0, size - 1) if whole else map(int, stated.split("-"))
            with path.open("rb") as file:
                file.seek(start)
                body = file.read(end - start + 1)
            found = hub.fault(path.name, start, body)
            if isinstance(found, int):
                return self.answer(found, b"", {})
            hub.asked.append((path.name, start, len(found)))
            if not whole:
                headers = {**headers, "Content-Range": f"bytes {start}-{end}/{size}"}
            self.answer(200 if whole else 206, found, {**headers, "Content-Length": str(len(body))})

    def files() -> list[Path]:
        return [path for path in sorted(folder.iterdir()) if path.is_file()]

    with listening(Handler) as hub.url:
        yield hub


def use(hub: Hub, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make this the hub of the test's process, with its caches in `home`; pieces are small, so there are several."""
    point_at(hub.url, home / "hf", monkeypatch)
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "cache"))
    monkeypatch.setattr(hub_pieces, "PIECE", 150_000)
    monkeypatch.setattr(hub_range, "WAIT", 0.0)


def point_at(url: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the hub's library ask this address, and keep what it fetches in `cache`."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))


def git_blob(path: Path) -> str:
    body = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(body) + body, usedforsecurity=False).hexdigest()


def sibling(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = {"rfilename": path.name, "size": path.stat().st_size, "blobId": git_blob(path)}
    if path.suffix in LARGE:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        found["lfs"] = {"size": path.stat().st_size, "sha256": digest, "pointerSize": 134}
    return found


def entry(path: Path) -> dict[str, Any]:
    return {"type": "file", "path": path.name, "size": path.stat().st_size, "oid": git_blob(path)}
