"""Models that keep a state from token to token are known by config.json alone."""

from typing import Any

import pytest

from tests.support import families
from toolkit.model.states import keeps_state, reason_to_pad

LISTED = ["linear_attention", "linear_attention", "linear_attention", "full_attention"]
KEEPING: dict[str, dict[str, Any]] = {
    "Qwen3.5": {"model_type": "qwen3_5_text", "layer_types": LISTED},
    "Qwen3.5 without a list": {"model_type": "qwen3_5_text", "full_attention_interval": 4},
    "Qwen3.5 that sees": {"model_type": "qwen3_5", "text_config": {"layer_types": LISTED}},
    "Qwen3.5 that sees, without a list": {"architectures": ["Qwen3_5ForConditionalGeneration"], "text_config": {}},
    "Qwen3-Next": {"architectures": ["Qwen3NextForCausalLM"], "model_type": "qwen3_next"},
    "Mamba": {"architectures": ["MambaForCausalLM"], "model_type": "mamba", "state_size": 16},
    "Falcon-H1": {"model_type": "falcon_h1", "mamba_d_state": 256},
    "LFM2": {"model_type": "lfm2", "layer_types": ["conv", "conv", "full_attention"]},
    "Granite 4.0 h": {"model_type": "granitemoehybrid", "layer_types": ["mamba", "attention"]},
    "Nemotron-H": {"model_type": "nemotron_h", "layers_block_type": ["mamba", "mlp", "attention"]},
    "RWKV": {"model_type": "rwkv"},
}
ATTENDING: dict[str, dict[str, Any]] = {
    "Llama": {"architectures": ["LlamaForCausalLM"], "model_type": "llama"},
    "Granite 4.0 micro": {"model_type": "granitemoehybrid", "layer_types": ["attention"] * 2, "mamba_d_state": 256},
    "Gemma-3": {"model_type": "gemma3", "text_config": {"layer_types": ["sliding_attention", "full_attention"]}},
    "Qwen3": {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "layer_types": ["full_attention"]},
    "Qwen3 MoE": {"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe"},
}


@pytest.mark.parametrize("name", KEEPING)
def test_a_model_with_a_state(name: str) -> None:
    assert keeps_state(KEEPING[name])


@pytest.mark.parametrize("name", ATTENDING)
def test_a_model_without(name: str) -> None:
    assert not keeps_state(ATTENDING[name])


@pytest.mark.parametrize("name", [*families.FAMILIES, *families.VARIANTS])
def test_of_the_families_that_can_be_exported_only_one_has(name: str) -> None:
    assert keeps_state(families.config_of(name)) == name.startswith("qwen3.5")


@pytest.mark.parametrize("name", [*families.FAMILIES, *families.VARIANTS])
def test_what_is_padded_says_why(name: str) -> None:
    reason = reason_to_pad(families.config_of(name))
    assert bool(reason) == name.startswith(("qwen3.5", "granite4"))
    assert ("keeps a state" in reason) == name.startswith("qwen3.5")


@pytest.mark.parametrize("kind", ["falcon", "gpt_oss", "opt"])
def test_what_transformers_lets_see_other_records_is_padded(kind: str) -> None:
    assert "see each other" in reason_to_pad({"model_type": kind})
    assert "see each other" in reason_to_pad({"model_type": "sees", "text_config": {"model_type": kind}})
