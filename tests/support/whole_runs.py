"""A whole run on real weights with a real Ollama server, as the command line does it, and what every such one keeps."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tests.conftest import Called, call_toolkit
from tests.support.ollama_server import OllamaServer
from toolkit.pipeline import STAGES


@dataclass(frozen=True)
class WholeRun:
    """A run that was performed in `place`, where its settings are; `called` is how that ended."""

    place: Path
    name: str
    server: OllamaServer
    called: Called

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return self.place / "exports" / self.name

    @cached_property
    def stages(self) -> dict[str, Any]:
        """What each stage reported."""
        assert self.called.code == 0, self.called.err
        found: dict[str, Any] = self.called.json["stages"]
        return found

    @cached_property
    def report(self) -> dict[str, Any]:
        """What validation measured."""
        found: dict[str, Any] = json.loads((self.folder / "report.json").read_text())
        return found

    def call(self, *arguments: str) -> Called:
        """Call `toolkit …` for this run, with its server."""
        return call_toolkit(*arguments, cwd=self.place, OLLAMA_HOST=self.server.url)


def perform_all(place: Path, name: str, settings: str, server: OllamaServer) -> WholeRun:
    """Write the settings of a run, and perform all its stages."""
    (place / "toolkit.toml").write_text(settings)
    return WholeRun(place, name, server, call_toolkit("run", "--json", cwd=place, timeout=3000, OLLAMA_HOST=server.url))


def check_better(run: WholeRun) -> None:
    """Every stage was performed, the model learned, each file equals it, and the default one is registered."""
    assert list(run.stages) == list(STAGES)
    trained, prepared = run.stages["train"], run.stages["prepare"]
    assert trained["held_out_loss_after"] < trained["held_out_loss_before"]
    for entry in run.report["quantizations"].values():
        assert entry["passed"] and entry["unequal_prompts"] == 0 and entry["prompts"] == prepared["test"]
    assert set(run.stages["register"]["tags"]) == {"latest", "q4_k_m"}


def check_fresh(run: WholeRun) -> None:
    """Everything is fresh afterwards, but for the evaluation, which nobody asked for."""
    status = run.call("status", "--json")
    states = {name: stage["state"] for name, stage in status.json["stages"].items()}
    assert states.pop("evaluate") == "not run" and set(states.values()) == {"fresh"}, status.out


def check_answers(run: WholeRun, question: str) -> None:
    """It answers in Ollama, through the toolkit, and without a server in llama.cpp."""
    ran = run.server.run("run", run.name, question)
    assert ran.returncode == 0 and ran.stdout.strip(), ran
    asked = run.call("ask", question, "--json")
    assert asked.json["through"] == "ollama" and len(asked.json["answer"].split()) > 3
    alone = call_toolkit("ask", question, "--json", cwd=run.place)
    assert alone.json["through"] == "llama.cpp" and len(alone.json["answer"].split()) > 3
