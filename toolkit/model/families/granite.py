"""Granite 3.x, the dense ones, and Granite 4.0 micro: as Llama, with four scales. Architecture `granite`.

Gate and up of 4.0 are one matrix in the checkpoint, two in GGUF. Its models with Mamba layers or experts are refused.

Facts: llama.cpp's conversion/granite.py and src/models/granite.cpp.
"""

from dataclasses import replace
from typing import Any

from gguf import GGUFValueType

from toolkit.formats.gguf_writer import Metadata
from toolkit.model.config_values import Values, brief, real
from toolkit.model.families.family import COUNT, REAL, Family, GgufHeader, Layout, described, expect_layer_types
from toolkit.model.families.llama import computed, llama3_stated, llama_layouts, llama_model
from toolkit.model.families.scaling import scaling_metadata
from toolkit.model.kinds import class_of
from toolkit.model.model_config import ModelConfig

# In config.json, and in GGUF; a config.json that lacks one means 1.
SCALES = {
    "attention_multiplier": "attention.scale",
    "embedding_multiplier": "embedding_scale",
    "residual_multiplier": "residual_scale",
    "logits_scaling": "logit_scale",
}


def granite_model(config: Values, model: ModelConfig) -> ModelConfig:
    """Complete the sizes by the scales; raises ValueError for what llama.cpp computes differently."""
    if model.heads * model.head_dim != model.hidden:
        raise ValueError(f"the head size is {model.head_dim}, but llama.cpp supports only hidden_size / heads")
    return replace(llama_model(config, model), scales={name: real(config, key, 1.0) for key, name in SCALES.items()})


def granite_metadata(model: ModelConfig) -> Metadata:
    """Return the key-value pairs that llama.cpp builds the model from."""
    values = described(
        model,
        "block_count context_length embedding_length feed_forward_length attention.head_count attention.head_count_kv "
        "rope.freq_base attention.layer_norm_rms_epsilon vocab_size rope.dimension_count",
    )
    scales: Metadata = {f"granite.{name}": (value, REAL) for name, value in model.scales.items()}
    return {**values, **scaling_metadata(model), **scales}


def granite4_model(config: Values, model: ModelConfig) -> ModelConfig:
    """Complete the sizes of Granite 4.0 micro as of Granite 3.x; it must state its rotary embedding."""
    if config.get("position_embedding_type") != "rope":
        stated = brief(config.get("position_embedding_type"))
        raise ValueError(f"`position_embedding_type` is {stated}, but llama.cpp supports only 'rope'")
    listed = ["attention"] * len(config["layer_types"])  # that all are attention is known here, by either name
    expect_layer_types({"layer_types": listed}, ["attention"] * model.layers)
    return granite_model(config, model)


def granite4_layouts(model: ModelConfig) -> list[Layout]:
    """List the tensors in file order: as Llama's, gate and up from the halves of one matrix."""
    return [_shared(layout, model.intermediate) for layout in llama_layouts(model)]


def _shared(layout: Layout, width: int) -> Layout:
    start, _, part = layout.source.removesuffix(".weight").rpartition(".mlp.")
    if part == "down_proj":
        return replace(layout, source=f"{start}.shared_mlp.output_linear.weight")
    if part not in ("gate_proj", "up_proj"):
        return layout
    first = 0 if part == "gate_proj" else width
    return replace(layout, source=f"{start}.shared_mlp.input_linear.weight", first=first, of=2 * width)


def granite4_metadata(model: ModelConfig) -> Metadata:
    """Return the key-value pairs as the converter writes them for a model of which each layer could have a state."""
    return {
        **granite_metadata(model),
        "granite.attention.head_count_kv": ([model.kv_heads] * model.layers, GGUFValueType.ARRAY),
        "granite.expert_count": (0, COUNT),
        "granite.expert_used_count": (0, COUNT),
        "granite.expert_shared_feed_forward_length": (model.intermediate, COUNT),
        "granite.rope.scaling.finetuned": (True, GGUFValueType.BOOL),
    }


def granite_stated(header: GgufHeader) -> dict[str, Any]:
    """Return what config.json says of a GGUF file; one of 4.0 micro is as Granite 3's: gate and up are apart."""
    scales = {key: header.values.get(name, 1.0) for key, name in SCALES.items()}
    scales["attention_multiplier"] = real(header.values, SCALES["attention_multiplier"])
    return {**class_of("granite"), **llama3_stated(header), **scales}


GRANITE = Family("granite", granite_model, llama_layouts, computed, granite_metadata, stated=granite_stated)
GRANITE4 = Family("granite", granite4_model, granite4_layouts, computed, granite4_metadata)
