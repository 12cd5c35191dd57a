"""llama.cpp on the GPU beside torch on the GPU: each in a process of its own."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support import remote, scored_models
from toolkit import llamacpp
from toolkit.core.ggml_libraries import gpu_libraries
from toolkit.llamacpp import probe
from toolkit.llamacpp.vocabulary import open_vocabulary
from toolkit.validate import validate

pytestmark = pytest.mark.gpu

IDS = [5, 7, 11, 13, 17, 19]


@pytest.fixture(autouse=True)
def built_for_it() -> None:
    """Skip where llama.cpp computes on the CPU only."""
    if "cuda" not in gpu_libraries():
        pytest.skip("llama.cpp is not built for CUDA (see docs/guide/gpu.md)")


def train_a_little() -> None:
    """Let torch set up CUDA in this process, and take some steps."""
    model = torch.nn.Linear(64, 64, device="cuda")
    optimizer = torch.optim.AdamW(model.parameters())
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(8, 64, device="cuda")).square().sum().backward()
        optimizer.step()
    torch.cuda.synchronize()


def test_a_file_is_validated_on_the_gpu_after_torch_trained_here(tmp_path: Path) -> None:
    train_a_little()
    assert probe.failure() == ""
    made = scored_models.world(tmp_path)
    path = made.folder.gguf("F16")
    assert llamacpp.gpu_layers(path) == -1
    found = {}
    for exact in (True, False):
        with llamacpp.opened(path, 64, exact=exact) as llm:
            process = remote.process_of(llm)
            assert process["pid"] != os.getpid() and not process["torch"]
            assert (process["gpus"] == "-1") == exact  # none there: all of it on the CPU
            found[exact] = llamacpp.logits(llm, IDS, 0)
    np.testing.assert_allclose(found[False], found[True], rtol=0, atol=0.05)
    with open_vocabulary(path) as vocabulary:
        assert vocabulary.served_ids("water helps")
    run = scored_models.copy(made, tmp_path / "copy", max_kl={"F16": 1e-3, "Q8_0": 0.05})
    figures = validate(run.config, run.folder, run.base, run.manifest()).figures
    print({name: entry["mean_kl"] for name, entry in figures["quantizations"].items()})
    assert figures["quantizations"]["F32"]["mean_kl"] < 1e-8
    assert torch.cuda.is_available() and float(torch.ones(3, device="cuda").sum()) == 3  # torch goes on
