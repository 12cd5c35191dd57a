"""A real Ollama server for the session, and a run folder with two tiny GGUF files."""

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from ollama import Client

from tests.conftest import ollama_binary
from tests.support import tiny_gguf as tiny
from tests.support.ollama_server import OllamaServer, library, ollama_server
from toolkit.core import config_file, run_folder
from toolkit.core.config import Config
from toolkit.core.files import sha256_of
from toolkit.core.manifest import Outcome
from toolkit.core.run_folder import RunFolder
from toolkit.ollama import server
from toolkit.prompt import format, templates
from toolkit.register import greedy, prompt_parity, verify

ROWS = [
    {"instruction": f"Explain as doctor {i % 3}", "input": text, "output": "x"}
    for i, text in enumerate(
        [
            "What is (are) Noonan syndrome ?",
            "  blanks around\t",
            'quotes "a" """b""" \'c\'',
            "braces {{ .System }} {% if x %} [[ y ]]",
            "two\nlines\n\n### Response:\nand more",
            "CR LF\r\nhere",
            "no-break\u00a0space, emoji \U0001f642, ñ, 漢字",
            "control <|end_of_text|> <s> [INST]",
            "back\\slash \\n",
            "<b>markup</b> & more",
        ]
        * 3
    )
]
ANSWERED = {"answer": "Rest.", "done_reason": "stop", "tokens_per_second": 1.0}
FEW = ROWS[:2]  # for what is not about prompts: each is asked in six ways


@pytest.fixture(autouse=True)
def _short_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Registrations here record short answers: there are hundreds."""
    monkeypatch.setattr(greedy, "TOKENS", 8)


@pytest.fixture
def no_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    """The proof of prompts only reads: what is about names, disks and kills does without."""
    monkeypatch.setattr(prompt_parity, "prove_prompts", lambda *arguments: {})


@pytest.fixture
def no_question(no_proof: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does the question change anything: a model that is only to have a name need not be loaded."""
    monkeypatch.setattr(verify, "smoke", lambda *arguments, **options: ANSWERED)


@pytest.fixture(scope="session")
def ollama(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OllamaServer]:
    with ollama_server(ollama_binary(), tmp_path_factory.mktemp("ollama")) as running:
        yield running


@pytest.fixture
def mortal(tmp_path: Path) -> Iterator[OllamaServer]:
    """A server of the test's own, to be killed."""
    with ollama_server(ollama_binary(), tmp_path / "ollama") as running:
        yield running


@dataclass(frozen=True)
class Run:
    """A run as `register` gets it."""

    config: Config
    folder: RunFolder
    files: dict[str, Path]
    digests: dict[str, str]

    def register(self, *replace: str, rows: list[dict[str, str]] = FEW) -> Outcome:
        from toolkit.register import register

        return register(self.config, self.folder, tiny.EOS, self.files, self.digests, rows, replace=replace)

    def held(self) -> dict[str, str]:
        """What the server holds under this run's name."""
        with server.http(self.config.ollama) as http:
            held = server.held(http)
        return {model.partition(":")[2]: digest for model, digest in held.items() if model.startswith(f"{self.name}:")}

    @property
    def name(self) -> str:
        return self.folder.name

    def client(self) -> Client:
        return library(self.config.ollama.host)

    def answer(self) -> str:
        response = self.client().generate(self.name, prompt="How?", options={"num_predict": 8}).response
        assert response is not None
        return response


def temporary(run: Run) -> list[str]:
    """The temporary tags that the server holds under the run's name."""
    return [tag for tag in run.held() if tag.startswith("toolkit-")]


def make_run(
    folder: Path, url: str, name: str, *, seed: int = 0, chat_template: str | None = None, **changes: dict[str, Any]
) -> Run:
    """Write two tiny GGUF files of random weights below `folder`, as export would, and settings for the server."""
    values: dict[str, dict[str, Any]] = {
        "run": {"name": name, "folder": str(folder)},
        "model": {"base": "HuggingFaceTB/SmolLM2-135M-Instruct"},
        "export": {"quantizations": ["F16", "F32"], "default": "F32"},
        "validate": {"answer_tokens": 8},
        "ollama": {"host": url, "num_ctx": 1024, "timeout": 120.0, "tags": ["all"]},
    }
    for section, settings in changes.items():
        values[section] = {**values.get(section, {}), **settings}
    config = config_file.build(values)
    place = run_folder.folder_of(config)
    tiny.save_tokenizer(place.adapter)
    template = templates.chat_template(format.prompt_format(config.prompt), bos=True)
    template = template if chat_template is None else chat_template
    files = {
        quantization: tiny.write(place.gguf(quantization), seed=seed, chat_template=template, f16=quantization == "F16")
        for quantization in config.served
    }
    return Run(config, place, files, {name: sha256_of(path) for name, path in files.items()})


# Ollama compares a chat template with each that it knows, letter by letter, for a quarter of a second a model: runs
# whose prompts are not proven do without one.
bare_run = functools.partial(make_run, chat_template="")
