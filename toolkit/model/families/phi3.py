"""Phi-3 and Phi-3.5 mini and medium: fused query-key-value and gate-up matrices, longrope. Architecture `phi3`.

The fused matrices stay fused in GGUF, rows in the checkpoint's order. Facts: llama.cpp's conversion/phi.py and
src/models/phi3.cpp.
"""

import math
from typing import Any

import numpy as np

from toolkit.formats.checkpoint import Floats
from toolkit.formats.gguf_writer import Metadata
from toolkit.model.families.family import (
    COUNT,
    REAL,
    Layout,
    ModelConfig,
    count,
    described,
    expect,
    rope,
    shape,
    without_window,
)


def phi3_model(config: dict[str, Any]) -> ModelConfig:
    """Read config.json; raises KeyError or ValueError for what is absent or cannot be."""
    expect(config, "hidden_act", "silu")
    stated = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(stated, dict):
        raise ValueError(f"no valid rope parameters: {stated!r}")
    for place in (config, stated):
        expect(place, "partial_rotary_factor", 1.0)
    fields = shape("phi3", config, norm_epsilon=1e-5)
    if fields["heads"] * fields["head_size"] != fields["hidden"]:
        raise ValueError(f"heads of {fields['head_size']}, llama.cpp computes with hidden_size / heads only")
    original = count(stated, "original_max_position_embeddings", config.get("original_max_position_embeddings", 4096))
    theta, scaling = rope(config, {"longrope": ()})
    scaling["original"] = original
    if scaling.get("type"):
        scaling.update(
            {key: _factors(stated, key, fields["head_size"] // 2) for key in ("long_factor", "short_factor")}
        )
        scaling["attention"] = attention_factor(fields["context"], original)
        given = stated.get("attention_factor")
        if given is not None and not math.isclose(given, scaling["attention"], rel_tol=1e-6):
            raise ValueError(f"`attention_factor` {given!r}, for this context it is {scaling['attention']:.6f}")
    window = config.get("sliding_window")
    if not isinstance(window, int):
        return ModelConfig(**fields, rope_theta=theta, rope=scaling)
    ignored = without_window(window) if window < fields["context"] else ""
    return ModelConfig(**fields, rope_theta=theta, rope=scaling, window=window, ignored=ignored)


def attention_factor(context: int, original: int) -> float:
    """Return longrope's factor of the rotary embedding (arXiv 2402.13753): sqrt(1 + ln(scale) / ln(original))."""
    scale = context / original
    return math.sqrt(1 + math.log(scale) / math.log(original)) if scale > 1 else 1.0


def _factors(stated: dict[str, Any], key: str, length: int) -> list[float]:
    values = stated.get(key)
    if not isinstance(values, list) or not all(type(value) in (int, float) and value > 0 for value in values):
        raise ValueError(f"no valid `{key}`: {values!r}")
    if len(values) != length:
        raise ValueError(f"{len(values)} values of `{key}`, not {length}")
    return values


def phi3_layouts(model: ModelConfig) -> list[Layout]:
    """List the tensors in file order."""
    rows = (model.heads + 2 * model.kv_heads) * model.head_size
    matrices = (
        ("self_attn.qkv_proj", "attn_qkv", (rows, model.hidden)),
        ("self_attn.o_proj", "attn_output", (model.hidden, model.hidden)),
        ("mlp.gate_up_proj", "ffn_up", (2 * model.feed_forward, model.hidden)),
        ("mlp.down_proj", "ffn_down", (model.hidden, model.feed_forward)),
        ("input_layernorm", "attn_norm", (model.hidden,)),
        ("post_attention_layernorm", "ffn_norm", (model.hidden,)),
    )
    embedding = (model.vocabulary, model.hidden)
    layouts = [Layout("model.embed_tokens.weight", "token_embd.weight", embedding)]
    for layer in range(model.layers):
        layouts += [
            Layout(f"model.layers.{layer}.{source}.weight", f"blk.{layer}.{name}.weight", shape)
            for source, name, shape in matrices
        ]
    layouts.append(Layout("model.norm.weight", "output_norm.weight", (model.hidden,)))
    if not model.tied:
        layouts.append(Layout("lm_head.weight", "output.weight", embedding))
    return layouts


def computed(model: ModelConfig) -> dict[str, Floats]:
    """Return the factors that divide each rotary frequency: one set beyond the original context, one within it."""
    if "type" not in model.rope:
        return {}
    return {
        "rope_factors_long.weight": np.array(model.rope["long_factor"], np.float32),
        "rope_factors_short.weight": np.array(model.rope["short_factor"], np.float32),
    }


def phi3_metadata(model: ModelConfig) -> Metadata:
    """Return the key-value pairs that llama.cpp builds the model from."""
    values = described(
        model,
        "context_length embedding_length feed_forward_length block_count attention.head_count attention.head_count_kv "
        "attention.layer_norm_rms_epsilon rope.dimension_count rope.freq_base attention.sliding_window",
    )
    values["phi3.rope.scaling.original_context_length"] = (model.rope["original"], COUNT)
    if "type" in model.rope:
        values["phi3.rope.scaling.attn_factor"] = (model.rope["attention"], REAL)
    return values
