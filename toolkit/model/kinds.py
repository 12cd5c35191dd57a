"""The kinds of models whose sizes are known, by config.json's `model_type`: what their classes always do."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Kind:
    """What config.json does not state because the transformers class always does it.

    `inner` are what `text_config` means by its absent keys, for a model that also sees images; else None.
    `biases`: "stated" where `attention_bias` adds them to all four projections, "qkv" where three always have them.
    `head_dim` 0: hidden size over heads. `delta`: some layers have linear attention, the others a gate.
    """

    name: str
    architecture: str
    tied: bool = False
    norms: int = 2
    fused: bool = False
    shared_mlp: bool = False
    biases: str = ""
    mlp_bias: bool = False
    qk_norm: str = ""
    head_dim: int = 0
    norm_epsilon: float = 1e-6
    delta: bool = False
    inner: dict[str, Any] | None = None


# The text_config of Gemma-3 4B leaves out whatever is transformers' default.
GEMMA3_TEXT = {
    "model_type": "gemma3_text", "vocab_size": 262208, "hidden_size": 2304, "intermediate_size": 9216,
    "num_hidden_layers": 26, "num_attention_heads": 8, "num_key_value_heads": 4, "max_position_embeddings": 131072,
    "rope_theta": 1e6, "rope_local_base_freq": 1e4,
}  # fmt: skip
QWEN35_TEXT = {
    "model_type": "qwen3_5_text", "vocab_size": 248320, "hidden_size": 4096, "intermediate_size": 12288,
    "num_hidden_layers": 32, "num_attention_heads": 16, "num_key_value_heads": 4, "max_position_embeddings": 32768,
}  # fmt: skip
KINDS = {
    "llama": Kind("LlamaForCausalLM", "llama", biases="stated", mlp_bias=True),
    "mistral": Kind("MistralForCausalLM", "llama"),
    "qwen2": Kind("Qwen2ForCausalLM", "qwen2", biases="qkv"),
    "qwen3": Kind("Qwen3ForCausalLM", "qwen3", biases="stated", qk_norm="head", head_dim=128),
    "qwen3_5_text": Kind("Qwen3_5ForCausalLM", "qwen35", biases="stated", qk_norm="head", head_dim=256, delta=True),
    "qwen3_5": Kind(
        "Qwen3_5ForConditionalGeneration",
        "qwen35",
        biases="stated",
        qk_norm="head",
        head_dim=256,
        delta=True,
        inner=QWEN35_TEXT,
    ),
    "gemma": Kind("GemmaForCausalLM", "gemma", tied=True, biases="stated", head_dim=256),
    "gemma2": Kind("Gemma2ForCausalLM", "gemma2", tied=True, norms=4, biases="stated", head_dim=256),
    "gemma3_text": Kind(
        "Gemma3ForCausalLM", "gemma3", tied=True, norms=4, biases="stated", qk_norm="head", head_dim=256
    ),
    "gemma3": Kind(
        "Gemma3ForConditionalGeneration",
        "gemma3",
        tied=True,
        norms=4,
        biases="stated",
        qk_norm="head",
        head_dim=256,
        inner=GEMMA3_TEXT,
    ),
    "mistral3": Kind("Mistral3ForConditionalGeneration", "mistral3", inner={"model_type": "mistral"}),
    "ministral3": Kind("Ministral3ForCausalLM", "mistral3", head_dim=128, norm_epsilon=1e-5),
    "smollm3": Kind("SmolLM3ForCausalLM", "smollm3", tied=True, biases="stated", mlp_bias=True),
    "granite": Kind("GraniteForCausalLM", "granite", biases="stated", mlp_bias=True),
    "granitemoehybrid": Kind("GraniteMoeHybridForCausalLM", "granite", biases="stated", shared_mlp=True),
    "olmo2": Kind("Olmo2ForCausalLM", "olmo2", biases="stated", qk_norm="width", norm_epsilon=1e-5),
    "olmo3": Kind("Olmo3ForCausalLM", "olmo2", biases="stated", qk_norm="width", norm_epsilon=1e-5),
    "phi3": Kind("Phi3ForCausalLM", "phi3", fused=True, norm_epsilon=1e-5),
}


def class_of(family: str) -> dict[str, Any]:
    """Return how config.json names a class of transformers, by its `model_type`."""
    return {"architectures": [KINDS[family].name], "model_type": family}
