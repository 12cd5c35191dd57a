"""Gemma-3, its text alone: as Gemma-2, and query and key are normed per head. Architecture `gemma3`.

Every sixth layer sees all tokens, with a rotary base of its own, scaled from 4B up; the others have a window. Scales of
embedding and attention are computed by llama.cpp. Facts: llama.cpp's conversion/gemma.py and src/models/gemma3.cpp.
"""

from dataclasses import replace
from typing import Any

from toolkit.formats.gguf_writer import Metadata
from toolkit.model.config_values import Values, brief, count, expect, real
from toolkit.model.families.family import (
    Family,
    GgufHeader,
    described,
    expect_layer_types,
    nothing_computed,
    rope,
    rope_parameters,
)
from toolkit.model.families.gemma2 import gemma_layouts, gemma_stated
from toolkit.model.families.scaling import scaling_metadata, stated_rope
from toolkit.model.model_config import ModelConfig

LAYERS_27B = 62  # by which llama.cpp knows the model whose attention has a scale of its own
PERIOD = 6
GLOBAL, LOCAL = "full_attention", "sliding_attention"


def gemma3_model(config: Values, model: ModelConfig) -> ModelConfig:
    """Complete the sizes by window and rotary bases; raises ValueError for what llama.cpp computes differently."""
    expect(config, "hidden_activation", "gelu_pytorch_tanh")
    expect(config, "hidden_act", "gelu_pytorch_tanh")
    expect(config, "attention_bias", False)
    expect(config, "use_bidirectional_attention", False)
    if config.get("attn_logit_softcapping") is not None:
        raise ValueError(f"`attn_logit_softcapping` is {brief(config['attn_logit_softcapping'])}, but llama.cpp's "
                         "Gemma-3 has none")  # fmt: skip
    for key in ("sliding_window_pattern", "_sliding_window_pattern"):
        expect(config, key, PERIOD)
    expect_layer_types(config, [LOCAL if (layer + 1) % PERIOD else GLOBAL for layer in range(model.layers)])
    scale = model.hidden // model.heads if model.layers == LAYERS_27B else model.head_dim
    expect({"query_pre_attn_scalar": real(config, "query_pre_attn_scalar", 256)}, "query_pre_attn_scalar", scale)
    whole, local = _bases(config)
    theta, scaling = rope(whole, {"linear": ("factor",)}, 1e6)
    own, none = rope(local, {}, 1e4)
    expect({"rope_local_base_freq": own}, "rope_local_base_freq", 1e4)  # older servers know no other
    cap = config.get("final_logit_softcapping")
    return replace(
        model,
        rope_theta=theta,
        rope={**scaling, **none, "local": own},
        window=count(config, "sliding_window", 4096),
        output_cap=0.0 if cap is None else real(config, "final_logit_softcapping"),
    )


def _bases(config: Values) -> tuple[Values, Values]:
    """Return the rotary embedding of global and of local layers, from either form that config.json has."""
    stated = rope_parameters(config)
    if GLOBAL in stated or LOCAL in stated:
        for key in stated:
            if key not in (GLOBAL, LOCAL) or not isinstance(stated[key] or {}, dict):
                raise ValueError(f"no valid rope parameters: `{key}` is {brief(stated[key])}")
        return {"rope_parameters": stated.get(GLOBAL)}, {"rope_parameters": stated.get(LOCAL)}
    return config, {"rope_theta": config.get("rope_local_base_freq")}


def gemma3_metadata(model: ModelConfig) -> Metadata:
    """Return the key-value pairs that llama.cpp builds the model from."""
    keys = (
        "block_count context_length embedding_length feed_forward_length attention.head_count attention.head_count_kv "
        "rope.freq_base rope.freq_base_swa attention.layer_norm_rms_epsilon attention.key_length "
        "attention.value_length attention.sliding_window"
    )
    cap = " final_logit_softcapping" if model.output_cap else ""
    return {**described(model, keys + cap), **scaling_metadata(model)}


def gemma3_stated(header: GgufHeader) -> dict[str, Any]:
    """Return what config.json says of a GGUF file; older ones do not state the rotary base of local layers."""
    values = header.values
    local = {"rope_type": "default", "rope_theta": values.get("rope.freq_base_swa", 1e4)}
    return {
        **gemma_stated("gemma3_text", header, LAYERS_27B),
        "sliding_window": count(values, "attention.sliding_window"),
        "final_logit_softcapping": values.get("final_logit_softcapping"),
        "rope_parameters": {GLOBAL: stated_rope(values, 1e6), LOCAL: local},
    }


GEMMA3 = Family("gemma3", gemma3_model, gemma_layouts, nothing_computed, gemma3_metadata, stated=gemma3_stated)
