"""Qwen2.5 and Qwen3, the dense ones. Architectures `qwen2`, `qwen3`.

As Llama, but heads stay in rotate-half order. Qwen2.5 has biases on query, key and value; Qwen3 norms each head of
query and key. Facts: llama.cpp's conversion/qwen.py, src/models/qwen2.cpp and qwen3.cpp.
"""

from dataclasses import replace
from typing import Any

from toolkit.formats.gguf_writer import Metadata
from toolkit.model.config_values import Values, brief, count, expect, flag
from toolkit.model.families.family import Family, GgufHeader, Layout, described, nothing_computed, without_window
from toolkit.model.families.llama import llama_layouts
from toolkit.model.families.scaling import scaled_rope, scaling_metadata
from toolkit.model.kinds import class_of
from toolkit.model.model_config import ModelConfig

DESCRIBED = (
    "block_count context_length embedding_length feed_forward_length attention.head_count attention.head_count_kv "
    "rope.freq_base attention.layer_norm_rms_epsilon"
)


def qwen2_model(config: Values, model: ModelConfig) -> ModelConfig:
    """Complete Qwen2.5's sizes; raises ValueError for what llama.cpp computes differently."""
    if model.heads * model.head_dim != model.hidden:
        raise ValueError(f"the head size is {model.head_dim}, but llama.cpp supports only hidden_size / heads")
    return _qwen(config, model)


def qwen3_model(config: Values, model: ModelConfig) -> ModelConfig:
    """Complete Qwen3's sizes; raises ValueError for what llama.cpp computes differently."""
    expect(config, "attention_bias", False)
    return _qwen(config, model)


def _qwen(config: Values, model: ModelConfig) -> ModelConfig:
    expect(config, "hidden_act", "silu")
    theta, scaling = scaled_rope(config)
    return replace(model, rope_theta=theta, rope=scaling, ignored=_ignored(config, model))


def _ignored(config: Values, model: ModelConfig) -> str:
    """Say if some layers have a sliding window that is shorter than the context: llama.cpp has none here."""
    kinds = config.get("layer_types")
    known = ("full_attention", "sliding_attention")
    if kinds is not None and (not isinstance(kinds, list) or any(kind not in known for kind in kinds)):
        raise ValueError(f"`layer_types` is {brief(kinds)}, but only {' and '.join(known)} are supported")
    if not flag(config, "use_sliding_window") or config.get("sliding_window", 4096) is None:
        return ""
    window, first = count(config, "sliding_window", 4096), config.get("max_window_layers", 28)
    if type(first) is not int:
        raise ValueError(f"no valid `max_window_layers`: {brief(first)}")
    slides = first < model.layers if kinds is None else "sliding_attention" in kinds
    return without_window(window) if slides and window < model.context else ""


def qwen_layouts(model: ModelConfig) -> list[Layout]:
    """List the tensors in file order."""
    return llama_layouts(model, interleaved=False)


def qwen2_metadata(model: ModelConfig) -> Metadata:
    """Return the key-value pairs that llama.cpp builds Qwen2.5 from."""
    return {**described(model, DESCRIBED), **scaling_metadata(model)}


def qwen3_metadata(model: ModelConfig) -> Metadata:
    """Return the key-value pairs that llama.cpp builds Qwen3 from: its heads have a size of their own."""
    return {**qwen2_metadata(model), **described(model, "attention.key_length attention.value_length")}


def qwen_stated(header: GgufHeader) -> dict[str, Any]:
    """Return what config.json says of a GGUF file: Qwen2.5 has biases."""
    return class_of("qwen2" if "blk.0.attn_q.bias" in header.shapes else "qwen3")


QWEN2 = Family("qwen2", qwen2_model, qwen_layouts, nothing_computed, qwen2_metadata, stated=qwen_stated)
QWEN3 = Family("qwen3", qwen3_model, qwen_layouts, nothing_computed, qwen3_metadata, stated=qwen_stated)
