"""What kind of model an architecture is that cannot be exported, by its config.json."""

from toolkit.model.config_values import Values
from toolkit.model.kinds import attends_only

# Keys by which transformers' configurations count experts, and those of layers with a state (Mamba).
EXPERTS = {
    "num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts", "num_moe_experts",
    "moe_intermediate_size",
}  # fmt: skip
STATES = {"ssm_cfg", "state_size", "ssm_state_size", "mamba_d_state"}
STATE_NAMES = ("mamba", "jamba", "zamba", "bamba", "nemotronh", "rwkv", "recurrentgemma")
# How the classes of transformers end that write no text.
WITHOUT_TEXT = (
    "ForImageClassification",
    "ForMaskedLM",
    "ForSequenceClassification",
    "ForTokenClassification",
    "ForCTC",
)


def kind_of(config: Values, name: str) -> str:
    """Say what kind of model a config.json describes, `name` its class; empty for one of no special kind."""
    inner = config.get("text_config")
    parts = [config, inner] if isinstance(inner, dict) else [config]
    low = name.lower().replace("_", "")
    kinds = []
    mixers = {mixer for part in parts for mixer in (*_texts(part, "layer_types"), *_texts(part, "layers_block_type"))}
    hybrid = ("hybrid" in low or _has(parts, STATES)) and not any(attends_only(part) for part in parts)
    if any(word in low for word in STATE_NAMES) or "mamba" in mixers or hybrid:
        kinds.append("a Mamba model (layers with a state instead of attention)")
    elif "linear_attention" in mixers:
        kinds.append("a model with linear attention (gated delta net)")
    none = any(part.get("num_local_experts") == 0 for part in parts)
    if ("moe" in low and not none) or "mixtral" in low or _has(parts, EXPERTS):
        kinds.append("a mixture of experts")
    senses = [sense for sense in ("vision", "audio") if isinstance(config.get(f"{sense}_config"), dict)]
    if senses or "vision" in low or "vlfor" in low or "vlmoefor" in low:
        kinds.append(f"{'an' if senses[:1] == ['audio'] else 'a'} {' and '.join(senses or ['vision'])} model")
    elif not inner and config.get("vocab_size") is None and (config.get("image_size") or config.get("patch_size")):
        kinds.append("a vision model, which writes no text")
    elif name.endswith(WITHOUT_TEXT) or config.get("is_encoder_decoder") is True:
        kinds.append("an encoder" if name.endswith(WITHOUT_TEXT) else "an encoder with a decoder")
    return " and ".join(kinds)


def has_experts(config: Values) -> bool:
    """Tell whether config.json, or its part for text, counts experts."""
    inner = config.get("text_config")
    return _has([config, inner] if isinstance(inner, dict) else [config], EXPERTS)


def _has(parts: list[Values], keys: set[str]) -> bool:
    return any(part.get(key) for part in parts for key in keys)


def _texts(part: Values, key: str) -> list[str]:
    value = part.get(key)
    return [each for each in value if isinstance(each, str)] if isinstance(value, list) else []
