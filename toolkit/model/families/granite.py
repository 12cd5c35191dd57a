"""Granite 3.x, the dense ones: as Llama, with four scales. Architecture `granite`.

Facts: llama.cpp's conversion/granite.py and src/models/granite.cpp.
"""

from dataclasses import replace

from toolkit.formats.gguf_writer import Metadata
from toolkit.model.config_values import Values, real
from toolkit.model.families.family import REAL, Family, described
from toolkit.model.families.llama import computed, llama_layouts, llama_model
from toolkit.model.families.scaling import scaling_metadata
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


GRANITE = Family("granite", granite_model, llama_layouts, computed, granite_metadata)
