"""An adapter_config.json in which anything stands: the adapter is merged, or refused in one short line."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from tests.support.bases import save_base
from toolkit.core.errors import ToolkitError
from toolkit.export import plan

CONFIG: dict[str, Any] = {
    "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"],
    "bias": "none", "use_rslora": False, "use_dora": False, "rank_pattern": {}, "alpha_pattern": {},
    "modules_to_save": None,
    "init_lora_weights": True, "fan_in_fan_out": False, "layers_to_transform": None, "lora_bias": False,
    "trainable_token_indices": None, "base_model_name_or_path": "somebody/model",
}  # fmt: skip
VALUES = [
    0, -1, 1, 4, 2**31, 10**9, 10**400, 1e300, float("inf"), float("nan"), "", "x", "pissa", [], [1], ["x"] * 3000, {},
    {"q_proj": 10**9}, {"q_proj": -1}, {"(": 4}, {"x": "y"}, [[]], None, True, False,
]  # fmt: skip


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapter")
    save_base(folder / "base", "llama")
    (folder / "adapter").mkdir()
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora"
    tensors = {f"{name}_A.weight": np.ones((4, 64), np.float32), f"{name}_B.weight": np.ones((64, 4), np.float32)}
    save_file(tensors, folder / "adapter" / "adapter_model.safetensors")
    return folder


def planned(work: Path, config: dict[str, Any]) -> int:
    (work / "adapter" / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    return sum(tensor.change is not None for tensor in plan(work / "base", work / "adapter", ["Q4_K_M"]).tensors)


def test_the_adapter_is_one(work: Path) -> None:
    assert planned(work, CONFIG) == 1


@given(key=st.sampled_from(sorted(CONFIG)), value=st.one_of(st.sampled_from(VALUES), st.integers(), st.floats()))
def test_an_adapter_is_merged_or_refused(work: Path, key: str, value: Any) -> None:
    try:
        assert planned(work, {**CONFIG, key: value}) == 1
    except ToolkitError as exc:
        assert len(exc.message) < 500 and "\n" not in exc.message
        assert str(work / "adapter") in exc.message or "another base" in exc.message
