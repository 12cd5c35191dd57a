"""SmolLM3: as Llama, but every fourth layer has no rotary embedding. Architecture `smollm3`.

llama.cpp knows the layers without; no key says them. Facts: llama.cpp's conversion/llama.py and src/models/smollm3.cpp.
"""

from dataclasses import replace
from typing import Any

from toolkit.formats.gguf_writer import Metadata
from toolkit.model.config_values import Values, brief, expect
from toolkit.model.families.family import Family, GgufHeader, described, expect_layer_types, nothing_computed
from toolkit.model.families.llama import llama_layouts
from toolkit.model.families.scaling import scaled_rope, scaling_metadata
from toolkit.model.kinds import class_of
from toolkit.model.model_config import ModelConfig

WITHOUT = 4  # every layer of this number has no rotary embedding


def smollm3_model(config: Values, model: ModelConfig) -> ModelConfig:
    """Complete the sizes by the rotary embedding; raises ValueError for what llama.cpp computes differently."""
    expect(config, "hidden_act", "silu")
    for key in ("attention_bias", "mlp_bias", "use_sliding_window"):
        expect(config, key, False)
    expect_layer_types(config, ["full_attention"] * model.layers)
    _check_layers_without_rope(config, model.layers)
    theta, scaling = scaled_rope(config, 2e6)
    return replace(model, rope_theta=theta, rope=scaling)


def _check_layers_without_rope(config: Values, layers: int) -> None:
    """Raise ValueError unless the layers without rotary embedding (0 in `no_rope_layers`) are llama.cpp's."""
    stated = config.get("no_rope_layers")
    if stated is None:
        expect(config, "no_rope_layer_interval", WITHOUT)
    elif not isinstance(stated, list) or stated[:layers] != [int((n + 1) % WITHOUT != 0) for n in range(layers)]:
        raise ValueError(
            f"`no_rope_layers` is {brief(stated)}, but llama.cpp leaves the rotary embedding out in every {WITHOUT}th "
            "layer"
        )


def smollm3_metadata(model: ModelConfig) -> Metadata:
    """Return the key-value pairs that llama.cpp builds the model from."""
    keys = (
        "block_count context_length embedding_length feed_forward_length attention.head_count attention.head_count_kv "
        "rope.freq_base attention.layer_norm_rms_epsilon vocab_size rope.dimension_count"
    )
    if model.heads * model.head_dim != model.hidden:
        keys += " attention.key_length attention.value_length"
    return {**described(model, keys), **scaling_metadata(model)}


def smollm3_stated(header: GgufHeader) -> dict[str, Any]:
    """Return what config.json says of a GGUF file: no more than its class."""
    return class_of("smollm3")


SMOLLM3 = Family("smollm3", smollm3_model, llama_layouts, nothing_computed, smollm3_metadata, stated=smollm3_stated)
