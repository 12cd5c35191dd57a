"""Stages and their freshness on a small random-weight model: performed, skipped, stale with the reason."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tests.conftest import Called
from tests.support import tiny_gguf
from tests.support.models import save_model
from tests.support.places import REPOSITORY
from tests.support.waiting import wait_while_running
from toolkit import doctor, pipeline
from toolkit.cli import commands  # noqa: F401  (it adds the verbs to the group)
from toolkit.cli.options import group
from toolkit.core import config_file
from toolkit.core.config import SECTIONS, Config
from toolkit.core.errors import MISSING, ToolkitError
from toolkit.core.manifest import Outcome, read_manifest
from toolkit.core.output_settings import ExportSettings
from toolkit.core.run_folder import folder_of
from toolkit.doctor import Check
from toolkit.pipeline import freshness
from toolkit.pipeline.performing import perform
from toolkit.train import stage as train_stage


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """Settings of a run on a small model and the sample data, in an empty working directory."""
    monkeypatch.chdir(tmp_path)
    save_model(tmp_path / "base", hidden_size=64, intermediate_size=128)
    return config_file.build(
        {
            "run": {"name": "small"},
            "data": {"source": str(REPOSITORY / "data" / "sample.csv")},
            "model": {"base": "base"},
            "train": {"max_steps": 2, "max_length": 512, "gradient_checkpointing": False},
            "export": {"quantizations": ["F32", "Q8_0"], "default": "Q8_0"},
            "validate": {"rows": 3, "max_kl": {"Q8_0": 0.1}, "answer_tokens": 4},
        }
    )


@pytest.mark.parametrize(
    ("change", "stale"),
    [
        ({"name": "someone/other"}, {"register"}),
        ({"host": "10.0.0.1", "temperature": 0.0, "num_ctx": 512, "license": "MIT"}, {"register"}),
        ({"repeat_penalty": 1.1}, {"validate", "register"}),
    ],
)
def test_a_name_is_no_reason_to_validate_again(change: dict[str, Any], stale: set[str]) -> None:
    plain, other = config_file.build({}), config_file.build({"ollama": change})
    stages = pipeline.records(pipeline.STAGES)
    changed = {each.name for each in stages if pipeline.settings_of(each, plain) != pipeline.settings_of(each, other)}
    assert changed == stale


def test_prepare_is_done_once_and_again_when_something_changes(settings: Config, tmp_path: Path) -> None:
    folder = folder_of(settings)
    assert set(freshness.state(settings, folder).values()) == {"not run"}
    first = perform("prepare", settings, folder)
    assert (first.fresh, first.why) == (False, "not run")
    again = perform("prepare", settings, folder)
    assert again.fresh and again.figures == first.figures
    other = settings.model_copy(update={"data": settings.data.model_copy(update={"seed": 7})})
    assert perform("prepare", other, folder).why == "settings changed: data.seed"
    assert perform("prepare", other, folder, force=True).why == "--force"
    state = freshness.state(other, folder)
    assert state["prepare"] == "" and state["train"] == "not run"


def test_changed_data_makes_prepare_and_all_behind_it_stale(settings: Config, tmp_path: Path) -> None:
    own = tmp_path / "own.csv"
    own.write_bytes((REPOSITORY / "data" / "sample.csv").read_bytes())
    settings = settings.model_copy(update={"data": settings.data.model_copy(update={"source": str(own)})})
    folder = folder_of(settings)
    perform("prepare", settings, folder)
    assert freshness.state(settings, folder)["prepare"] == ""
    own.write_text(own.read_text() + 'X,"Question: New ?\nAnswer: Yes.) "\n')
    assert "input changed" in freshness.state(settings, folder)["prepare"]


def test_files_that_the_stage_did_not_write_are_not_overwritten(settings: Config) -> None:
    folder = folder_of(settings)
    folder.data.mkdir(parents=True)
    folder.split_file("train").write_text("mine\n")
    with pytest.raises(ToolkitError, match=r"train\.jsonl") as caught:
        perform("prepare", settings, folder)
    assert "--force" in caught.value.hint
    assert folder.split_file("train").read_text() == "mine\n"
    perform("prepare", settings, folder, force=True)
    folder.split_file("val").write_text("edited by hand\n")
    with pytest.raises(ToolkitError, match=r"val\.jsonl"):
        perform("prepare", settings, folder)


@pytest.mark.parametrize(
    ("stage", "verb"),
    [("train", "prepare"), ("export", "train"), ("validate", "export"), ("register", "export")],
)
def test_a_stage_without_its_inputs_names_the_verb_that_makes_them(settings: Config, stage: str, verb: str) -> None:
    folder = folder_of(settings)
    folder.path.mkdir(parents=True)
    with pytest.raises(ToolkitError) as caught:
        perform(stage, settings, folder)
    assert f"toolkit {verb}" in caught.value.hint


def test_a_failing_stage_leaves_no_record_and_former_results(settings: Config) -> None:
    folder = folder_of(settings)
    perform("prepare", settings, folder)
    before = folder.split_file("train").read_bytes(), folder.manifest.read_bytes()
    broken = settings.model_copy(update={"data": settings.data.model_copy(update={"question_column": "nope"})})
    with pytest.raises(ToolkitError):
        perform("prepare", broken, folder)
    assert (folder.split_file("train").read_bytes(), folder.manifest.read_bytes()) == before


@pytest.mark.slow
def test_a_fresh_training_is_skipped_before_the_doctor_looks(
    settings: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "toolkit.toml").write_text(config_file.starter({name: settings.section(name) for name in SECTIONS}))
    folder = folder_of(settings)
    perform("prepare", settings, folder)
    files = [folder.adapter / "adapter_config.json", folder.adapter / "adapter_model.safetensors"]
    files += [folder.train_log, folder.loss_plot]

    def trained(*_: object) -> Outcome:
        for path in files:
            path.parent.mkdir(exist_ok=True)
            path.write_text("trained\n")
        return Outcome(files, {})

    quick = replace(pipeline.stage("train"), run=trained, summary=lambda figures, folder: "")
    monkeypatch.setattr(train_stage, "STAGE", quick)
    perform("train", settings, folder)
    small = Check("memory: training", False, "1.0 GB is free", "buy more")
    monkeypatch.setattr(doctor, "doctor", lambda *_, **__: [small])
    called = CliRunner().invoke(group, ["train", "--json"])
    assert called.exit_code == 0, called.output
    assert json.loads(called.stdout.splitlines()[-1])["fresh"] is True
    for arguments in (["--force"], ["--set", "train.max_steps=3"]):
        called = CliRunner().invoke(group, ["train", *arguments])
        assert isinstance(called.exception, ToolkitError) and called.exception.exit_code == MISSING


@pytest.mark.slow
def test_the_whole_way_on_a_small_model(settings: Config, toolkit: Callable[..., Called], tmp_path: Path) -> None:
    """Without a server: all stages but register, then nothing to do, then an answer through llama.cpp."""
    (tmp_path / "toolkit.toml").write_text(config_file.starter({name: settings.section(name) for name in SECTIONS}))
    called = toolkit("run", "--json")
    assert called.code == 0, called.err
    assert list(called.json["stages"]) == ["prepare", "train", "export", "validate"]
    assert "no Ollama server answers" in called.err and "toolkit register" in called.err
    folder = folder_of(settings)
    report = json.loads((tmp_path / folder.report).read_text())
    assert {name: entry["passed"] for name, entry in report["quantizations"].items()} == {"F32": True, "Q8_0": True}
    assert all(entry["unequal_prompts"] == 0 for entry in report["quantizations"].values())
    stages = toolkit("status", "--json").json["stages"]
    assert [stages[name]["state"] for name in pipeline.STAGES] == ["fresh"] * 4 + ["not run"]
    again = toolkit("run")
    assert again.code == 0 and again.err.count("fresh, skipped") == 4
    asked = toolkit("ask", "What helps against a cold?", "--json")
    assert asked.code == 0 and asked.json["through"] == "llama.cpp"
    validated = toolkit("validate", "--json")
    assert validated.code == 0 and validated.json["fresh"] is True
    gate = toolkit("validate", "--json", "--set", "validate.max_kl={Q8_0 = 1e-12}")
    assert gate.code == 4 and "Q8_0" in gate.json["error"]
    stage = toolkit("status", "--json").json["stages"]["validate"]
    assert stage["state"] == "stale" and "Q8_0" in stage["why"]
    refused = toolkit("register", "--json")
    assert refused.code == 1 and "not validated" in refused.json["error"]
    assert toolkit("validate").code == 0
    refused = toolkit("register", "--json")
    assert refused.code == 3 and "no Ollama server" in refused.json["error"]


@pytest.mark.slow
def test_ctrl_c_on_the_command_line_ends_with_130_and_the_same_command_goes_on(
    settings: Config, toolkit: Callable[..., Called], tmp_path: Path
) -> None:
    longer = settings.model_copy(
        update={"train": settings.train.model_copy(update={"max_steps": 12, "save_steps": 100})}
    )
    (tmp_path / "toolkit.toml").write_text(config_file.starter({name: longer.section(name) for name in SECTIONS}))
    assert toolkit("prepare").code == 0
    log = folder_of(longer).checkpoints / "train_log.jsonl"
    process = subprocess.Popen(
        [sys.executable, "-m", "toolkit", "train", "--json"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_while_running(process, lambda: log.is_file() and '"step": 2, "loss"' in log.read_text())
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 130, err
    assert json.loads(out.splitlines()[-1])["exit_code"] == 130
    assert "the same command continues" in err and "Traceback" not in err
    assert toolkit("status", "--json").json["stages"]["train"]["state"] == "not run"
    again = toolkit("train", "--json")
    assert again.code == 0, again.err
    assert again.json["resumed_at_step"] >= 2 and again.json["steps"] == 12


@pytest.mark.slow
def test_an_imatrix_is_of_the_training_split_and_kept_in_the_run(settings: Config, tmp_path: Path) -> None:
    from toolkit.export import imatrix_file

    weighed: dict[str, Any] = {"quantizations": ["Q8_0", "Q4_K_M"], "default": "Q8_0", "imatrix": True}
    settings = settings.model_copy(update={"export": ExportSettings(**weighed)})
    folder = folder_of(settings)
    for stage in ("prepare", "train", "export"):
        done = perform(stage, settings, folder)
    matrix = imatrix_file.read_imatrix(folder.imatrix)
    assert matrix.dataset == "data/train.jsonl"
    assert len(matrix.sums) == done.figures["imatrix_matrices"] == 14
    assert matrix.chunks * matrix.chunk_size == done.figures["imatrix_tokens"] > 1000
    record = read_manifest(folder).stages["export"]
    assert "data/train.jsonl" in [file.path for file in record.inputs]
    assert not {"data/val.jsonl", "data/test.jsonl"} & {file.path for file in record.inputs}
    assert "gguf/small-imatrix.gguf" in [file.path for file in record.outputs]
    assert freshness.state(settings, folder)["export"] == ""
    folder.imatrix.unlink()
    assert "small-imatrix.gguf" in freshness.state(settings, folder)["export"]
    assert done.figures["imatrix_reused"] is False
    plain = settings.model_copy(update={"export": ExportSettings(**{**weighed, "imatrix": False})})
    assert freshness.state(plain, folder)["export"] == "settings changed: export.imatrix"


def test_a_modelfile_that_register_would_write_is_nobody_elses(settings: Config) -> None:
    """As `toolkit modelfile` prints it, or as a kill leaves it before the manifest is written."""
    from toolkit.prompt.tokenizer import load_tokenizer
    from toolkit.register import modelfile_text

    folder = folder_of(settings)
    perform("prepare", settings, folder)
    folder.adapter.mkdir()
    for path in Path("base").glob("*token*"):
        (folder.adapter / path.name).write_bytes(path.read_bytes())
    for quantization in settings.export.quantizations:
        folder.gguf(quantization).parent.mkdir(exist_ok=True)
        tiny_gguf.write(folder.gguf(quantization))
    folder.modelfile.write_text(modelfile_text(settings, folder, load_tokenizer(folder.adapter).eos_text))
    with pytest.raises(ToolkitError, match="not validated"):
        perform("register", settings, folder)
    folder.modelfile.write_text(folder.modelfile.read_text() + "# mine\n")
    with pytest.raises(ToolkitError, match="did not write, or that changed since: Modelfile"):
        perform("register", settings, folder)
