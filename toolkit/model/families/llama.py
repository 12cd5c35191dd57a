"""Llama and models of the same shape: Llama 2 to 3.3, Mistral 7B and Nemo, SmolLM2, TinyLlama. Architecture `llama`.

Facts: llama.cpp's conversion/llama.py.
"""

import math
from dataclasses import replace

from toolkit.formats.checkpoint import Floats
from toolkit.formats.gguf_writer import Metadata
from toolkit.model.config_values import Values, count, expect
from toolkit.model.families.family import Family, Layout, described, without_window
from toolkit.model.families.scaling import scaled_rope, scaling_metadata
from toolkit.model.model_config import ModelConfig

LLAMA3 = {"llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")}

WINDOW = 4096  # of a Mistral whose config.json does not state it; null is none


def llama_model(config: Values, model: ModelConfig) -> ModelConfig:
    """Complete the sizes by the rotary embedding; raises ValueError for what llama.cpp computes differently."""
    expect(config, "hidden_act", "silu")
    theta, scaling = scaled_rope(config, more=LLAMA3)
    if scaling.get("type") == "llama3" and scaling["high_freq_factor"] <= scaling["low_freq_factor"]:
        raise ValueError(
            f"`high_freq_factor` {scaling['high_freq_factor']} is not above `low_freq_factor` "
            f"{scaling['low_freq_factor']}"
        )
    return replace(model, rope_theta=theta, rope=scaling)


def mistral(config: Values, model: ModelConfig) -> ModelConfig:
    """Read Mistral's config.json: as Llama's, but a sliding window (7B v0.1), which llama.cpp does not compute."""
    plain = llama_model(config, model)
    if config.get("sliding_window", WINDOW) is None:
        return plain
    window = count(config, "sliding_window", WINDOW)
    return plain if window >= plain.context else replace(plain, ignored=without_window(window))


def llama_layouts(model: ModelConfig, *, interleaved: bool = True) -> list[Layout]:
    """List the tensors in file order; query and key become `interleaved` where llama.cpp turns them in that order."""
    query, key = model.heads * model.head_dim, model.kv_heads * model.head_dim
    matrices = (
        ("self_attn.q_proj", "attn_q", query, model.hidden, model.heads, model.qkv_bias),
        ("self_attn.k_proj", "attn_k", key, model.hidden, model.kv_heads, model.qkv_bias),
        ("self_attn.v_proj", "attn_v", key, model.hidden, 0, model.qkv_bias),
        ("self_attn.o_proj", "attn_output", model.hidden, query, 0, model.output_bias),
        ("mlp.gate_proj", "ffn_gate", model.intermediate, model.hidden, 0, model.mlp_bias),
        ("mlp.up_proj", "ffn_up", model.intermediate, model.hidden, 0, model.mlp_bias),
        ("mlp.down_proj", "ffn_down", model.hidden, model.intermediate, 0, model.mlp_bias),
    )
    norms = (("input_layernorm", "attn_norm"), ("post_attention_layernorm", "ffn_norm"))
    widths = {"": {}, "head": dict.fromkeys("qk", model.head_dim), "width": {"q": query, "k": key}}[model.qk_norm]
    own_norms = [(f"self_attn.{part}_norm", f"attn_{part}_norm", width) for part, width in widths.items()]
    embedding = (model.vocab, model.hidden)
    layouts = [Layout("model.embed_tokens.weight", "token_embd.weight", embedding)]
    for layer in range(model.layers):
        source, name = f"model.layers.{layer}.", f"blk.{layer}."
        layouts += [Layout(f"{source}{a}.weight", f"{name}{b}.weight", (model.hidden,)) for a, b in norms]
        layouts += [Layout(f"{source}{a}.weight", f"{name}{b}.weight", (width,)) for a, b, width in own_norms]
        for a, b, rows, columns, turned, bias in matrices:
            heads = turned if interleaved else 0
            layouts.append(Layout(f"{source}{a}.weight", f"{name}{b}.weight", (rows, columns), heads))
            if bias:
                layouts.append(Layout(f"{source}{a}.bias", f"{name}{b}.bias", (rows,), heads))
    layouts.append(Layout("model.norm.weight", "output_norm.weight", (model.hidden,)))
    if not model.tied:  # llama.cpp takes token_embd where there is no output
        layouts.append(Layout("lm_head.weight", "output.weight", embedding))
    return layouts


def computed(model: ModelConfig) -> dict[str, Floats]:
    """Return rope_freqs.weight, the factors that divide each rotary frequency under Llama-3's scaling.

    Formula: transformers' modeling_rope_utils (`llama3`): wavelengths below old/high stay, above old/low are divided by
    `factor`, those between are interpolated. Computed in torch's float32, whose `pow` numpy does not match to the bit.
    """
    if model.rope.get("type") != "llama3":
        return {}
    import torch

    factor, low, high = (model.rope[key] for key in ("factor", "low_freq_factor", "high_freq_factor"))
    old = model.rope["original_max_position_embeddings"]
    steps = torch.arange(0, model.head_dim, 2, dtype=torch.float32) / model.head_dim
    wavelength = 2 * math.pi / (1.0 / (model.rope_theta**steps))
    smooth = (old / wavelength - low) / (high - low)
    factors = 1 / ((1 - smooth) / factor + smooth)
    factors[wavelength > old / low] = factor
    factors[wavelength < old / high] = 1.0
    values: Floats = factors.numpy()
    return {"rope_freqs.weight": values}


def llama_metadata(model: ModelConfig) -> Metadata:
    """Return the key-value pairs that llama.cpp builds the model from."""
    values = described(
        model,
        "block_count context_length embedding_length feed_forward_length attention.head_count attention.head_count_kv "
        "rope.freq_base attention.layer_norm_rms_epsilon attention.key_length attention.value_length vocab_size "
        "rope.dimension_count",
    )
    return {**values, **scaling_metadata(model)}


LLAMA = Family("llama", llama_model, llama_layouts, computed, llama_metadata)
MISTRAL = Family("llama", mistral, llama_layouts, computed, llama_metadata)
