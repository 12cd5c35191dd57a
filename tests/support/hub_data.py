"""A hub on loopback with data sets: as much of its API as `datasets` needs to find and fetch their files."""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.support.hub import git_blob, point_at
from tests.support.web import Answering, listening

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
    size = path.stat().st_size
    return {"type": "file", "path": str(path.relative_to(root)), "size": size, "oid": git_blob(path)}


@contextlib.contextmanager
def serving_data(folder: Path) -> Iterator[DataHub]:
    """Serve the data sets in a folder."""
    hub = DataHub(folder)

    class Handler(Answering):
        def do_POST(self) -> None:
            length = int(self.headers.get("Content-Length", 0))
            asked = self.rfile.read(length)
            parts = self.path.strip("/").split("/")
            hub.asked.append(self.path)
            root = hub.folder.joinpath(*parts[2:4])
            wanted = json.loads(asked)["paths"] if asked.startswith(b"{") else []
            found = [root / name for name in wanted if (root / name).exists()]
            self.answer(200, json.dumps([_entry(path, root) for path in found]).encode())

        def do_GET(self) -> None:
            parts = self.path.split("?")[0].strip("/").split("/")
            hub.asked.append(self.path)
            if "gated" in parts:
                return self.answer(403, b"Access to this dataset is restricted.", {"X-Error-Code": "GatedRepo"})
            api = parts[:2] == ["api", "datasets"]
            root = hub.folder.joinpath(*(parts[2:4] if api else parts[1:3]))
            if not root.is_dir() or (parts[0] != "datasets" and not api):
                return self.answer(404, b"", {"X-Error-Code": "RepoNotFound"})
            files = sorted(path for path in root.rglob("*") if path.is_file())
            if api and "tree" in parts:
                place = root.joinpath(*parts[6:])
                if not place.is_dir():
                    return self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})
                found = place.rglob("*") if "recursive=true" in self.path else place.glob("*")
                return self.answer(200, json.dumps([_entry(path, root) for path in sorted(found)]).encode())
            if api:
                siblings = [{"rfilename": str(path.relative_to(root))} for path in files]
                about = {"id": "/".join(parts[2:4]), "sha": COMMIT, "siblings": siblings, "private": False}
                return self.answer(200, json.dumps({**about, "gated": False, "tags": [], "downloads": 0}).encode())
            path = root.joinpath(*parts[5:])
            if not path.is_file():
                return self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})
            tag = {"ETag": f'"{_entry(path, root)["oid"]}"', "X-Repo-Commit": COMMIT}
            self.answer(200, path.read_bytes(), tag)

    with listening(Handler) as hub.url:
        yield hub


def use_data(url: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make this the hub of the test's process, with the caches of `datasets` in `home`."""
    import datasets

    point_at(url, home / "hub", monkeypatch)
    for module, name, value in (
        (datasets.config, "HF_ENDPOINT", url),
        (datasets.config, "HF_DATASETS_CACHE", home / "datasets"),
        (datasets.config, "DOWNLOADED_DATASETS_PATH", home / "datasets" / "downloads"),
        (datasets.config, "HF_MODULES_CACHE", home / "modules"),
    ):
        monkeypatch.setattr(module, name, value)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
