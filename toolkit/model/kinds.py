"""What the class of each config.json `model_type` always does, which is needed to read a model's sizes."""

from dataclasses import dataclass
from typing import Any

from toolkit.model.config_values import Values, brief, flag


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


def text_values(values: Values) -> Values:
    """Return what config.json says of the text: a model that also sees images says it in `text_config`.

    Raises ValueError if it does not.
    """
    kind = model_kind(values)
    if kind is None or kind.inner is None:
        return values
    inner = values.get("text_config")
    if not isinstance(inner, dict):
        raise ValueError(f"no valid `text_config`: {brief(inner)}")
    if "rope_parameters" in inner:
        kept = {key: value for key, value in kind.inner.items() if not key.startswith("rope_")}
    else:
        kept = kind.inner
    tied = {"tie_word_embeddings": True} if flag(values, "tie_word_embeddings") else {}
    return {**kept, **inner, **tied}


def text_alone(values: Values) -> dict[str, Any]:
    """Return the config.json of a model's language model alone; that of a model that reads text only is as it was."""
    kind = model_kind(values)
    if kind is None or kind.inner is None:
        return dict(values)
    ids = {key: values[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id") if key in values}
    found = {**ids, **text_values(values)}
    return {**found, "architectures": [KINDS[str(found["model_type"])].name]}


def model_kind(values: Values) -> Kind | None:
    """Find the kind by the class in `architectures`, which the exporter uses, else by `model_type`."""
    if values.get("num_local_experts"):
        return None
    name, family = architecture(values), values.get("model_type")
    named = (kind for kind in KINDS.values() if kind.name == name)
    kind = next(named, KINDS.get(family) if isinstance(family, str) else None)
    if kind is not None and kind.shared_mlp and not (values.get("num_local_experts") == 0 and attends_only(values)):
        return None  # transformers' defaults are experts, and layers with a state
    return kind


def attends_only(values: Values) -> bool:
    """Tell whether config.json lists the kinds of its layers, and all are attention to every token."""
    kinds = values.get("layer_types")
    return isinstance(kinds, list) and bool(kinds) and all(kind in ("attention", "full_attention") for kind in kinds)


def architecture(values: Values) -> str | None:
    """Return the class of transformers that config.json names first; None if it names none."""
    names = values.get("architectures")
    return names[0] if isinstance(names, list) and names and isinstance(names[0], str) else None


def check_model_type(values: Values) -> None:
    """Raise ValueError where `model_type`, by which transformers loads, names another family than `architectures`."""
    name, stated = architecture(values), values.get("model_type")
    expected = next((key for key, kind in KINDS.items() if kind.name == name), stated)
    if stated is not None and stated != expected:
        raise ValueError(f"`model_type` {brief(stated)} contradicts `architectures`, which names {brief(name)}")
