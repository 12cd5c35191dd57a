"""Every tensor of every type is byte for byte what llama.cpp's own quantizer makes of our F32 file."""

import hashlib
import re
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch

from tests.support import gguf_bytes, models
from toolkit.core import console, hardware
from toolkit.export import export, plan
from toolkit.export.adapter import merge
from toolkit.formats.ggml_types import BASE

# The rest, and every other family, stand in test_reference.py.
FEW = ("F32", "F16", "Q8_0", "Q4_K_M", "Q5_K_M")
USUAL = ("F32", "F16", "BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q4_K_M", "Q4_K_S", "Q3_K_M", "Q2_K")
SHAPES: dict[str, dict[str, Any]] = {
    "4 layers, untied": {"num_hidden_layers": 4, "intermediate_size": 256},
    "192 wide, tied": {"hidden_size": 192, "num_attention_heads": 6, "tie_word_embeddings": True},
}
LARGE_SHAPES: dict[str, dict[str, Any]] = {
    "33 layers, untied": {"num_hidden_layers": 33, "intermediate_size": 256},
    "24 layers, tied, no grouping": {
        "num_hidden_layers": 24, "num_key_value_heads": 8, "intermediate_size": 768, "tie_word_embeddings": True,
    },
    "80 layers, grouped (the 70B rule)": {"num_hidden_layers": 80, "intermediate_size": 256},
    "80 layers, no grouping (65B)": {"num_hidden_layers": 80, "intermediate_size": 256, "num_key_value_heads": 8},
    "192 wide, 7 layers": {"hidden_size": 192, "num_attention_heads": 6, "num_hidden_layers": 7},
    "80 wide: not even blocks of 32": {"hidden_size": 80, "num_attention_heads": 2, "num_key_value_heads": 1},
    "embedding 80 wide, tied": {
        "hidden_size": 80, "num_attention_heads": 2, "num_key_value_heads": 2, "tie_word_embeddings": True,
    },
}  # fmt: skip


def quantize(source: Path, target: Path, quantization: str) -> None:
    """llama.cpp's own way: llama_model_quantize on a GGUF file."""
    import llama_cpp

    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = int(BASE[quantization][1])
    params.nthread = 2
    assert llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), params) == 0


def check(base: Path, folder: Path, quantizations: tuple[str, ...]) -> None:
    targets = {name: folder / f"{name}.gguf" for name in quantizations}
    outcome = export(base, None, targets, models.TEMPLATE, "small")
    planned = plan(base, None, quantizations)
    for name, path in targets.items():
        oracle = folder / "oracle.gguf"
        quantize(targets["F32"], oracle, name)
        ours, theirs = gguf_bytes.read(path), gguf_bytes.read(oracle)
        assert gguf_bytes.unlike(ours, theirs) == {}, name
        figures = outcome.figures[name]
        assert figures["bytes"] == path.stat().st_size
        assert figures["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
        assert sum(figures["types"].values()) == len(theirs.tensors) == outcome.figures["tensors"]
        assert planned.bytes[name] == path.stat().st_size - ours.start
        assert {tensor.name: tensor.types[name] for tensor in planned.tensors} == {
            tensor: one.kind for tensor, one in ours.tensors.items()
        }


@pytest.mark.parametrize("quantizations", [FEW, pytest.param(USUAL, marks=pytest.mark.slow)], ids=["few", "usual"])
@pytest.mark.parametrize(
    "shape", [shape if "untied" in shape else pytest.param(shape, marks=pytest.mark.slow) for shape in SHAPES]
)
def test_each_quantization(shape: str, quantizations: tuple[str, ...], tmp_path: Path) -> None:
    check(models.save_model(tmp_path / "base", **SHAPES[shape]), tmp_path, quantizations)


@pytest.mark.slow
@pytest.mark.parametrize("shape", LARGE_SHAPES)
def test_each_quantization_of_large_and_odd_shapes(shape: str, tmp_path: Path) -> None:
    mixtures = ("F32", "Q4_K_M", "Q3_K_M", "Q2_K")  # 80 layers are there for one rule, which these three show
    chosen = mixtures if shape.startswith("80 layers") else USUAL
    check(models.save_model(tmp_path / "base", **LARGE_SHAPES[shape]), tmp_path, chosen)


def test_one_matrix_row_counts_as_a_vector(tmp_path: Path) -> None:
    """ggml drops dimensions of 1; a projection of one row is then no matrix. Only the choice of type is asked here."""
    from toolkit.model.families import family_of
    from toolkit.model.tensor_types import tensor_types

    _, model = family_of(models.save_model(tmp_path / "base"))
    found = tensor_types("Q4_K_M", {"blk.0.attn_k.weight": (1, 256)}, model)
    assert found == {"blk.0.attn_k.weight": (gguf.GGMLQuantizationType.F32, False)}


@pytest.mark.slow
def test_shards_and_their_order_make_no_difference(tmp_path: Path) -> None:
    whole = models.save_model(tmp_path / "whole", dtype=torch.bfloat16)
    sharded = models.save_model(tmp_path / "sharded", dtype=torch.bfloat16, shard="300KB")
    assert len(list(sharded.glob("model-*.safetensors"))) > 3
    renamed = models.save_model(tmp_path / "renamed", dtype=torch.bfloat16, shard="300KB")
    files = sorted(renamed.glob("model-*.safetensors"))
    index = renamed / "model.safetensors.index.json"
    text = index.read_text()
    for old, new in zip(files, reversed(files), strict=True):  # the last shard gets the first one's name, and so on
        old.rename(renamed / f"moved-{new.name}")
        text = text.replace(f'"{old.name}"', f'"moved-{new.name}"')
    index.write_text(text)
    adapter = models.save_adapter(tmp_path / "adapter", whole)
    hashes = []
    for base in (whole, sharded, renamed):
        outcome = export(
            base, adapter, {"Q4_K_M": tmp_path / "a.gguf", "F16": tmp_path / "b.gguf"}, "{{ messages }}", "small"
        )
        hashes.append([outcome.figures[name]["sha256"] for name in ("Q4_K_M", "F16")])
    assert hashes[0] == hashes[1] == hashes[2]


@pytest.mark.slow
def test_slabs_and_threads_make_no_difference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from toolkit.export import quantize, tensors
    from toolkit.formats import checkpoint

    base = models.save_model(tmp_path / "base", dtype=torch.float16)
    lora = models.save_adapter(tmp_path / "adapter", base)
    targets = {name: tmp_path / f"{name}.gguf" for name in ("F32", "Q4_K_M", "Q8_0")}
    usual = export(base, None, targets, models.TEMPLATE, "small").figures
    for module in (checkpoint, quantize):
        monkeypatch.setattr(module, "SLAB", 7_777)
    for module in (merge, tensors):
        monkeypatch.setattr(module, "BLOCK", 3_333)
    monkeypatch.setattr(hardware, "cores", lambda: 5)
    other = export(base, None, targets, models.TEMPLATE, "small").figures
    assert [other[name]["sha256"] for name in targets] == [usual[name]["sha256"] for name in targets]
    # B @ A in other blocks may round otherwise in the last bit
    export(base, lora, {"F32": targets["F32"]}, models.TEMPLATE, "small")
    assert models.kl(base, lora, targets["F32"]) <= 1e-9


def test_a_tied_models_copy_of_its_embedding_is_not_written(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    base = models.save_model(tmp_path / "base", tie_word_embeddings=True)
    plain = export(base, None, {"Q8_0": tmp_path / "a.gguf"}, models.TEMPLATE, "small").figures["Q8_0"]
    tensors = load_file(base / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, base / "model.safetensors")
    assert export(base, None, {"Q8_0": tmp_path / "a.gguf"}, models.TEMPLATE, "small").figures["Q8_0"] == plain


def test_metadata(tmp_path: Path) -> None:
    base = models.save_model(tmp_path / "base")
    export(base, None, {"Q4_K_M": tmp_path / "a.gguf"}, models.TEMPLATE, "my model")
    fields = {key: field.contents() for key, field in gguf.GGUFReader(tmp_path / "a.gguf").fields.items()}
    expected = {
        "general.architecture": "llama",
        "general.type": "model",
        "general.name": "my model",
        "general.size_label": "1.4M",
        "general.file_type": 15,
        "general.quantization_version": 2,
        "llama.block_count": 2,
        "llama.context_length": 512,
        "llama.embedding_length": 256,
        "llama.feed_forward_length": 512,
        "llama.attention.head_count": 8,
        "llama.attention.head_count_kv": 2,
        "llama.attention.key_length": 32,
        "llama.attention.value_length": 32,
        "llama.rope.freq_base": 10000.0,
        "llama.rope.dimension_count": 32,
        "llama.vocab_size": 512,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "llama-bpe",
        "tokenizer.chat_template": models.TEMPLATE,
    }
    assert {key: fields.get(key) for key in expected} == expected
    assert fields["llama.attention.layer_norm_rms_epsilon"] == pytest.approx(1e-6)


def test_progress_names_tensors_bytes_speed_and_time_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    base = models.save_model(tmp_path / "base", hidden_size=64, intermediate_size=64, num_attention_heads=2)
    monkeypatch.setattr(console, "PLAIN_INTERVAL", 0.0)
    export(base, None, {"Q8_0": tmp_path / "a.gguf"}, models.TEMPLATE, "small")
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("export: ")]
    count = len(gguf.GGUFReader(tmp_path / "a.gguf").tensors)
    assert len(lines) == count
    form = r"export: [0-9.]+ .?B of [0-9.]+ [kM]B  tensor (\d+) of (\d+)  (\S+)  [0-9.]+ [kMG]?B/s  [0-9.]+ s left"
    found = [re.fullmatch(form, line) for line in lines]
    assert [(m[1], m[2]) for m in found if m] == [(str(n), str(count)) for n in range(1, count + 1)]
