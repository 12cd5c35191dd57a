"""The worked example of docs/why-it-fails-in-ollama.md: a Gemma-2 with an adapter on its attention alone.

unslothai/unsloth#7792 reports word salad from every GGUF of such a model, worse with every step of training, while the
same weights answer well in transformers. Here a small Gemma-2 with random weights gets the reported adapter (rank 16,
alpha 32, q, k, v and o), weak, stronger and very strong. Each file must compute what transformers computes with the
adapter unmerged, in llama.cpp and in Ollama; files with a fault of the kind that is looked for must not.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from gguf import GGUFReader
from safetensors.torch import load_file, save_file

from tests.support import families, gelu, models
from tests.support.ollama_server import OllamaServer
from toolkit import llamacpp
from toolkit.export import ordering, standalone

pytestmark = pytest.mark.slow
QUANTIZATIONS = ("F32", "BF16", "Q8_0", "Q4_K_M")
STRENGTHS = (1, 8, 64)
WORST = {"F32": 1e-8, "BF16": 1e-3, "Q8_0": 0.01, "Q4_K_M": 0.2}  # nats a token, of the files
TOKENS = 96
QUESTION = "What helps against a cold?"


@dataclass(frozen=True)
class Case:
    """One adapter and its files."""

    base: Path
    adapter: Path
    files: dict[str, Path]
    modelfile: Path


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return families.save(tmp_path_factory.mktemp("gemma") / "base", "gemma2", dtype=torch.bfloat16)


@pytest.fixture(scope="module", params=STRENGTHS, ids=lambda strength: f"adapter times {strength}")
def case(request: pytest.FixtureRequest, base: Path, tmp_path_factory: pytest.TempPathFactory) -> Case:
    place = tmp_path_factory.mktemp("case")
    targets = ["q_proj", "k_proj", "v_proj", "o_proj"]
    adapter = models.save_adapter(place / "mine", base, r=16, lora_alpha=32, target_modules=targets)
    path = adapter / "adapter_model.safetensors"
    weights = load_file(path)
    assert all(".self_attn." in name for name in weights)
    longer = {name: weight * (request.param if "lora_B" in name else 1) for name, weight in weights.items()}
    save_file(longer, path, metadata={"format": "pt"})
    order = ordering.of_adapter(adapter, str(base), "none.toml", ("prompt.preset=gemma",))
    figures = standalone.carry_out(order, "gguf", QUANTIZATIONS, str(place / "out"), dry_run=False, force=False)
    files = {name: Path(found["path"]) for name, found in figures["files"].items()}
    return Case(base, adapter, files, place / "out" / "Modelfile")


def distance(case: Case, path: Path) -> float:
    """Return a file's mean KL divergence from the trained model, with transformers' GELU as llama.cpp computes it."""
    with gelu.table_gelu():
        return models.kl(case.base, case.adapter, path, TOKENS)


def test_every_file_computes_what_was_trained(case: Case) -> None:
    found = {name: distance(case, path) for name, path in case.files.items()}
    assert all(found[name] <= WORST[name] for name in QUANTIZATIONS), found
    assert found["F32"] < found["BF16"] < found["Q8_0"] < found["Q4_K_M"]
    with gelu.table_gelu():  # what a file without the adapter would show
        assert models.kl(case.base, None, case.files["F32"], TOKENS) > 1000 * found["F32"]


def changed(source: Path, target: Path, fault: str) -> Path:
    """Copy a file with one fault: norms without their 1, no soft cap, or one layer without its adapter."""
    shutil.copy(source, target)
    reader = GGUFReader(target, "r+")
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    if fault == "norms":
        for name, tensor in tensors.items():
            if name.endswith("norm.weight"):
                tensor.data[:] = np.asarray(tensor.data) - 1
    elif fault == "cap":
        for key in ("gemma2.attn_logit_softcapping", "gemma2.final_logit_softcapping"):
            field = reader.fields[key]
            field.parts[field.data[0]][0] = 1e9
    else:
        whole = GGUFReader(fault)
        [plain] = [tensor for tensor in whole.tensors if tensor.name == "blk.1.attn_q.weight"]
        tensors["blk.1.attn_q.weight"].data[:] = plain.data
    reader.data.flush()
    return target


@pytest.mark.parametrize("fault", ["norms", "cap", "layer"])
def test_a_fault_shows_in_the_same_number(case: Case, tmp_path: Path, fault: str) -> None:
    """A structural fault is as large in F32 as in 4 bits, and far beyond what an intact F32 file has."""
    if fault == "layer":
        order = ordering.of_model(str(case.base), "none.toml", ("prompt.preset=gemma",))
        figures = standalone.carry_out(order, "gguf", ("F32",), str(tmp_path / "plain"), dry_run=False, force=False)
        fault = str(figures["files"]["F32"]["path"])
    broken = distance(case, changed(case.files["F32"], tmp_path / "broken.gguf", fault))
    assert broken > 1e-4 >= 1e4 * distance(case, case.files["F32"])


@pytest.mark.ollama
def test_a_real_ollama_computes_the_same_probabilities(case: Case, server: OllamaServer) -> None:
    """The Modelfile next to the file; the first token's most likely five, by log-probability, are llama.cpp's."""
    for name in ("F32", "Q8_0"):
        text = case.modelfile.read_text().splitlines()
        lines = [f"FROM {case.files[name]}" if line.startswith("FROM ") else line for line in text]
        own = case.modelfile.with_name(f"Modelfile-{name}")
        own.write_text("\n".join(lines))
        made = server.run("create", "gemma2-case", "-f", str(own))
        assert made.returncode == 0, made.stderr
        body: dict[str, Any] = {
            "model": "gemma2-case", "messages": [{"role": "user", "content": QUESTION}], "stream": False,
            "logprobs": True, "top_logprobs": 5, "options": {"num_predict": 1, "temperature": 0},
        }  # fmt: skip
        answer = httpx.post(f"{server.url}/api/chat", json=body, timeout=120, trust_env=False).json()
        shown = httpx.post(
            f"{server.url}/api/chat", json={**body, "_debug_render_only": True}, timeout=120, trust_env=False
        ).json()["_debug_info"]["rendered_template"]
        with llamacpp.opened(case.files[name], 256) as llm:
            ids = llamacpp.served(llm, shown)
            assert answer["prompt_eval_count"] == len(ids)
            mine = models.log_softmax(llamacpp.logits(llm, ids, len(ids) - 1))[0]
        theirs = [entry["logprob"] for entry in answer["logprobs"][0]["top_logprobs"]]
        np.testing.assert_allclose(theirs, np.sort(mine)[::-1][:5], atol=0.02)
