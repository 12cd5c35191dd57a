"""Each example is what it says: settings are read, scripts run, and the list of examples names every file."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.support import models, tiny_gguf
from tests.support.ollama_server import OllamaServer
from tests.support.places import REPOSITORY
from toolkit.core.config_file import load_config
from toolkit.evaluate.exam import read_exam
from toolkit.prompt.format import prompt_format
from toolkit.prompt.renderings import render

EXAMPLES = REPOSITORY / "examples"
SETTINGS = sorted(EXAMPLES.glob("*.toml"))
CONTROLS = {"chatml": "<|im_start|>", "gemma": "<start_of_turn>", "llama3": "<|start_header_id|>"}


def test_the_list_names_every_file() -> None:
    listed = re.findall(r"^\| `([\w.]+)` \|", (EXAMPLES / "README.md").read_text("utf-8"), re.MULTILINE)
    assert sorted(listed) == sorted(
        path.name for path in EXAMPLES.iterdir() if path.name not in ("README.md", "__pycache__")
    )


@pytest.mark.parametrize("path", SETTINGS, ids=lambda path: path.stem)
def test_settings_are_read_and_name_what_is_there(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    config = load_config(path)
    assert all(source == "medquad" or Path(source).is_file() for source in config.data.sources)
    text = render(prompt_format(config.prompt), "Why?", "").text
    assert "Why?" in text and CONTROLS.get(config.prompt.preset, "") in text
    assert not config.evaluate.exam or len(read_exam(Path(config.evaluate.exam))) >= 40


def test_each_run_has_a_name_of_its_own() -> None:
    names = [load_config(path).run.name for path in SETTINGS]
    assert len(set(names)) == len(names)


def test_the_settings_of_accelerate_are_those_that_the_toolkit_takes() -> None:
    values = yaml.safe_load((EXAMPLES / "fsdp.yaml").read_text("utf-8"))
    assert values["distributed_type"] == "FSDP" and values["fsdp_config"]["fsdp_version"] == 2
    assert values["mixed_precision"] == "no" and values["fsdp_config"]["fsdp_state_dict_type"] == "FULL_STATE_DICT"


def script(*call: str | Path, place: Path, **variables: str) -> "subprocess.CompletedProcess[str]":
    path = f"{Path(sys.prefix) / 'bin'}:{os.environ['PATH']}"
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "PATH": path, **variables}
    return subprocess.run(call, cwd=place, env=environment, capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.parametrize("call", [["bash", EXAMPLES / "export_adapter.sh"], [sys.executable, EXAMPLES / "ask.py", "x"]])
def test_a_script_without_its_arguments_says_how_it_is_called(call: list[str | Path], tmp_path: Path) -> None:
    done = script(*call, place=tmp_path)
    assert done.returncode != 0 and Path(call[1]).name in done.stderr and "Traceback" not in done.stderr


@pytest.mark.slow
def test_an_adapter_from_elsewhere_becomes_two_files_and_a_modelfile(tmp_path: Path) -> None:
    base = models.save_model(tmp_path / "a base")
    adapter = models.save_adapter(tmp_path / "an adapter", base)
    done = script("bash", EXAMPLES / "export_adapter.sh", adapter, base, "the output", place=tmp_path)
    assert done.returncode == 0, done.stderr
    written = {path.suffix or path.name for path in (tmp_path / "the output").iterdir()}
    assert written == {".gguf", "Modelfile"} and len(list((tmp_path / "the output").glob("*.gguf"))) == 2
    assert "ollama create my-model -f 'the output/Modelfile'" in done.stdout


@pytest.mark.slow
@pytest.mark.ollama
def test_a_question_is_answered_in_ollama(server: OllamaServer, tmp_path: Path) -> None:
    tiny_gguf.write(tmp_path / "tiny.gguf")
    (tmp_path / "Modelfile").write_text(
        'FROM ./tiny.gguf\nTEMPLATE "{{ .System }}{{ .Prompt }}"\nPARAMETER num_predict 8\n'
    )
    made = script(server.binary, "create", "tiny", "-f", "Modelfile", place=tmp_path, OLLAMA_HOST=server.url)
    assert made.returncode == 0, made.stderr
    asked = ("tiny", "What does <|im_end|> mean?", "Be brief.")
    done = script(sys.executable, EXAMPLES / "ask.py", *asked, place=tmp_path, OLLAMA_HOST=server.url)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
