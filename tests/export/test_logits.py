"""The merged F32 file computes what transformers computes with base and adapter: the structural proof."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFReader

from tests.support import models
from toolkit.export import export

LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
PATTERNS = {
    "rank_pattern": {"q_proj": 4, r"layers\.1\.mlp\.down_proj": 16},
    "alpha_pattern": {"k_proj": 5, "layers.0.self_attn.v_proj": 3},
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.save_model(tmp_path_factory.mktemp("base"), dtype=torch.bfloat16, rope_parameters=LLAMA3)


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({}, marks=pytest.mark.slow),
        pytest.param({"use_rslora": True}, marks=pytest.mark.slow),
        pytest.param(PATTERNS, marks=pytest.mark.slow),
        {"use_rslora": True, **PATTERNS},
        pytest.param({"target_modules": ["lm_head", "q_proj"]}, marks=pytest.mark.slow),
    ],
    ids=["plain", "rslora", "patterns", "rslora and patterns", "lm_head"],
)
def test_an_adapter_is_merged(base: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    adapter = models.save_adapter(tmp_path / "adapter", base, **settings)
    target = tmp_path / "f32.gguf"
    export(base, adapter, {"F32": target}, models.TEMPLATE, "small")
    assert models.kl(base, adapter, target) <= 1e-9
    assert models.kl(base, None, target) > 1e-4  # the adapter does make a difference


@pytest.mark.slow
def test_fan_in_fan_out_plays_no_part_for_linear_layers(base: Path, tmp_path: Path) -> None:
    adapter = models.save_adapter(tmp_path / "adapter", base)
    config = adapter / "adapter_config.json"
    text = config.read_text()
    assert '"fan_in_fan_out": false' in text
    config.write_text(text.replace('"fan_in_fan_out": false', '"fan_in_fan_out": true'))
    target = tmp_path / "f32.gguf"
    export(base, adapter, {"F32": target}, models.TEMPLATE, "small")
    with pytest.warns(UserWarning, match="fan_in_fan_out"):
        assert models.kl(base, adapter, target) <= 1e-9


@pytest.mark.parametrize(
    "settings",
    [
        {"tie_word_embeddings": True},
        pytest.param({"attention_bias": True, "mlp_bias": True}, marks=pytest.mark.slow),
        pytest.param(
            {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}}, marks=pytest.mark.slow
        ),
        {"hidden_size": 192, "num_attention_heads": 6, "head_dim": 64, "dtype": torch.float16},
    ],
    ids=["tied", "biases", "linear rope", "heads wider than hidden, float16"],
)
def test_every_shape_of_the_family(tmp_path: Path, settings: dict[str, Any]) -> None:
    base = models.save_model(tmp_path / "base", **settings)
    target = tmp_path / "f32.gguf"
    export(base, None, {"F32": target}, models.TEMPLATE, "small")
    assert models.kl(base, None, target) <= 1e-9


def test_rotary_factors_are_those_of_transformers(base: Path, tmp_path: Path) -> None:
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    target = tmp_path / "f32.gguf"
    export(base, None, {"F32": target}, models.TEMPLATE, "small")
    [factors] = [tensor for tensor in GGUFReader(target).tensors if tensor.name == "rope_freqs.weight"]
    config = LlamaConfig.from_pretrained(base)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    plain = 1 / 10000.0 ** (np.arange(0, 32, 2, dtype=np.float32) / 32)
    assert factors.data.shape == (16,)
    assert np.unique(factors.data).size > 2  # kept, interpolated and divided frequencies all occur
    np.testing.assert_allclose(plain / factors.data, scaled.numpy(), rtol=1e-6)
