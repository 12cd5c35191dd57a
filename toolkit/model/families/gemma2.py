"""Gemma-2: norms that compute with 1 + weight, soft caps, a sliding window in every other layer. Architecture `gemma2`.

The scale of the embedding, and of attention, is computed by llama.cpp and not stated in the file. Facts: llama.cpp's
conversion/gemma.py and src/models/gemma2.cpp.
"""

from dataclasses import replace

from toolkit.core.errors import ToolkitError
from toolkit.formats.gguf_writer import Metadata
from toolkit.model.config_values import Values, brief, count, expect, real
from toolkit.model.families.family import Family, Layout, described, nothing_computed, rope
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
    _check_layer_types(config, model.layers)
    scale = model.hidden // model.heads if model.layers == LAYERS_27B else model.head_dim
    expect({"query_pre_attn_scalar": real(config, "query_pre_attn_scalar", 256)}, "query_pre_attn_scalar", scale)
    return replace(
        model,
        rope_theta=theta,
        window=count(config, "sliding_window", 4096),
        attention_cap=real(config, "attn_logit_softcapping", 50.0),
        output_cap=real(config, "final_logit_softcapping", 30.0),
    )


def _check_layer_types(config: Values, layers: int) -> None:
    """Raise ValueError unless the window is in every other layer, from the first on."""
    stated = config.get("layer_types")
    if stated is None or stated == []:
        return
    if isinstance(stated, list) and len(stated) != layers:
        raise ValueError(f"`layer_types` lists {len(stated):,} layers, but `num_hidden_layers` is {layers:,}")
    kinds = ("sliding_attention", "full_attention")
    if not isinstance(stated, list) or any(kind != kinds[layer % 2] for layer, kind in enumerate(stated)):
        raise ValueError(
            f"`layer_types` is {brief(stated)}, but llama.cpp supports only alternating {', '.join(kinds)}"
        )


def gemma2_layouts(model: ModelConfig) -> list[Layout]:
    """List the tensors in file order; there is no separate head, llama.cpp takes the embedding."""
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
    norms = (
        ("input_layernorm", "attn_norm"),
        ("post_attention_layernorm", "post_attention_norm"),
        ("pre_feedforward_layernorm", "ffn_norm"),
        ("post_feedforward_layernorm", "post_ffw_norm"),
    )
    if not model.tied:
        raise ToolkitError(
            "the lm_head differs from the embedding, but llama.cpp's Gemma-2 has no separate one",
            hint="train without lm_head and without embed_tokens in modules_to_save",
        )
    layouts = [Layout("model.embed_tokens.weight", "token_embd.weight", (model.vocab, model.hidden))]
    for layer in range(model.layers):
        source, name = f"model.layers.{layer}.", f"blk.{layer}."
        layouts += [Layout(f"{source}{a}.weight", f"{name}{b}.weight", (model.hidden,), offset=1) for a, b in norms]
        layouts += [Layout(f"{source}{a}.weight", f"{name}{b}.weight", shape) for a, b, shape in matrices]
    layouts.append(Layout("model.norm.weight", "output_norm.weight", (model.hidden,), offset=1))
    return layouts


def gemma2_metadata(model: ModelConfig) -> Metadata:
    """Return the key-value pairs that llama.cpp builds the model from."""
    return described(
        model,
        "context_length embedding_length block_count feed_forward_length attention.head_count attention.head_count_kv "
        "attention.layer_norm_rms_epsilon attention.key_length attention.value_length attn_logit_softcapping "
        "final_logit_softcapping attention.sliding_window",
    )


GEMMA2 = Family("gemma2", gemma2_model, gemma2_layouts, nothing_computed, gemma2_metadata)
