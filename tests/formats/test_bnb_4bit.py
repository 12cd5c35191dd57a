"""bitsandbytes' 4-bit checkpoints: dequantized to the bit as bitsandbytes does it, exported, refused when damaged."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support import models
from tests.support.four_bit import quantized_folder, state_tensor
from toolkit.core.errors import ToolkitError
from toolkit.core.output_settings import ExportSettings
from toolkit.export import export, plan
from toolkit.formats import bnb_4bit, checkpoint
from toolkit.model import dequantized, merge_base

GOLDEN = Path(__file__).parent / "golden_4bit.json"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def ours(kind: str, packed: Any, parts: dict[str, Any], text: bytes) -> np.ndarray:
    state = bnb_4bit.parse_state(text, kind, "w")
    nested = (parts["nested_absmax"], parts["nested_quant_map"]) if "nested_absmax" in parts else None
    scales = bnb_4bit.block_scales(state, parts["absmax"], nested)
    return bnb_4bit.dequantize(state, packed, scales, 0, state.count).reshape(state.shape)


@pytest.mark.parametrize("case", json.loads(GOLDEN.read_text()), ids=lambda case: case["name"])
def test_golden_vectors_computed_by_bitsandbytes(case: dict[str, Any]) -> None:
    """Bytes in, bits out, as bitsandbytes 0.50.2 gave them on a CPU; float32 as its hexadecimal digits."""
    parts = {
        name: np.frombuffer(bytes.fromhex(text), np.uint8 if name == "absmax" and case["nested"] else np.float32)
        for name, text in case["parts"].items()
    }
    packed = np.frombuffer(bytes.fromhex(case["packed"]), np.uint8)
    found = ours(case["kind"], packed, parts, json.dumps(case["state"]).encode())
    assert found.astype("<f4").tobytes().hex() == case["values"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("nested", [False, True], ids=["plain", "double"])
def test_every_shape_against_bitsandbytes(kind: str, nested: bool) -> None:
    """Its formula for all devices: the CPU kernel itself is wrong where a row is no multiple of the block size."""
    functional = pytest.importorskip(
        "bitsandbytes.functional", reason="bitsandbytes is not installed, the golden vectors stand for it"
    )
    torch._dynamo.config.disable = True
    for shape in [(64, 64), (40, 100), (5, 7), (1, 1), (33,), (17, 2), (256, 512)]:
        for blocksize in (32, 64, 256, 4096):
            for dtype in DTYPES.values():
                weight = (0.05 * torch.randn(shape)).to(dtype)
                packed, state = functional.quantize_4bit(
                    weight, blocksize=blocksize, compress_statistics=nested, quant_type=kind
                )
                absmax = state.absmax
                if nested:
                    absmax = functional.dequantize_blockwise(absmax, state.state2) + state.offset
                code = functional.get_4bit_type(kind, "cpu")
                flat = torch.stack([packed.reshape(-1) >> 4, packed.reshape(-1) & 15], 1).reshape(-1)
                expected = code[flat.int()][: weight.numel()] * absmax.repeat_interleave(blocksize)[: weight.numel()]
                if shape[-1] % blocksize == 0:  # here bitsandbytes itself is the oracle
                    expected = functional.dequantize_4bit(packed, state)
                saved = state.as_dict(packed=True)
                text = bytes(saved.pop(f"quant_state.bitsandbytes__{kind}").numpy())
                found = ours(kind, packed.numpy().reshape(-1), {k: v.numpy() for k, v in saved.items()}, text)
                assert torch.equal(torch.from_numpy(found).to(dtype), expected.reshape(shape).to(dtype))


@pytest.mark.parametrize(
    ("kind", "nested", "dtype"),
    [
        ("nf4", True, torch.bfloat16),
        pytest.param("nf4", False, torch.float16, marks=pytest.mark.slow),
        pytest.param("fp4", True, torch.float16, marks=pytest.mark.slow),
        pytest.param("fp4", False, torch.bfloat16, marks=pytest.mark.slow),
    ],
)
def test_a_four_bit_base_with_an_adapter(tmp_path: Path, kind: str, nested: bool, dtype: torch.dtype) -> None:
    base = models.save_model(tmp_path / "base", dtype=dtype)
    four = quantized_folder(base, tmp_path / "four", kind, nested, skip="layers.1.mlp.up_proj", shard=200_000)
    plain = dequantized.plain_folder(four)
    adapter = models.save_adapter(tmp_path / "adapter", plain)
    target = tmp_path / "f32.gguf"
    export(four, adapter, {"F32": target}, models.TEMPLATE, "small")
    assert models.kl(plain, adapter, target) <= 1e-9
    assert models.kl(base, adapter, target) > 1e-3  # what 4 bits cost
    digest = export(four, None, {"Q4_K_M": target}, models.TEMPLATE, "small").figures["Q4_K_M"]["sha256"]
    assert digest == export(plain, None, {"Q4_K_M": target}, models.TEMPLATE, "small").figures["Q4_K_M"]["sha256"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("originals")
    base = models.save_model(folder / "base", dtype=torch.bfloat16, hidden_size=64, num_attention_heads=4)
    quantized_folder(base, folder / "four", "nf4", True)
    return folder


@pytest.fixture
def four(originals: Path, tmp_path: Path) -> Path:
    """A 4-bit folder to damage, the 16-bit one beside it."""
    shutil.copytree(originals, tmp_path, dirs_exist_ok=True)
    return tmp_path / "four"


def test_a_plain_folder_is_made_once(four: Path, tmp_path: Path) -> None:
    plain = dequantized.plain_folder(four)
    assert plain.parent == tmp_path / "cache" / "toolkit" / "bases"
    stamp = (plain / "config.json").stat().st_mtime_ns
    assert dequantized.plain_folder(four) == plain and (plain / "config.json").stat().st_mtime_ns == stamp
    assert dequantized.plain_folder(plain) == plain  # a folder in 16 bits is itself
    assert "quantization_config" not in json.loads((plain / "config.json").read_text())
    assert (plain / "tokenizer.json").read_bytes() == (four / "tokenizer.json").read_bytes()
    tensors = load_file(next(plain.glob("*.safetensors")))
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}


def test_slabs_make_no_difference(four: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = export(four, None, {"F16": tmp_path / "a.gguf"}, models.TEMPLATE, "small").figures["F16"]["sha256"]
    monkeypatch.setattr(checkpoint, "SLAB", 5_000)
    assert export(four, None, {"F16": tmp_path / "a.gguf"}, models.TEMPLATE, "small").figures["F16"]["sha256"] == first


def test_weights_packed_as_another_dtype(four: Path, tmp_path: Path) -> None:
    """bnb_4bit_quant_storage = bfloat16, for FSDP: the same bytes under another name."""
    expected = export(four, None, {"F16": tmp_path / "a.gguf"}, models.TEMPLATE, "small").figures["F16"]["sha256"]
    path = four / "model.safetensors"
    tensors = load_file(path)
    changed = dict(tensors)
    for name, tensor in tensors.items():
        if tensor.dtype == torch.uint8 and tensor.dim() == 2:
            changed[name] = tensor.reshape(-1).view(torch.bfloat16)[:, None]
    save_file(changed, path)
    assert sum(changed[name].dtype != tensors[name].dtype for name in tensors) == 14
    found = export(four, None, {"F16": tmp_path / "a.gguf"}, models.TEMPLATE, "small").figures["F16"]["sha256"]
    assert found == expected


NAME = "model.layers.1.mlp.down_proj.weight"


@pytest.mark.parametrize(
    ("part", "change", "words"),
    [
        (".absmax", None, "lacks absmax"),
        ("", None, "lacks its bytes"),
        (".nested_absmax", None, "without double quantization"),
        (".nested_absmax", lambda t: t.repeat(2), "nested scales"),
        (".absmax", lambda t: t[:-1], "scales for"),
        (".absmax", lambda t: t.float(), "scales in F32"),
        (".absmax", lambda t: t.short(), "stored as I16"),
        (".nested_quant_map", lambda t: t[:100], "a map of 100"),
        ("", lambda t: t[:-1], "bytes for"),
        (".nested_absmax", lambda t: t * float("nan"), "NaN or infinite"),
        (".nested_absmax", lambda t: t.fill_(3.4e38), "NaN or infinite"),  # beyond bfloat16
        (".quant_state.bitsandbytes__nf4", lambda t: t[:-3], "not one that bitsandbytes writes"),
        (".quant_state.bitsandbytes__nf4", lambda t: t[:0], "not one that bitsandbytes writes"),
    ],
)
def test_damaged_parts(four: Path, tmp_path: Path, part: str, change: Any, words: str) -> None:
    path = four / "model.safetensors"
    tensors = load_file(path)
    if change is None:
        del tensors[NAME + part]
    else:
        tensors[NAME + part] = change(tensors[NAME + part]).contiguous()
    save_file(tensors, path)
    with pytest.raises(ToolkitError, match=words) as caught:
        export(four, None, {"F32": tmp_path / "a.gguf"}, models.TEMPLATE, "small")
    assert NAME in caught.value.message
    assert not (tmp_path / "a.gguf").exists()


@pytest.mark.parametrize(
    "values",
    [
        {"shape": [10**9, 10**9]}, {"shape": []}, {"shape": None}, {"shape": [64, -1]}, {"blocksize": 0},
        {"blocksize": 48}, {"blocksize": "64"}, {"dtype": "int8"}, {"quant_type": "fp4"}, {"nested_blocksize": 0},
        {"nested_blocksize": 1.5}, {"nested_offset": float("inf")}, {"nested_offset": "x"}, {"shape": [32, 32]},
    ],
)  # fmt: skip
def test_a_damaged_state(four: Path, values: dict[str, Any]) -> None:
    path = four / "model.safetensors"
    tensors = load_file(path)
    key = f"{NAME}.quant_state.bitsandbytes__nf4"
    tensors[key] = state_tensor({**json.loads(bytes(tensors[key].numpy())), **values})
    save_file(tensors, path)
    with pytest.raises(ToolkitError, match="4-bit"):
        plan(four, None, ["F32"])


def test_the_sixteen_bit_weights_are_asked_for(four: Path, tmp_path: Path) -> None:
    from toolkit.model.base import resolve

    with pytest.raises(ToolkitError, match="has 4-bit weights") as caught:
        merge_base.check_merge_base(resolve(str(four)), ExportSettings())
    assert "model.base_16bit" in caught.value.hint and "as-trained" in caught.value.hint
    merge_base.check_merge_base(resolve(str(four)), ExportSettings(merge_base="as-trained"))
    merge_base.check_merge_base(resolve(str(tmp_path / "base")), ExportSettings())


def test_the_size_in_memory_and_on_disk_is_that_of_the_weights(four: Path, tmp_path: Path) -> None:
    assert plan(four, None, ["F16"]).bytes == plan(tmp_path / "base", None, ["F16"]).bytes
    stored = [(four / "model.safetensors").stat().st_size, (tmp_path / "base" / "model.safetensors").stat().st_size]
    assert stored[0] < 0.7 * stored[1]
