"""Qwen3.5 and 3.6, dense, their text alone: most layers are a gated delta net. Architecture `qwen35`.

As Qwen3 with norms of 1 + weight, and a gate behind attention, whose rows lie in the query's matrix. ggml repeats key
heads in turns, so value heads are written in that order. The layers that predict several tokens at once (MTP) are left
out, as by the converter's `--no-mtp`. Facts: llama.cpp's conversion/qwen.py, src/models/qwen35.cpp, and ggml's mrope.
"""

from dataclasses import replace
from typing import Any

from gguf import GGUFValueType

from toolkit.formats.gguf_writer import Metadata
from toolkit.model.config_values import Values, brief, count, expect
from toolkit.model.delta_net import FULL, LINEAR, DeltaNet
from toolkit.model.families.family import (
    COUNT,
    Family,
    GgufHeader,
    HeadOrder,
    Layout,
    described,
    nothing_computed,
    rope_parameters,
)
from toolkit.model.families.scaling import scaled_rope, scaling_metadata, stated_rope
from toolkit.model.kinds import class_of
from toolkit.model.model_config import ModelConfig

EVERY = 4  # layers, of which the last attends to every token, where nothing else is stated
PART = 0.25  # of each head that is turned
SECTIONS = [11, 11, 10]  # rotary pairs for time, height and width; a text has the same position in all three
EPSILON = 1e-6  # transformers norms query and key of linear attention by this, llama.cpp by that of all norms


def qwen35_model(config: Values, model: ModelConfig) -> ModelConfig:
    """Complete the sizes by the rotary embedding; raises ValueError for what llama.cpp computes differently."""
    expect(config, "hidden_act", "silu")
    expect(config, "attention_bias", False)
    expect(config, "attn_output_gate", True)
    expect({"rms_norm_eps": model.norm_epsilon}, "rms_norm_eps", EPSILON)
    stated = rope_parameters(config)
    expect(stated, "mrope_interleaved", True)
    theta, scaling = scaled_rope(config)
    turned = _turned(stated.get("partial_rotary_factor", config.get("partial_rotary_factor")), model.head_dim)
    sections = _sections(stated.get("mrope_section"), turned // 2)
    more = config.get("mtp_num_hidden_layers")
    left_out = "its layers that predict several tokens at once (MTP)" if more else ""
    every = count(config, "full_attention_interval", EVERY)
    return replace(
        model,
        rope_theta=theta,
        rope={**scaling, "turned": turned, "sections": sections, "every": every},
        ignored=left_out,
    )


def _turned(part: Any, head_dim: int) -> int:
    """Return how many dimensions of a head are turned."""
    part = PART if part is None else part
    turned = int(head_dim * part) if type(part) in (int, float) and 0 < part <= 1 else 0
    if turned < 2 or turned % 2:
        raise ValueError(
            f"`partial_rotary_factor` is {brief(part)}, which is not an even number of {head_dim} dimensions"
        )
    return turned


def _sections(stated: Any, pairs: int) -> list[int]:
    """Return the sections, four as in GGUF; raises ValueError unless each rotary pair has time, height or width.

    ggml gives a pair beyond its section the position 0.
    """
    sections = SECTIONS if stated is None else stated
    if not isinstance(sections, list) or len(sections) != 3 or any(type(n) is not int or n < 0 for n in sections):
        raise ValueError(f"no valid `mrope_section`: {brief(stated)}, three whole numbers are needed")
    total = sum(sections)
    if not total or any(pair % total >= 3 * sections[pair % total % 3] for pair in range(pairs)):
        raise ValueError(f"`mrope_section` {sections} does not cover the {pairs} rotary pairs of a head")
    return [*sections, 0]


def qwen35_layouts(model: ModelConfig) -> list[Layout]:
    """List the tensors in file order; every norm but linear attention's own is written as 1 + weight."""
    embedding = (model.vocab, model.hidden)
    layouts = [Layout("model.embed_tokens.weight", "token_embd.weight", embedding)]
    norms = (("input_layernorm", "attn_norm"), ("post_attention_layernorm", "post_attention_norm"))
    mlp = {"gate_proj": "ffn_gate", "up_proj": "ffn_up", "down_proj": "ffn_down"}
    sizes = model.linears()
    assert model.delta is not None
    for layer, linear in enumerate(model.delta.layers):
        source, name = f"model.layers.{layer}.", f"blk.{layer}."
        layouts += [Layout(f"{source}{a}.weight", f"{name}{b}.weight", (model.hidden,), offset=1) for a, b in norms]
        layouts += _linear(f"{source}linear_attn.", name, model, model.delta) if linear else _full(source, name, model)
        layouts += [
            Layout(f"{source}mlp.{part}.weight", f"{name}{place}.weight", sizes[part][::-1])
            for part, place in mlp.items()
        ]
    layouts.append(Layout("model.norm.weight", "output_norm.weight", (model.hidden,), offset=1))
    if not model.tied:
        layouts.append(Layout("lm_head.weight", "output.weight", embedding))
    return layouts


def _full(source: str, name: str, model: ModelConfig) -> list[Layout]:
    sizes, start = model.linears(), f"{source}self_attn."
    places = {"q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output"}
    found = [Layout(f"{start}{a}.weight", f"{name}{b}.weight", sizes[a][::-1]) for a, b in places.items()]
    norms = [
        Layout(f"{start}{n}_norm.weight", f"{name}attn_{n}_norm.weight", (model.head_dim,), offset=1) for n in "qk"
    ]
    return [*found, *norms]


def _linear(source: str, name: str, model: ModelConfig, delta: DeltaNet) -> list[Layout]:
    def order(size: int, first: int = 0, *, columns: bool = False) -> HeadOrder | None:
        each = delta.values // delta.keys
        return HeadOrder(delta.keys, each, size, first, columns) if each > 1 else None

    sizes = delta.linears(model.hidden)
    behind = 2 * delta.keys * delta.size  # query and key, whose heads stay
    matrices = (
        ("in_proj_qkv", "attn_qkv", order(delta.size, behind)),
        ("in_proj_z", "attn_gate", order(delta.size)),
        ("in_proj_b", "ssm_beta", order(1)),
        ("in_proj_a", "ssm_alpha", order(1)),
        ("out_proj", "ssm_out", order(delta.size, columns=True)),
    )
    convolution = (delta.mixed, delta.kernel)
    return [
        *(Layout(f"{source}{a}.weight", f"{name}{b}.weight", sizes[a][::-1], order=turn) for a, b, turn in matrices),
        Layout(
            f"{source}conv1d.weight",
            f"{name}ssm_conv1d.weight",
            convolution,
            order=order(delta.size, behind),
            between=True,
        ),
        Layout(f"{source}A_log", f"{name}ssm_a", (delta.values,), order=order(1), decay=True),
        Layout(f"{source}dt_bias", f"{name}ssm_dt.bias", (delta.values,), order=order(1)),
        Layout(f"{source}norm.weight", f"{name}ssm_norm.weight", (delta.size,)),
    ]


def qwen35_metadata(model: ModelConfig) -> Metadata:
    """Return the key-value pairs that llama.cpp builds the model from."""
    delta = model.delta
    assert delta is not None
    values = described(
        model,
        "block_count context_length embedding_length feed_forward_length attention.head_count attention.head_count_kv "
        "rope.freq_base attention.layer_norm_rms_epsilon attention.key_length attention.value_length",
    )
    own: Metadata = {
        "rope.dimension_count": (model.rope["turned"], COUNT),
        "rope.dimension_sections": (model.rope["sections"], GGUFValueType.ARRAY),
        "ssm.conv_kernel": (delta.kernel, COUNT),
        "ssm.state_size": (delta.size, COUNT),
        "ssm.group_count": (delta.keys, COUNT),
        "ssm.time_step_rank": (delta.values, COUNT),
        "ssm.inner_size": (delta.inner, COUNT),
        "attention.recurrent_layers": ([*delta.layers], GGUFValueType.ARRAY),
        "full_attention_interval": (model.rope["every"], COUNT),
    }
    return {**values, **{f"qwen35.{key}": value for key, value in own.items()}, **scaling_metadata(model)}


def qwen35_stated(header: GgufHeader) -> dict[str, Any]:
    """Return what config.json says of a GGUF file; one that lists no layers counts them, as llama.cpp does."""
    values = header.values
    layers, every = count(values, "block_count"), count(values, "full_attention_interval", EVERY)
    marks = values.get("attention.recurrent_layers", [(layer + 1) % every != 0 for layer in range(layers)])
    if values.get("nextn_predict_layers"):
        raise ValueError("it has layers that predict several tokens at once (MTP): convert it with --no-mtp")
    if not isinstance(marks, list):
        raise ValueError(f"no valid `qwen35.attention.recurrent_layers`: {brief(marks)}")
    size = count(values, "attention.key_length", 256)
    sections = values.get("rope.dimension_sections", SECTIONS)
    return {
        **class_of("qwen3_5_text"),
        "layer_types": [LINEAR if mark else FULL for mark in marks],
        "full_attention_interval": every,
        "linear_num_key_heads": count(values, "ssm.group_count"),
        "linear_num_value_heads": count(values, "ssm.time_step_rank"),
        "linear_key_head_dim": count(values, "ssm.state_size"),
        "linear_value_head_dim": count(values, "ssm.state_size"),
        "linear_conv_kernel_dim": count(values, "ssm.conv_kernel"),
        "rope_parameters": {
            **stated_rope(values, 1e7),
            "partial_rotary_factor": count(values, "rope.dimension_count", size) / size,
            "mrope_section": sections[:3] if isinstance(sections, list) else sections,
            "mrope_interleaved": True,
        },
    }


QWEN35 = Family(
    "qwen35",
    qwen35_model,
    qwen35_layouts,
    nothing_computed,
    qwen35_metadata,
    left_out=("mtp.", "model.mtp."),
    stated=qwen35_stated,
)
