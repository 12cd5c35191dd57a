"""Every family computes in llama.cpp what it computes in transformers; what would be computed otherwise is refused."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support import families, gelu, models
from toolkit.core.errors import ToolkitError
from toolkit.export import export, plan
from toolkit.model.families import family_of

FAST = (
    *(("nemo", 48), ("phi3.5", 300), ("phi4mini", 48), ("gemma2", 300), ("gemma3", 300), ("qwen3", 48)),
    ("qwen3.5", 48),
)
# Heads of their own size, longrope, a part of each head turned, a sliding window.


PART = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.72}


@pytest.fixture
def table_gelu() -> Iterator[None]:
    """Give transformers' Gemmas the runtime's GELU, so that all the rest can be compared to rounding."""
    with gelu.table_gelu():
        yield


@pytest.mark.usefixtures("table_gelu")
@pytest.mark.parametrize(
    ("family", "length"),
    [
        pytest.param(family, length, marks=() if (family, length) in FAST else pytest.mark.slow)
        for family in (*families.FAMILIES, *families.VARIANTS)
        for length in (48, 300)
    ],
)
def test_logits(family: str, length: int, tmp_path: Path) -> None:
    """48 tokens lie within longrope's original context of 256, 300 beyond; Gemma-2's window has 24."""
    base = families.save(tmp_path / "base", family)
    export(base, None, {"F32": tmp_path / "a.gguf"}, models.TEMPLATE, "small")
    assert models.kl(base, None, tmp_path / "a.gguf", length) <= 1e-9


def test_logits_of_gemma_with_its_own_gelu(tmp_path: Path) -> None:
    """The table costs this much, and no more; it is the runtime's, not the file's."""
    base = families.save(tmp_path / "base", "gemma2")
    export(base, None, {"F32": tmp_path / "a.gguf"}, models.TEMPLATE, "small")
    assert 1e-9 < models.kl(base, None, tmp_path / "a.gguf", 48) <= 1e-7


@pytest.mark.parametrize(
    ("family", "changes", "words"),
    [
        ("llama", {"architectures": ["FalconForCausalLM"]}, "architecture FalconForCausalLM, which cannot be exported"),
        ("mistral", {"hidden_act": "gelu"}, "llama.cpp supports only 'silu'"),
        (
            "phi3",
            {"rope_parameters": PART},
            "`partial_rotary_factor` is 0.72, which is not an even number of 32 dimensions",
        ),
        ("phi3", {"rope_parameters": None, "partial_rotary_factor": 1.5}, "`partial_rotary_factor` is 1.5"),
        (
            "phi4mini",
            {"rope_parameters": {**families.LONGROPE, "partial_rotary_factor": 0.75}},
            "`(short|long)_factor` has 16 values",
        ),
        ("phi3", {"head_dim": 64}, "the head size is 64"),
        (
            "phi3.5",
            {"rope_parameters": {**families.LONGROPE, "long_factor": [1.0] * 4}},
            "`long_factor` has 4 values",
        ),
        ("phi3.5", {"rope_parameters": {**families.LONGROPE, "short_factor": None}}, "no valid `short_factor`"),
        ("phi3.5", {"rope_parameters": {**families.LONGROPE, "attention_factor": 1.5}}, "`attention_factor` is 1.5"),
        ("phi3.5", {"rope_parameters": {**families.LONGROPE, "rope_type": "yarn"}}, "rope scaling 'yarn'"),
        ("phi3.5", {"rope_parameters": 3}, "no valid rope parameters"),
        ("gemma2", {"query_pre_attn_scalar": 224}, "`query_pre_attn_scalar` is 224"),
        ("gemma2", {"layer_types": ["full_attention"] * 2}, "`layer_types`"),
        ("gemma2", {"hidden_activation": "silu"}, "`hidden_activation` is 'silu'"),
        ("gemma2", {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, "`rope_theta` is 500000.0"),
        ("gemma2", {"tie_word_embeddings": False}, "`tie_word_embeddings` is False"),
        ("gemma2", {"final_logit_softcapping": -1}, "no valid `final_logit_softcapping`"),
        ("gemma2", {"sliding_window": 0}, "no valid `sliding_window`"),
        ("gemma3", {"query_pre_attn_scalar": 224}, "`query_pre_attn_scalar` is 224"),
        ("gemma3", {"layer_types": ["sliding_attention"] * 7}, "`layer_types`"),
        ("gemma3", {"layer_types": ["full_attention"] * 2}, "`layer_types` lists 2 layers"),
        ("gemma3", {"layer_types": None, "sliding_window_pattern": 4}, "`sliding_window_pattern` is 4"),
        ("gemma3", {"use_bidirectional_attention": True}, "`use_bidirectional_attention` is True"),
        ("gemma3", {"attn_logit_softcapping": 50.0}, "`attn_logit_softcapping` is 50.0"),
        ("gemma3", {"sliding_window": 0}, "no valid `sliding_window`"),
        ("gemma3", {"rope_parameters": None, "rope_local_base_freq": 5e5}, "`rope_local_base_freq` is 500000.0"),
        ("gemma3", {"rope_parameters": {"full_attention": families.YARN}}, "rope scaling 'yarn'"),
        ("gemma3", {"rope_parameters": {"sliding_attention": families.LINEAR}}, "rope scaling 'linear'"),
        ("gemma3", {"rope_parameters": {"full_attention": {}, "rope_theta": 1e6}}, "no valid rope parameters"),
        ("smollm3", {"no_rope_layers": [1] * 5}, "`no_rope_layers`"),
        ("smollm3", {"no_rope_layers": None, "no_rope_layer_interval": 2}, "`no_rope_layer_interval` is 2"),
        ("smollm3", {"attention_bias": True}, "`attention_bias` is True"),
        ("smollm3", {"mlp_bias": True}, "`mlp_bias` is True"),
        ("smollm3", {"use_sliding_window": True}, "`use_sliding_window` is True"),
        ("granite", {"head_dim": 64}, "the head size is 64"),
        ("granite", {"logits_scaling": 0}, "no valid `logits_scaling`"),
        ("granite", {"residual_multiplier": "all"}, "no valid `residual_multiplier`"),
        ("granite4", {"position_embedding_type": "nope"}, "`position_embedding_type` is 'nope'"),
        ("granite4", {"position_embedding_type": None}, "`position_embedding_type` is None"),
        ("granite4", {"shared_intermediate_size": 0}, "no valid `shared_intermediate_size`"),
        ("granite4", {"layer_types": ["attention"] * 3}, "`layer_types` lists 3 layers"),
        ("granite4", {"hidden_act": "gelu"}, "llama.cpp supports only 'silu'"),
        ("olmo2", {"tie_word_embeddings": True}, "`tie_word_embeddings` is True"),
        ("olmo2", {"clip_qkv": 8.0}, "`clip_qkv` is 8.0"),
        ("olmo2", {"head_dim": 64}, "the head size is 64"),
        ("olmo3", {"layer_types": ["full_attention"] * 3}, "`layer_types`"),
        ("olmo3", {"layer_types": ["linear_attention"] * 5}, "`layer_types`"),
        ("olmo3", {"rope_parameters": {"sliding_attention": {"rope_theta": 2e4}}}, "rope_theta of the layers with"),
        ("olmo3", {"rope_parameters": {"sliding_attention": families.YARN}}, "rope scaling 'yarn'"),
        ("ministral", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}, "state no yarn scaling"),
        ("ministral", {"rope_parameters": {**families.MINISTRAL, "mscale": 0.5}}, "`mscale` is 0.5"),
        ("ministral", {"rope_parameters": {**families.MINISTRAL, "attention_factor": 1.1}}, "`attention_factor` is"),
        ("ministral", {"rope_parameters": {**families.MINISTRAL, "llama_4_scaling_beta": None}}, "llama_4_scaling"),
        ("ministral", {"sliding_window": 4096}, "`sliding_window` is 4096"),
        ("qwen2.5", {"head_dim": 64}, "the head size is 64"),
        ("qwen2.5", {"hidden_act": "gelu"}, "llama.cpp supports only 'silu'"),
        ("qwen2.5", {"layer_types": ["chunked_attention"] * 2}, "`layer_types`"),
        ("qwen3", {"attention_bias": True}, "`attention_bias` is True"),
        ("qwen3.5", {"attention_bias": True}, "`attention_bias` is True"),
        ("qwen3.5", {"attn_output_gate": False}, "`attn_output_gate` is False"),
        ("qwen3.5", {"hidden_act": "gelu"}, "llama.cpp supports only 'silu'"),
        ("qwen3.5", {"rms_norm_eps": 1e-5}, "`rms_norm_eps` is 1e-05"),
        ("qwen3.5", {"linear_value_head_dim": 32}, "`linear_value_head_dim` is 32"),
        ("qwen3.5", {"linear_num_value_heads": 5}, "`linear_num_value_heads` 5 is not a multiple"),
        ("qwen3.5", {"linear_conv_kernel_dim": 0}, "no valid `linear_conv_kernel_dim`"),
        ("qwen3.5", {"layer_types": ["mamba"] * 4}, "`layer_types` is"),
        ("qwen3.5", {"layer_types": ["linear_attention"] * 3}, "`layer_types` lists 3 layers"),
        ("qwen3.5", {"layer_types": None, "full_attention_interval": 0}, "no valid `full_attention_interval`"),
        ("qwen3.5", {"rope_parameters": {**families.MROPE, "mrope_section": [2, 2, 0]}}, "does not cover the 8 rotary"),
        ("qwen3.5", {"rope_parameters": {**families.MROPE, "mrope_section": [8, 0, 0]}}, "does not cover the 8 rotary"),
        ("qwen3.5", {"rope_parameters": {**families.MROPE, "mrope_section": [0, 0, 0]}}, "does not cover the 8 rotary"),
        ("qwen3.5", {"rope_parameters": {**families.MROPE, "mrope_section": [8]}}, "no valid `mrope_section`"),
        ("qwen3.5", {"rope_parameters": {**families.MROPE, "mrope_interleaved": False}}, "`mrope_interleaved` is"),
        (
            "qwen3.5",
            {"rope_parameters": {**families.MROPE, "partial_rotary_factor": 0.3}},
            "`partial_rotary_factor` is",
        ),
        ("qwen3.5", {"rope_parameters": {**families.MROPE, "partial_rotary_factor": "all"}}, "`partial_rotary_factor`"),
        ("qwen3.5", {"rope_parameters": {**families.MROPE, "rope_type": "dynamic"}}, "rope scaling 'dynamic'"),
        ("qwen3", {"rope_parameters": {**families.YARN, "rope_type": "dynamic"}}, "rope scaling 'dynamic'"),
        ("qwen3", {"rope_parameters": {**families.YARN, "attention_factor": 1.5}}, "`attention_factor` is 1.5"),
        ("qwen3", {"rope_parameters": {**families.YARN, "beta_fast": 16}}, "`beta_fast` is 16"),
        ("qwen3", {"rope_parameters": {**families.YARN, "truncate": False}}, "`truncate` is False"),
        ("qwen3", {"rope_parameters": {**families.YARN, "mscale": 0.7, "mscale_all_dim": 1.0}}, "`mscale` is 0.7"),
        ("qwen3", {"rope_parameters": {**families.YARN, families.ORIGINAL: None}}, f"`{families.ORIGINAL}` is missing"),
        (
            "qwen3",
            {"use_sliding_window": True, "sliding_window": 9, "layer_types": None, "max_window_layers": "all"},
            "no valid `max_window_layers`",
        ),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused(
    family: str, changes: dict[str, Any], words: str, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**_config(family), **changes}))
    with pytest.raises(ToolkitError, match=words):
        plan(tmp_path, None, ["F16"])


def _config(family: str) -> dict[str, Any]:
    import transformers

    name, own, _ = (
        ("Ministral3", {"rope_parameters": families.MINISTRAL}, None)
        if family == "ministral"
        else (families.FAMILIES[family])
    )
    make: Callable[..., Any] = getattr(transformers, f"{name}Config")
    config = make(**{**families.COMMON, "vocab_size": 608, **own})
    return {**json.loads(config.to_json_string(use_diff=False)), "architectures": [families.class_name(name)]}


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("mistral", {"sliding_window": 64}),
        ("qwen3", {"sliding_window": 64, "use_sliding_window": True, "max_window_layers": 1}),
    ],
)
def test_a_window_that_llama_cpp_leaves_out_is_said(
    family: str, settings: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = families.save(tmp_path / "base", family, **settings)
    export(base, None, {"F16": tmp_path / "a.gguf"}, models.TEMPLATE, "small")
    assert "without its sliding window: beyond 64 tokens" in capsys.readouterr().err


@pytest.mark.parametrize(
    "settings",
    [{"sliding_window": 64}, {"sliding_window": 64, "use_sliding_window": True, "max_window_layers": 2}],
)
def test_a_window_that_no_layer_has_is_not_said(settings: dict[str, Any], tmp_path: Path) -> None:
    """Qwen's config.json states a window that `use_sliding_window` or `max_window_layers` switches off."""
    (tmp_path / "config.json").write_text(json.dumps({**_config("qwen2.5"), "layer_types": None, **settings}))
    assert family_of(tmp_path)[1].ignored == ""


@pytest.mark.parametrize("family", ["mistral", "nemo"])
@pytest.mark.parametrize("inside", [False, True])
def test_a_window_that_a_mistral_does_not_state(family: str, inside: bool, tmp_path: Path) -> None:
    """Without the key transformers computes a window of 4,096 tokens, with null none."""
    path = tmp_path / "config.json"
    values = {**_config(family), "max_position_embeddings": 8192}
    for stated, said in (({"sliding_window": None}, ""), ({}, "beyond 4096 tokens"), ({"sliding_window": 8192}, "")):
        config = {**{key: value for key, value in values.items() if key != "sliding_window"}, **stated}
        whole = {"architectures": ["Mistral3ForConditionalGeneration"], "model_type": "mistral3", "text_config": config}
        path.write_text(json.dumps(whole if inside else config))
        ignored = family_of(tmp_path)[1].ignored
        assert said in ignored and ("beyond" in ignored) == bool(said)


def test_a_config_json_of_before_transformers_5(tmp_path: Path) -> None:
    """Gemma-3's published files state two rotary bases and one scaling, which is that of the global layers alone."""
    base = families.save(tmp_path / "base", "gemma3 linear")
    expected = family_of(base)
    former = {"rope_theta": 1e6, "rope_local_base_freq": 1e4, "rope_scaling": families.LINEAR}
    values = json.loads((base / "config.json").read_text())
    del values["rope_parameters"], values["layer_types"]
    (base / "config.json").write_text(json.dumps({**values, **former, "sliding_window_pattern": 6}))
    assert family_of(base) == expected


def test_gemma_cannot_be_untied(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(_config("gemma2")))
    family, model = family_of(tmp_path)
    with pytest.raises(ToolkitError, match="Gemma-2 has no separate one"):
        family.layouts(replace(model, tied=False))
