"""OLMo-2 and OLMo-3: norms behind attention and feed-forward, query and key normed over their whole width.

Architecture `olmo2` for both. Heads stay in rotate-half order. OLMo-3 has a window in three of four layers, and scales
the rotary embedding of the others alone. Facts: llama.cpp's conversion/olmo.py and src/models/olmo2.cpp.
"""

from dataclasses import replace
from typing import Any

from gguf import GGUFValueType

from toolkit.core.errors import ToolkitError
from toolkit.formats.gguf_writer import Metadata
from toolkit.model.config_values import Values, brief, count, expect
from toolkit.model.families.family import Family, GgufHeader, Layout, described, nothing_computed, rope, rope_parameters
from toolkit.model.families.llama import llama_layouts
from toolkit.model.families.scaling import scaled_rope, scaling_metadata, stated_rope
from toolkit.model.kinds import class_of
from toolkit.model.model_config import ModelConfig

GLOBAL, LOCAL = "full_attention", "sliding_attention"
# As Llama's, but behind what they norm: name in the checkpoint, and in GGUF.
NORMS = {
    "input_layernorm": ("post_attention_layernorm", "post_attention_norm"),
    "post_attention_layernorm": ("post_feedforward_layernorm", "post_ffw_norm"),
}


def olmo2_model(config: Values, model: ModelConfig) -> ModelConfig:
    """Complete OLMo-2's sizes; raises ValueError for what llama.cpp computes differently."""
    _check(config, model)
    theta, scaling = scaled_rope(config)
    return replace(model, rope_theta=theta, rope=scaling)


def olmo3_model(config: Values, model: ModelConfig) -> ModelConfig:
    """Complete OLMo-3's sizes by window and pattern; raises ValueError for what llama.cpp computes differently."""
    _check(config, model)
    stated = rope_parameters(config)
    whole, local = config, {"rope_theta": config.get("rope_theta")}
    if GLOBAL in stated or LOCAL in stated:
        whole, local = {"rope_parameters": stated.get(GLOBAL)}, {"rope_parameters": stated.get(LOCAL)}
    theta, scaling = scaled_rope({"original_max_position_embeddings": None, **whole}, 5e5)
    own, _ = rope(local, {}, 5e5)
    expect({"rope_theta of the layers with a window": own}, "rope_theta of the layers with a window", theta)
    kinds = config.get("layer_types") or [LOCAL if (n + 1) % 4 else GLOBAL for n in range(model.layers)]
    if not isinstance(kinds, list) or len(kinds) != model.layers or any(kind not in (GLOBAL, LOCAL) for kind in kinds):
        raise ValueError(f"`layer_types` is {brief(kinds)}, but {model.layers:,} of {GLOBAL} and {LOCAL} are needed")
    pattern = [kind == LOCAL for kind in kinds]
    window = count(config, "sliding_window", 4096)
    return replace(model, rope_theta=theta, rope={**scaling, "local": own, "pattern": pattern}, window=window)


def _check(config: Values, model: ModelConfig) -> None:
    expect(config, "hidden_act", "silu")
    expect(config, "attention_bias", False)
    expect(config, "clip_qkv", 0)
    if model.tied:
        raise ValueError("`tie_word_embeddings` is True, but llama.cpp's OLMo has a separate output")
    if model.heads * model.head_dim != model.hidden:
        raise ValueError(f"the head size is {model.head_dim}, but llama.cpp supports only hidden_size / heads")


def olmo_layouts(model: ModelConfig) -> list[Layout]:
    """List the tensors in file order; raises ToolkitError for a tied head."""
    if model.tied:
        raise ToolkitError("the head is the embedding, but llama.cpp's OLMo has a separate one")
    layouts = []
    for layout in llama_layouts(model, interleaved=False):
        start, _, part = layout.source.removesuffix(".weight").rpartition(".")
        if start.startswith("model.layers.") and part in NORMS:
            source, name = NORMS[part]
            place = f"{layout.name.rsplit('.', 2)[0]}.{name}.weight"
            layout = replace(layout, source=f"{start}.{source}.weight", name=place)
        layouts.append(layout)
    return layouts


def olmo_metadata(model: ModelConfig) -> Metadata:
    """Return the key-value pairs that llama.cpp builds the model from."""
    keys = (
        "block_count context_length embedding_length feed_forward_length attention.head_count attention.head_count_kv "
        "rope.freq_base attention.layer_norm_rms_epsilon"
    )
    values = {**described(model, keys), **scaling_metadata(model)}
    if model.window:
        values.update(described(model, "attention.sliding_window rope.freq_base_swa"))
        values["olmo2.attention.sliding_window_pattern"] = (model.rope["pattern"], GGUFValueType.ARRAY)
    return values


def olmo_stated(header: GgufHeader) -> dict[str, Any]:
    """Return what config.json says of a GGUF file: OLMo-3 has a window."""
    values = header.values
    if not values.get("attention.sliding_window"):
        return class_of("olmo2")
    whole = stated_rope(values, 5e5)
    pattern = values.get("attention.sliding_window_pattern")
    if pattern is not None and not isinstance(pattern, list):
        raise ValueError(f"no valid `olmo2.attention.sliding_window_pattern`: {brief(pattern)}, a list is needed")
    found = {} if pattern is None else {"layer_types": [LOCAL if local else GLOBAL for local in pattern]}
    local = {"rope_type": "default", "rope_theta": values.get("rope.freq_base_swa", whole["rope_theta"])}
    return {
        **class_of("olmo3"),
        **found,
        "sliding_window": count(values, "attention.sliding_window"),
        "rope_parameters": {GLOBAL: whole, LOCAL: local},
    }


OLMO2 = Family("olmo2", olmo2_model, olmo_layouts, nothing_computed, olmo_metadata, stated=olmo_stated)
OLMO3 = Family("olmo2", olmo3_model, olmo_layouts, nothing_computed, olmo_metadata)
