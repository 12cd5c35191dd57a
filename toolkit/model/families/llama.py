"""Llama and models of the same shape: Llama 2 to 3.3, Mistral 7B and Nemo, SmolLM2, TinyLlama. Architecture `llama`.

Facts: llama.cpp's conversion/llama.py.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from toolkit.formats.checkpoint import Floats
from toolkit.formats.gguf_writer import Metadata
from toolkit.model.config_values import Values, count, expect, real
from toolkit.model.families.family import Family, GgufHeader, Layout, described, without_window
from toolkit.model.families.scaling import ORIGINAL, scaled_rope, scaling_metadata
from toolkit.model.kinds import class_of
from toolkit.model.model_config import ModelConfig

LLAMA3 = {"llama3": ("factor", "low_freq_factor", "high_freq_factor", ORIGINAL)}
LOW, HIGH = 1.0, 4.0  # low_freq_factor and high_freq_factor of every published model
ROPE_FREQS = "rope_freqs.weight"
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
    return {ROPE_FREQS: llama3_factors(model.rope_theta, model.head_dim, model.rope)}


def llama3_factors(theta: float, head_dim: int, scaling: Mapping[str, Any]) -> Floats:
    """Return what divides each rotary frequency under Llama-3's scaling, as `computed` says."""
    import torch

    factor, low, high = (scaling[key] for key in ("factor", "low_freq_factor", "high_freq_factor"))
    old = scaling[ORIGINAL]
    steps = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
    wavelength = 2 * math.pi / (1.0 / (theta**steps))
    smooth = (old / wavelength - low) / (high - low)
    factors = 1 / ((1 - smooth) / factor + smooth)
    factors[wavelength > old / low] = factor
    factors[wavelength < old / high] = 1.0
    values: Floats = factors.numpy()
    return values


def llama_metadata(model: ModelConfig) -> Metadata:
    """Return the key-value pairs that llama.cpp builds the model from."""
    values = described(
        model,
        "block_count context_length embedding_length feed_forward_length attention.head_count attention.head_count_kv "
        "rope.freq_base attention.layer_norm_rms_epsilon attention.key_length attention.value_length vocab_size "
        "rope.dimension_count",
    )
    return {**values, **scaling_metadata(model)}


def llama_stated(header: GgufHeader) -> dict[str, Any]:
    """Return what config.json says of a GGUF file, Llama-3's scaling from its factors."""
    return {**class_of("llama"), **llama3_stated(header)}


def llama3_stated(header: GgufHeader) -> dict[str, Any]:
    """Return Llama-3's scaling whose factors a GGUF file holds, {} for a file without; `computed` is its inverse.

    The frequencies tell the original context only up to a multiple that low and high factor share: every published
    model has 1 and 4. Raises ValueError for other factors.
    """
    if ROPE_FREQS not in header.shapes:
        return {}
    values = header.numbers(ROPE_FREQS).astype(np.float64)
    theta = real(header.values, "rope.freq_base", 10000.0)
    wavelength = 2 * math.pi * theta ** (np.arange(values.size) / values.size)
    factor = float(values.max(initial=0))
    if not np.isfinite(values).all() or values.min(initial=1) < 1 or factor <= 1:
        raise ValueError(f"`{ROPE_FREQS}` holds factors that are not those of Llama-3's scaling")
    between = (values > 1) & (values < factor)
    smooth = (1 / values[between] - 1 / factor) / (1 - 1 / factor)
    found = wavelength[between] * (LOW + (HIGH - LOW) * smooth)
    stated = {"rope_type": "llama3", "rope_theta": theta, "factor": round(factor, 3), "low_freq_factor": LOW,
              "high_freq_factor": HIGH, ORIGINAL: round(float(np.median(found))) if found.size else 0}  # fmt: skip
    again = llama3_factors(theta, 2 * values.size, stated) if stated[ORIGINAL] else values * 0
    if not np.allclose(values, again, rtol=1e-5):
        raise ValueError(f"`{ROPE_FREQS}` holds factors that are not those of Llama-3's scaling")
    return {"rope_parameters": stated}


LLAMA = Family("llama", llama_model, llama_layouts, computed, llama_metadata, stated=llama_stated)
MISTRAL = Family("llama", mistral, llama_layouts, computed, llama_metadata)
