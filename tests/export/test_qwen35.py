"""Qwen3.5: its layers of linear attention in GGUF, and what of its checkpoint is left out."""

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support import families, models
from tests.support.trained import distance, train
from toolkit.core.errors import ToolkitError
from toolkit.export import export, plan
from toolkit.model.families import family_of
from toolkit.model.families.family import GgufHeader, HeadOrder, Layout, from_ggml_layout, to_ggml_layout
from toolkit.model.families.qwen35 import qwen35_stated

LINEAR = ["in_proj_qkv", "in_proj_z", "in_proj_a", "in_proj_b", "out_proj"]


def test_value_heads_are_written_the_first_of_each_key_head_first() -> None:
    """Three key heads with two value heads each, of two rows; two rows before them stay."""
    rows = np.arange(14, dtype=np.float32)
    order = HeadOrder(3, 2, 2, first=2)
    assert order.applied(rows).tolist() == [0, 1, 2, 3, 6, 7, 10, 11, 4, 5, 8, 9, 12, 13]
    assert order.applied(order.applied(rows), back=True).tolist() == rows.tolist()
    columns = HeadOrder(2, 2, 1, columns=True)
    assert columns.applied(np.array([[1, 2, 3, 4], [5, 6, 7, 8]], np.float32)).tolist() == [[1, 3, 2, 4], [5, 7, 6, 8]]


def test_a_decay_that_was_written_is_read_again_to_the_bit() -> None:
    logs = np.log(np.random.default_rng(0).uniform(0.01, 16, 5000)).astype(np.float32)
    layout = Layout("A_log", "ssm_a", logs.shape, decay=True)
    written = to_ggml_layout(logs, layout)
    assert (written < 0).all()
    assert np.array_equal(to_ggml_layout(from_ggml_layout(written, layout), layout), written)


@pytest.mark.slow
@pytest.mark.parametrize("listed", [True, False])
def test_the_header_marks_the_layers_with_a_state(listed: bool, tmp_path: Path) -> None:
    """The converter on PyPI is too old to write this key; that of llama-cpp-python's own source writes the same."""
    base = families.save(tmp_path / "base", "qwen3.5 that sees" if listed else "qwen3.5")
    if not listed:
        config = base / "config.json"
        stated = json.loads(config.read_text())
        del stated["layer_types"]
        config.write_text(json.dumps({**stated, "full_attention_interval": 4}))
    export(base, None, {"F16": tmp_path / "a.gguf"}, models.TEMPLATE, "small")
    field = gguf.GGUFReader(tmp_path / "a.gguf").fields["qwen35.attention.recurrent_layers"]
    assert field.types == [gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.BOOL]
    assert field.contents() == ([False, True, False] if listed else [True, True, True, False])


@pytest.mark.slow
@pytest.mark.parametrize("start", ["mtp.", "model.mtp."])
def test_layers_that_predict_several_tokens_are_left_out_and_that_is_said(
    start: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = families.save(tmp_path / "base", "qwen3.5")
    export(base, None, {"F16": tmp_path / "without.gguf"}, models.TEMPLATE, "small")
    path, config = base / "model.safetensors", base / "config.json"
    more = {f"{start}fc.weight": torch.ones(256, 512), f"{start}layers.0.mlp.up_proj.weight": torch.ones(256, 256)}
    save_file({**load_file(path), **more}, path, {"format": "pt"})
    config.write_text(json.dumps({**json.loads(config.read_text()), "mtp_num_hidden_layers": 1}))
    export(base, None, {"F16": tmp_path / "with.gguf"}, models.TEMPLATE, "small")
    assert (tmp_path / "with.gguf").read_bytes() == (tmp_path / "without.gguf").read_bytes()
    assert "without its layers that predict several tokens at once (MTP)" in " ".join(capsys.readouterr().err.split())


def test_a_gguf_file_with_such_layers_is_no_base() -> None:
    header = GgufHeader({"block_count": 5, "nextn_predict_layers": 1}, {}, lambda name: np.zeros(0, np.float32))
    with pytest.raises(ValueError, match=r"MTP\): convert it with --no-mtp"):
        qwen35_stated(header)


def test_a_gguf_file_that_lists_no_layers_counts_them() -> None:
    sizes = {"conv_kernel": 4, "state_size": 128, "group_count": 16, "time_step_rank": 32}
    values = {"block_count": 4, "full_attention_interval": 2, **{f"ssm.{key}": size for key, size in sizes.items()}}
    stated = qwen35_stated(GgufHeader(values, {}, lambda name: np.zeros(0, np.float32)))
    assert stated["layer_types"] == ["linear_attention", "full_attention"] * 2
    assert stated["rope_parameters"]["mrope_section"] == [11, 11, 10]


def test_a_whole_model_that_ties_its_head_outside_of_the_text(tmp_path: Path) -> None:
    base = families.save_stub(tmp_path / "base", "qwen3.5 that sees")
    config = base / "config.json"
    stated = json.loads(config.read_text())
    stated["text_config"]["tie_word_embeddings"] = False  # what the class means where the file says nothing
    config.write_text(json.dumps(stated))
    assert stated["tie_word_embeddings"] and family_of(base)[1].tied


@pytest.mark.slow
@pytest.mark.parametrize("kind", [{}, {"use_rslora": True}, {"use_dora": True}])
@pytest.mark.parametrize("targets", [[name] for name in LINEAR])
def test_an_adapter_of_one_matrix_of_linear_attention(
    targets: list[str], kind: dict[str, bool], tmp_path: Path
) -> None:
    base = families.save(tmp_path / "base", "qwen3.5")
    trained = train(tmp_path / "adapter", base, target_modules=targets, **kind)
    assert distance(base, trained, tmp_path / "a.gguf") <= 1e-9
    assert models.kl(base, None, tmp_path / "a.gguf", 96) > 1e-7


def test_an_adapter_of_the_convolution_is_refused(tmp_path: Path) -> None:
    base = families.save(tmp_path / "base", "qwen3.5")
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    module = "base_model.model.model.layers.0.linear_attn.conv1d"
    save_file(
        {f"{module}.lora_A.weight": torch.ones(4, 1, 4), f"{module}.lora_B.weight": torch.ones(640, 4, 1)},
        adapter / "adapter_model.safetensors",
    )
    stated = {"peft_type": "LORA", "r": 4, "lora_alpha": 4, "target_modules": ["conv1d"]}
    (adapter / "adapter_config.json").write_text(json.dumps(stated))
    with pytest.raises(ToolkitError, match=r"linear_attn\.conv1d"):
        plan(base, adapter, ["F16"])


@pytest.mark.parametrize(
    ("name", "model_type"),
    [
        ("Qwen3_5MoeForConditionalGeneration", "qwen3_5_moe"),
        ("Qwen3_5MoeForCausalLM", "qwen3_5_moe_text"),
        ("Qwen3NextForCausalLM", "qwen3_next"),
    ],
)
def test_its_mixtures_of_experts_are_refused_by_name(name: str, model_type: str, tmp_path: Path) -> None:
    text = {**families.config_of("qwen3.5"), "num_experts": 8, "model_type": model_type}
    outer = {"architectures": [name], "model_type": model_type}
    config = {**outer, "text_config": text, "vision_config": {}} if "Conditional" in name else {**text, **outer}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ToolkitError, match=f"{name}.*linear attention .gated delta net. and a mixture of experts"):
        family_of(tmp_path)
