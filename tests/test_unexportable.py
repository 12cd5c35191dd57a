"""Every verb that may lead to hours of training refuses a base without export, unless its adapter is enough."""

import json
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tests.support import bases
from tests.support.damage import edit_json
from tests.support.stubs import change_vocabulary
from toolkit import pipeline
from toolkit.cli import commands  # noqa: F401  (it adds the verbs to the group)
from toolkit.cli.options import group
from toolkit.core.errors import MISSING, ToolkitError
from toolkit.core.manifest import Outcome
from toolkit.core.stage import Check, Context
from toolkit.export import foresight

SETTINGS = """
[run]
name = "r"
[data]
source = "own.csv"
[model]
base = "base"
[train]
max_length = 256
[ollama]
host = "http://127.0.0.1:9"
"""
ALONE = ("--set", "train.allow_unexportable=true")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Settings, data and a base whose tokenizer cannot be exported; training only writes its files."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    bases.save_base(tmp_path / "base", "llama")
    bases.save_vocabulary(tmp_path / "base")
    change_vocabulary(tmp_path / "base", end_of_word_suffix="</w>")
    rows = "".join(f"question {number},answer {number}\n" for number in range(20))
    (tmp_path / "own.csv").write_text(f"question,answer\n{rows}", encoding="utf-8")
    (tmp_path / "toolkit.toml").write_text(SETTINGS, encoding="utf-8")

    def write(context: Context) -> Outcome:
        outputs = pipeline.stage("train").files(context.config, context.folder).outputs
        for path in outputs:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("trained", encoding="utf-8")
        return Outcome(outputs, {})

    module = import_module("toolkit.train.stage")
    monkeypatch.setattr(module, "STAGE", replace(module.STAGE, run=write, summary=lambda figures, folder: ""))
    return tmp_path


def call(*arguments: str) -> Result:
    return CliRunner().invoke(group, [*arguments, "--json"])


def refusal(*arguments: str) -> ToolkitError:
    raised = call(*arguments).exception
    assert isinstance(raised, ToolkitError), raised
    return raised


def trained(place: Path) -> bool:
    return (place / "exports" / "r" / "adapter" / "adapter_model.safetensors").exists()


@pytest.mark.parametrize(
    "verb",
    [
        ("doctor",),
        ("run",),
        ("run", "--dry-run"),
        ("prepare", "--dry-run"),
        ("train", "--dry-run"),
        ("export", "--dry-run"),
        ("validate", "--dry-run"),
        ("register", "--dry-run"),
    ],
)
def test_every_verb_refuses_what_cannot_be_exported(place: Path, verb: tuple[str, ...]) -> None:
    found = refusal(*verb)
    assert found.exit_code == MISSING
    said = f"{found.message} {found.details}" if verb == ("doctor",) else found.message
    assert "end_of_word_suffix" in said and "train.allow_unexportable" in found.hint
    assert "families that can be exported: Gemma2ForCausalLM" in found.hint
    assert not trained(place)


@pytest.mark.slow
def test_what_a_hint_says_can_be_typed(place: Path) -> None:
    change_vocabulary(place / "base", end_of_word_suffix=None)
    (place / "toolkit.toml").rename(place / "own.toml")
    given = ("-c", "own.toml", "--set", "run.name=x")
    assert refusal("train", *given).hint == "run `toolkit prepare -c own.toml --set run.name=x` first"
    assert call("prepare", *given).exception is None
    (place / "exports" / "x" / "data" / "train.jsonl").write_text("mine\n", encoding="utf-8")
    assert "`toolkit prepare -c own.toml --set run.name=x --force`" in refusal("prepare", *given).hint
    assert "`toolkit run -c own.toml --set run.name=x` does all" in refusal("train", *given).hint
    assert call("prepare", *given, "--force").exception is None


def test_training_refuses_it_too_and_alone(place: Path) -> None:
    assert call("prepare").exception is None
    for force in ((), ("--force",)):
        found = refusal("train", *force)
        assert found.exit_code == MISSING and "end_of_word_suffix" in found.message
    assert not trained(place)


def test_the_pipeline_refuses_it_where_nobody_looked_first(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As for a training that another program starts."""
    monkeypatch.setattr("toolkit.doctor.doctor", lambda *_, **__: [])
    assert call("prepare").exception is None
    found = refusal("train")
    assert found.exit_code == MISSING and found.message.startswith("the trained model cannot be exported")


@pytest.mark.slow
@pytest.mark.parametrize("verbs", [("train",), ("run",)])
def test_the_export_is_asked_once(place: Path, monkeypatch: pytest.MonkeyPatch, verbs: tuple[str, ...]) -> None:
    """By the doctor, before the training; a large vocabulary takes it a second."""
    change_vocabulary(place / "base", end_of_word_suffix=None)
    assert call("prepare").exception is None
    asked: list[Check | None] = []

    def answering(check: Check | None) -> Callable[..., Check | None]:
        def answer(*_: object) -> Check | None:
            asked.append(check)
            return check

        return answer

    monkeypatch.setattr(foresight, "look_ahead", answering(Check("export", True, "", "")))
    call(*verbs)
    assert trained(place) and len(asked) == 1
    monkeypatch.setattr(foresight, "look_ahead", answering(None))  # the base is not here yet
    call("train", "--force")
    assert len(asked) == 3


@pytest.mark.slow
def test_an_adapter_alone_is_trained_where_that_is_asked_for(place: Path) -> None:
    done = call("run", *ALONE)
    assert done.exception is None, done.exception
    assert trained(place)
    assert "the run ends with the adapter in" in done.stderr and "end_of_word_suffix" in done.stderr
    assert "toolkit status" in done.stderr and not list(place.glob("exports/r/gguf/*"))
    again = call("run", *ALONE)  # nothing is left to do, which is said again
    assert again.exception is None and "the run ends with the adapter in" in again.stderr
    assert refusal("export", "--dry-run", *ALONE).exit_code == MISSING  # which nothing allows
    edit_json(place / "base" / "config.json", architectures=["MambaForCausalLM"])
    assert "MambaForCausalLM, which cannot be exported" in refusal("export", "--force", *ALONE).message


def test_a_preview_ends_where_the_run_ends(place: Path) -> None:
    found = json.loads(call("run", "--dry-run", *ALONE).stdout)
    assert [*found["stages"]] == ["prepare", "train"]
    edit_json(place / "base" / "config.json", architectures=["Qwen3MoeForCausalLM"])
    assert [*json.loads(call("run", "--dry-run", *ALONE).stdout)["stages"]] == ["prepare", "train"]
    edit_json(place / "base" / "config.json", architectures=["LlamaForCausalLM"])
    change_vocabulary(place / "base", end_of_word_suffix=None)
    assert [*json.loads(call("run", "--dry-run", *ALONE).stdout)["stages"]] == [*pipeline.STAGES]


@pytest.mark.slow
def test_the_permission_changes_nothing_about_the_training(place: Path) -> None:
    assert call("prepare").exception is None
    assert call("train", *ALONE).exception is None
    change_vocabulary(place / "base", end_of_word_suffix=None)
    assert '"fresh": true' in call("train").stdout or "fresh, skipped" in call("train").stderr


def test_the_permission_is_of_no_consequence_where_a_base_can_be_exported(place: Path) -> None:
    change_vocabulary(place / "base", end_of_word_suffix=None)
    for verb in (("run", "--dry-run"), ("doctor",)):
        done = call(*verb, *ALONE)
        assert done.exception is None, done.exception
        assert "cannot be exported" not in done.output


def test_targets_are_refused_before_anything_is_prepared(place: Path) -> None:
    change_vocabulary(place / "base", end_of_word_suffix=None)
    for verb in (("train", "--dry-run"), ("run",)):
        found = refusal(*verb, "--set", "train.target_modules=q_proj,wq")
        assert found.exit_code == MISSING and "layers that this base does not have: wq" in found.message
    assert not (place / "exports" / "r" / "data").exists()


def test_a_mamba_base_is_refused_by_doctor_and_run(place: Path) -> None:
    edit_json(place / "base" / "config.json", architectures=["MambaForCausalLM"], model_type="mamba")
    for verb in (("doctor",), ("run",), ("train", "--dry-run")):
        found = refusal(*verb)
        assert found.exit_code == MISSING
        assert "a Mamba model" in f"{found.message} {found.details}" and "LlamaForCausalLM" in found.hint
