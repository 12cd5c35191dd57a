"""A place where everything is in order, small servers, and what to say about the checks that fail."""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support import cache
from tests.support.bases import save_vocabulary, save_weights
from toolkit import pipeline
from toolkit.core.config import Config
from toolkit.core.config_file import build
from toolkit.core.run_folder import folder_of
from toolkit.core.stage import Check
from toolkit.doctor import doctor
from toolkit.llamacpp import probe

ALL = tuple(pipeline.STAGES)
TINY = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}


def serve(answers: dict[str, tuple[int, str, dict[str, str]]]) -> HTTPServer:
    """Serve fixed answers by path (without its query) on a free loopback port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, body, headers = answers.get(self.path.partition("?")[0], (404, "{}", {}))
            self.send_response(status)
            for name, value in {"Content-Type": "application/json", **headers}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body.encode())

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            pass

    made = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=made.serve_forever, args=(0.01,), daemon=True).start()
    return made


Serving = Callable[[dict[str, tuple[int, str, dict[str, str]]]], str]


@pytest.fixture
def serving() -> Iterator[Serving]:
    started: list[HTTPServer] = []

    def start(answers: dict[str, tuple[int, str, dict[str, str]]]) -> str:
        started.append(serve(answers))
        return f"http://127.0.0.1:{started[-1].server_port}"

    yield start
    for one in started:
        one.shutdown()
        one.server_close()


class Home(NamedTuple):
    """A place where everything is in order: run it with changed settings to see one thing fail."""

    path: Path
    ollama: str

    def config(self, *changes: str) -> Config:
        values = {
            "model": {"base": str(self.path / "base")},
            "data": {"source": str(self.path / "data.csv")},
            "train": {"max_length": 128},
            "ollama": {"host": self.ollama},
        }
        return build(values, changes)

    def examine(
        self, *changes: str, offline: bool = True, stages: tuple[str, ...] = tuple(pipeline.STAGES)
    ) -> list[Check]:
        config = self.config(*changes)
        return doctor(config, folder_of(config), offline=offline, stages=pipeline.records(stages))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, serving: Serving) -> Home:
    monkeypatch.chdir(tmp_path)
    for name in ("HF_HOME", "XDG_CACHE_HOME", "OLLAMA_MODELS"):
        monkeypatch.setenv(name, str(tmp_path / "cache"))
    # llama.cpp computed here before, as asked once a session: each fresh home would ask a process of its own.
    monkeypatch.setattr(probe, "_mark", lambda: cache.place() / "llama-cpp-computes")
    probe.require()
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text(json.dumps(TINY), encoding="utf-8")
    save_weights(tmp_path / "base")
    save_vocabulary(tmp_path / "base")
    rows = "".join(f"question {number},answer {number}\n" for number in range(20))
    (tmp_path / "data.csv").write_text(f"question,answer\n{rows}", encoding="utf-8")
    return Home(tmp_path, serving({"/api/version": (200, '{"version":"0.34.1"}', {})}))


def failing(found: list[Check]) -> list[Check]:
    return [check for check in found if check.ok is False]


def only_failure(found: list[Check], name: str) -> Check:
    assert [check.name for check in failing(found)] == [name]
    assert failing(found)[0].fix
    return failing(found)[0]
