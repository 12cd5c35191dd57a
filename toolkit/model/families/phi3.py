"""Phi-3, Phi-3.5 and Phi-4-mini: fused query-key-value and gate-up matrices, longrope. Architecture `phi3`.

The fused matrices stay fused in GGUF, rows in the checkpoint's order. Facts: llama.cpp's conversion/phi.py and
src/models/phi3.cpp.
"""

import math
from dataclasses import replace
from typing import Any

import numpy as np

from toolkit.formats.checkpoint import Floats
from toolkit.formats.gguf_writer import Metadata
from toolkit.model.config_values import Values, brief, count, expect, real
from toolkit.model.families.family import (
    COUNT,
    REAL,
    Family,
    GgufHeader,
    Layout,
    described,
    rope,
    rope_parameters,
    without_window,
)
from toolkit.model.families.scaling import ORIGINAL, stated_rope
from toolkit.model.kinds import class_of
from toolkit.model.model_config import ModelConfig


def phi3_model(config: Values, model: ModelConfig) -> ModelConfig:
    """Complete the sizes by rotary embedding and window; raises ValueError for what llama.cpp computes differently."""
    expect(config, "hidden_act", "silu")
    stated = rope_parameters(config)
    if model.heads * model.head_dim != model.hidden:
        raise ValueError(f"the head size is {model.head_dim}, but llama.cpp supports only hidden_size / heads")
    part = real(config, "partial_rotary_factor", 1.0)
    original = count(stated, ORIGINAL, count(config, ORIGINAL, 4096))
    theta, scaling = rope(config, {"longrope": ()})
    scaling["original"] = original
    scaling["dimensions"] = rotary_dimensions(real(stated, "partial_rotary_factor", part), model.head_dim)
    if scaling.get("type"):
        for factors in ("long_factor", "short_factor"):
            scaling[factors] = _factors(stated, factors, scaling["dimensions"] // 2)
        scaling["attention"] = attention_factor(model.context, original)
        given = real(stated, "attention_factor", scaling["attention"])
        if not math.isclose(given, scaling["attention"], rel_tol=1e-6):
            raise ValueError(
                f"`attention_factor` is {given!r}, but for this context it must be {scaling['attention']:.6f}"
            )
    if config.get("sliding_window") is None:
        return replace(model, rope_theta=theta, rope=scaling)
    window = count(config, "sliding_window")
    ignored = without_window(window) if window < model.context else ""
    return replace(model, rope_theta=theta, rope=scaling, window=window, ignored=ignored)


def attention_factor(context: int, original: int) -> float:
    """Return longrope's factor of the rotary embedding (arXiv 2402.13753): sqrt(1 + ln(scale) / ln(original)).

    Raises ValueError for an original context of one token, whose logarithm is zero.
    """
    if original < 2:
        raise ValueError(f"no valid `original_max_position_embeddings`: {original}, longrope needs 2 or more")
    scale = context / original
    return math.sqrt(1 + math.log(scale) / math.log(original)) if scale > 1 else 1.0


def rotary_dimensions(part: float, head_size: int) -> int:
    """Return how many dimensions of each head the rotary embedding turns: all, or the first ones (Phi-4-mini).

    Raises ValueError for a part that is not an even number of dimensions.
    """
    dimensions = int(head_size * part)
    if part > 1 or dimensions < 2 or dimensions % 2:
        raise ValueError(f"`partial_rotary_factor` is {part!r}, which is not an even number of {head_size} dimensions")
    return dimensions


def _factors(stated: dict[str, Any], key: str, length: int) -> list[float]:
    values = stated.get(key)
    if not isinstance(values, list):
        raise ValueError(f"no valid `{key}`: {brief(values)}, a list of numbers is needed")
    if len(values) != length:
        raise ValueError(f"`{key}` has {len(values)} values, not {length}")
    return [real({key: value}, key) for value in values]


def phi3_layouts(model: ModelConfig) -> list[Layout]:
    """List the tensors in file order."""
    rows = (model.heads + 2 * model.kv_heads) * model.head_dim
    matrices = (
        ("self_attn.qkv_proj", "attn_qkv", (rows, model.hidden)),
        ("self_attn.o_proj", "attn_output", (model.hidden, model.hidden)),
        ("mlp.gate_up_proj", "ffn_up", (2 * model.intermediate, model.hidden)),
        ("mlp.down_proj", "ffn_down", (model.hidden, model.intermediate)),
        ("input_layernorm", "attn_norm", (model.hidden,)),
        ("post_attention_layernorm", "ffn_norm", (model.hidden,)),
    )
    embedding = (model.vocab, model.hidden)
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
    values["phi3.rope.dimension_count"] = (model.rope["dimensions"], COUNT)
    values["phi3.rope.scaling.original_context_length"] = (model.rope["original"], COUNT)
    if "type" in model.rope:
        values["phi3.rope.scaling.attn_factor"] = (model.rope["attention"], REAL)
    return values


def phi3_stated(header: GgufHeader) -> dict[str, Any]:
    """Return what config.json says of a GGUF file, longrope's factors from its tensors; raises ValueError."""
    values, hidden = header.values, header.shapes["token_embd.weight"][1]
    size, context = max(1, hidden // count(values, "attention.head_count")), count(values, "context_length")
    original = count(values, "rope.scaling.original_context_length", 4096)
    part = count(values, "rope.dimension_count", size) / size
    stated: dict[str, Any] = {**stated_rope(values, 1e4), "rope_type": "default", "partial_rotary_factor": part}
    if "rope_factors_long.weight" in header.shapes:
        factor = attention_factor(context, original)
        given = real(values, "rope.scaling.attn_factor", factor)
        if not math.isclose(given, factor, rel_tol=1e-6):
            raise ValueError(f"`phi3.rope.scaling.attn_factor` is {given!r}, but for this context {factor:.6f}")
        stated |= {"rope_type": "longrope", ORIGINAL: original}
        for key in ("long", "short"):
            stated[f"{key}_factor"] = [float(str(x)) for x in header.numbers(f"rope_factors_{key}.weight")]
    return {
        **class_of("phi3"),
        ORIGINAL: original,
        "partial_rotary_factor": part,
        "sliding_window": values.get("attention.sliding_window") or None,
        "rope_parameters": stated,
    }


PHI3 = Family("phi3", phi3_model, phi3_layouts, computed, phi3_metadata, special_by_flag=True, stated=phi3_stated)
