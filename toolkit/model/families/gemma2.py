"""Gemma-2: norms that compute with 1 + weight, soft caps, a sliding window in every other layer. Architecture `gemma2`.

The scale of the embedding, and of attention, is computed by llama.cpp and not stated in the file. Facts: llama.cpp's
conversion/gemma.py and src/models/gemma2.cpp.
"""

from dataclasses import replace
from typing import Any

from toolkit.core.errors import ToolkitError
from toolkit.formats.gguf_writer import Metadata
from toolkit.model.config_values import Values, count, expect, real
from toolkit.model.families.family import (
    Family,
    GgufHeader,
    Layout,
    described,
    expect_layer_types,
    nothing_computed,
    rope,
)
from toolkit.model.kinds import class_of
from toolkit.model.model_config import ModelConfig

LAYERS_27B = 46  # by which llama.cpp knows the model whose attention has a scale of its own


def gemma2_model(config: Values, model: ModelConfig) -> ModelConfig:
    """Complete the sizes by window and soft caps; raises ValueError for what llama.cpp computes differently."""
    expect(config, "hidden_activation", "gelu_pytorch_tanh")
    expect(config, "hidden_act", "gelu_pytorch_tanh")
    expect(config, "attention_bias", False)
    expect(config, "tie_word_embeddings", True)
    theta, _ = rope(config, {})
    expect({"rope_theta": theta}, "rope_theta", 10000.0)
    expect_layer_types(config, [("sliding_attention", "full_attention")[layer % 2] for layer in range(model.layers)])
    scale = model.hidden // model.heads if model.layers == LAYERS_27B else model.head_dim
    expect({"query_pre_attn_scalar": real(config, "query_pre_attn_scalar", 256)}, "query_pre_attn_scalar", scale)
    return replace(
        model,
        rope_theta=theta,
        window=count(config, "sliding_window", 4096),
        attention_cap=real(config, "attn_logit_softcapping", 50.0),
        output_cap=real(config, "final_logit_softcapping", 30.0),
    )


def gemma2_layouts(model: ModelConfig) -> list[Layout]:
    """List the tensors in file order; there is no separate head, llama.cpp takes the embedding."""
    if not model.tied:
        raise ToolkitError(
            "the lm_head differs from the embedding, but llama.cpp's Gemma-2 has no separate one",
            hint="train without lm_head and without embed_tokens in modules_to_save",
        )
    return gemma_layouts(model)


def gemma_layouts(model: ModelConfig) -> list[Layout]:
    """List a Gemma's tensors in file order; every norm is written as 1 + weight."""
    query, key = model.heads * model.head_dim, model.kv_heads * model.head_dim
    matrices = (
        ("self_attn.q_proj", "attn_q", (query, model.hidden)),
        ("self_attn.k_proj", "attn_k", (key, model.hidden)),
        ("self_attn.v_proj", "attn_v", (key, model.hidden)),
        ("self_attn.o_proj", "attn_output", (model.hidden, query)),
        ("mlp.gate_proj", "ffn_gate", (model.intermediate, model.hidden)),
        ("mlp.up_proj", "ffn_up", (model.intermediate, model.hidden)),
        ("mlp.down_proj", "ffn_down", (model.hidden, model.intermediate)),
    )
    norms = [
        ("input_layernorm", "attn_norm", model.hidden),
        ("post_attention_layernorm", "post_attention_norm", model.hidden),
        ("pre_feedforward_layernorm", "ffn_norm", model.hidden),
        ("post_feedforward_layernorm", "post_ffw_norm", model.hidden),
    ]
    if model.qk_norm:
        norms += [(f"self_attn.{part}_norm", f"attn_{part}_norm", model.head_dim) for part in "qk"]
    embedding = (model.vocab, model.hidden)
    layouts = [Layout("model.embed_tokens.weight", "token_embd.weight", embedding)]
    for layer in range(model.layers):
        source, name = f"model.layers.{layer}.", f"blk.{layer}."
        layouts += [Layout(f"{source}{a}.weight", f"{name}{b}.weight", (size,), offset=1) for a, b, size in norms]
        layouts += [Layout(f"{source}{a}.weight", f"{name}{b}.weight", shape) for a, b, shape in matrices]
    layouts.append(Layout("model.norm.weight", "output_norm.weight", (model.hidden,), offset=1))
    if not model.tied:
        layouts.append(Layout("lm_head.weight", "output.weight", embedding))
    return layouts


def gemma2_metadata(model: ModelConfig) -> Metadata:
    """Return the key-value pairs that llama.cpp builds the model from."""
    return described(
        model,
        "context_length embedding_length block_count feed_forward_length attention.head_count attention.head_count_kv "
        "attention.layer_norm_rms_epsilon attention.key_length attention.value_length attn_logit_softcapping "
        "final_logit_softcapping attention.sliding_window",
    )


def gemma2_stated(header: GgufHeader) -> dict[str, Any]:
    """Return what config.json says of a GGUF file."""
    values = header.values
    return {
        **gemma_stated("gemma2", header, LAYERS_27B),
        "sliding_window": values.get("attention.sliding_window", 4096),
        "attn_logit_softcapping": values.get("attn_logit_softcapping", 50.0),
        "final_logit_softcapping": values.get("final_logit_softcapping", 30.0),
    }


def gemma_stated(family: str, header: GgufHeader, layers: int) -> dict[str, Any]:
    """Return what config.json says of a Gemma; by its `layers` llama.cpp knows the scale of its attention."""
    values, hidden = header.values, header.shapes["token_embd.weight"][1]
    own = values.get("block_count") != layers
    scale = count(values, "attention.key_length") if own else hidden // count(values, "attention.head_count")
    activation = dict.fromkeys(("hidden_act", "hidden_activation"), "gelu_pytorch_tanh")
    return {**class_of(family), **activation, "query_pre_attn_scalar": scale}


GEMMA2 = Family("gemma2", gemma2_model, gemma2_layouts, nothing_computed, gemma2_metadata, stated=gemma2_stated)
