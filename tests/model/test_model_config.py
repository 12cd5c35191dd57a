import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from toolkit.core.errors import ToolkitError
from toolkit.core.train_settings import LORA_TARGETS
from toolkit.model.families import family_of
from toolkit.model.known_models import known_model
from toolkit.model.model_config import ModelConfig, model_config, sizes, stored_parameters

SMALL = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
}
LLAMA_8B = {
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
}


def the_shape(values: dict[str, object]) -> ModelConfig:
    found = sizes(values)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("label", "count"),
    [
        ("unsloth/Meta-Llama-3.1-8B-bnb-4bit", 8_030_261_248),
        ("meta-llama/Llama-3.1-8B-Instruct", 8_030_261_248),
        ("unsloth/Meta-Llama-3.1-70B-bnb-4bit", 70_553_706_496),
        ("unsloth/Meta-Llama-3.1-405B-bnb-4bit", 405_853_388_800),
        ("unsloth/mistral-7b-v0.3", 7_248_023_552),
        ("unsloth/Mistral-Nemo-Base-2407", 12_247_782_400),
        ("unsloth/Phi-3.5-mini-instruct", 3_821_079_552),
        ("microsoft/Phi-3.5-mini-instruct", 3_821_079_552),
        ("microsoft/Phi-3-medium-4k-instruct", 13_960_238_080),
        ("unsloth/gemma-2-9b", 9_241_705_984),
        ("google/gemma-2-27b", 27_227_128_320),
    ],
)
def test_the_recipes_bases_have_their_published_number_of_parameters(label: str, count: int) -> None:
    found = known_model(label)
    assert found is not None
    assert found.parameters() == count


def test_the_recipes_adapter_has_41_943_040_parameters_of_8_072_204_288() -> None:
    shape = the_shape(LLAMA_8B)
    assert known_model("unsloth/Meta-Llama-3.1-8B-bnb-4bit") == replace(shape, norm_epsilon=0.0)
    assert shape.trainable(LORA_TARGETS, 16) == 41_943_040
    assert shape.parameters() + shape.trainable(LORA_TARGETS, 16) == 8_072_204_288


def test_an_unknown_name_has_no_shape() -> None:
    assert known_model("somebody/something-7b") is None


def test_targets_that_no_layer_has_are_named() -> None:
    shape = the_shape(LLAMA_8B)
    assert shape.unknown_targets(["q_proj", "lm_head", "Wqkv"]) == ["Wqkv"]
    fused = known_model("microsoft/Phi-3-medium-4k-instruct")
    assert fused is not None
    assert fused.unknown_targets(["q_proj", "qkv_proj", "down_proj"]) == ["q_proj"]


@pytest.mark.parametrize(
    ("kind", "extra"),
    [
        ("Llama", {}),
        ("Llama", {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}),
        ("Llama", {"head_dim": 32}),
        ("Mistral", {"head_dim": 24}),
        ("Qwen2", {"tie_word_embeddings": True}),
        ("Qwen3", {"head_dim": 32}),
        ("Gemma2", {"head_dim": 32}),
        ("Phi3", {}),
    ],
)
def test_counts_equal_those_of_transformers_and_peft(kind: str, extra: dict[str, object]) -> None:
    import torch
    import transformers
    from peft import LoraConfig, get_peft_model

    settings = getattr(transformers, f"{kind}Config")(**SMALL, **extra)
    with torch.device("meta"):
        model = getattr(transformers, f"{kind}ForCausalLM")(settings)
    shape = the_shape(json.loads(settings.to_json_string(use_diff=False)))
    assert shape.parameters() == sum(parameter.numel() for parameter in model.parameters())
    targets = [name for name in shape.linears() if name != "o_proj"]
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=8, target_modules=targets))
    assert shape.trainable(targets, 8) == sum(p.numel() for p in adapted.parameters() if p.requires_grad)


@pytest.mark.slow
def test_what_gemma_3_leaves_out_of_its_text_config(tmp_path: Path) -> None:
    """As google/gemma-3-4b-it and MedGemma publish it: every other size is transformers' default."""
    import torch
    from transformers import Gemma3Config, Gemma3ForCausalLM

    inner = {
        "hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text", "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024,
    }  # fmt: skip
    shape = the_shape({"architectures": ["Gemma3ForConditionalGeneration"], "text_config": inner})
    with torch.device("meta"):
        model = Gemma3ForCausalLM(Gemma3Config(text_config=dict(inner)).text_config)
    assert shape.parameters() == sum(parameter.numel() for parameter in model.parameters())
    (tmp_path / "config.json").write_text(
        json.dumps({"architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3", "text_config": inner})
    )
    found = family_of(tmp_path)[1]
    assert (found.rope_theta, found.rope["factor"], found.context, found.window) == (1e6, 8.0, 131072, 1024)
    assert "without its vision tower" in f"without {found.ignored}"


@pytest.mark.parametrize("inner", [None, 3, [], "gemma3_text"])
def test_a_model_that_sees_without_a_valid_text_config(inner: object) -> None:
    with pytest.raises(ValueError, match="no valid `text_config`"):
        sizes({"architectures": ["Gemma3ForConditionalGeneration"], "text_config": inner})


@pytest.mark.parametrize(
    "values", [{}, {"model_type": "mamba", "hidden_size": 8}, {"model_type": []}, {**LLAMA_8B, "num_local_experts": 8}]
)
def test_a_model_of_another_kind_has_no_sizes(values: dict[str, object]) -> None:
    assert sizes(values) is None


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_size", None),
        ("hidden_size", math.inf),
        ("num_hidden_layers", "many"),
        ("num_hidden_layers", 1_000_000),
        ("num_attention_heads", 0),
        ("num_key_value_heads", 5),
        ("head_dim", 33),
        ("vocab_size", True),
        ("intermediate_size", 2**31),
        ("max_position_embeddings", -1),
        ("rms_norm_eps", 10**400),
        ("rms_norm_eps", 2),
        ("tie_word_embeddings", "false"),
        ("mlp_bias", 10**4000),
    ],
)
def test_what_cannot_be_is_refused_with_file_and_key(tmp_path: Path, key: str, value: object) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**LLAMA_8B, key: value}))
    with pytest.raises(ToolkitError, match=f"config.json.*`{key}`") as caught:
        model_config(tmp_path)
    assert len(caught.value.message) < 400
    assert caught.value.hint


@pytest.mark.parametrize("text", [None, "{", "[]"])
def test_a_damaged_config_is_refused(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "config.json").write_text(text, encoding="utf-8")
    with pytest.raises(ToolkitError, match=r"config\.json"):
        model_config(tmp_path)


def test_stored_parameters_come_from_the_headers(tmp_path: Path) -> None:
    import numpy as np
    from safetensors.numpy import save_file

    save_file({"a": np.zeros((3, 5), np.float32), "b": np.zeros(7, np.float16)}, tmp_path / "1.safetensors")
    save_file({"c": np.zeros((2, 2, 2), np.float32)}, tmp_path / "2.safetensors")
    assert stored_parameters(tmp_path) == 30


@pytest.mark.parametrize("kept", [4, 40, -3])
def test_a_truncated_safetensors_file_is_found(tmp_path: Path, kept: int) -> None:
    import numpy as np
    from safetensors.numpy import save

    (tmp_path / "model.safetensors").write_bytes(save({"a": np.zeros((3, 5), np.float32)})[:kept])
    with pytest.raises(ToolkitError, match="truncated"):
        stored_parameters(tmp_path)
