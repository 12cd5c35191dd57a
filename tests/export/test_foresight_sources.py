"""What is known of a base before it is trained: from its index or headers, from a hub, from a GGUF's header."""

import json
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFValueType
from huggingface_hub import constants
from safetensors.numpy import load_file, save_file

from tests.support import bases, models
from tests.support import hub as hubs
from tests.support.damage import edit_json
from tests.support.stubs import asked, layouts, refused, save_index, save_stub, settings
from toolkit.export import foresight, plan
from toolkit.export.foresight import look_ahead
from toolkit.formats.gguf_writer import header
from toolkit.model import base as labels
from toolkit.ollama import renderers


@pytest.fixture
def stub(tmp_path: Path) -> Path:
    return save_stub(tmp_path / "base")


def test_fp8_is_found_in_the_headers_where_the_config_is_silent(tmp_path: Path) -> None:
    base = bases.save_base(tmp_path / "base", "llama")
    bases.save_vocabulary(base)
    assert asked(base).ok
    recast(base / "model.safetensors", "model.layers.0.self_attn.q_proj.weight", "F8_E4M3")
    assert "is stored as F8_E4M3" in refused(base).found


def recast(path: Path, name: str, dtype: str) -> None:
    """Give a tensor of two bytes a value a dtype of one byte, in the header alone: its rows are then twice as many."""
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    header[name]["dtype"] = dtype
    header[name]["shape"][0] *= 2
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + length :])


def test_an_index_that_contradicts_the_config(stub: Path) -> None:
    save_index(stub, without="layers.1.")
    assert "states 2 layers" in refused(stub).found
    save_index(stub, without="layers.1.mlp.up_proj")
    assert "lacks tensor `model.layers.1.mlp.up_proj.weight`" in refused(stub).found
    save_index(stub, "model.vision.patch.weight")
    assert "1 unknown tensors: `model.vision.patch.weight`" in refused(stub).found


def test_a_download_that_was_cut_off_says_nothing_against_the_base(stub: Path) -> None:
    index = stub / "model.safetensors.index.json"
    places = json.loads(index.read_text())["weight_map"]
    places["lm_head.weight"] = "model-00002-of-00002.safetensors"
    index.write_text(json.dumps({"weight_map": places}))
    (stub / "model-00002-of-00002.safetensors").write_bytes(b"half")
    assert asked(stub).ok


def test_four_bit_weights_in_an_index_count_once(stub: Path) -> None:
    parts = [
        f"model.layers.0.self_attn.q_proj.weight.{part}"
        for part in ("absmax", "quant_map", "nested_absmax", "nested_quant_map", "quant_state.bitsandbytes__nf4")
    ]
    save_index(stub, *parts)
    assert asked(stub, "export.merge_base=as-trained").ok
    edit_json(stub / "config.json", quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    assert "where its 16-bit weights are" in refused(stub).found
    assert asked(stub, "export.merge_base=as-trained").ok


@pytest.mark.slow
def test_weights_of_any_size_are_judged_by_their_headers(tmp_path: Path) -> None:
    """Eight billion parameters in a sparse file: what is read is its header."""
    base = tmp_path / "base"
    bases.save_vocabulary(base)
    shape = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
             "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 128256}  # fmt: skip
    (base / "config.json").write_text(json.dumps({**bases.CONFIGS["llama"], **shape}), encoding="utf-8")
    header, end = {}, 0
    for layout in layouts(base):
        size = 2 * layout.shape[0] * (layout.shape[1] if len(layout.shape) > 1 else 1)
        header[layout.source] = {"dtype": "BF16", "shape": layout.shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    with (base / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    assert "Q4_K_M 4.9 GB" in asked(base).found


def test_what_is_foreseen_is_what_is_exported(tmp_path: Path) -> None:
    base = models.save_model(tmp_path / "base")
    targets = ["q_proj", "down_proj", "embed_tokens", "lm_head"]
    adapter = models.save_adapter(tmp_path / "adapter", base, target_modules=targets, r=16)
    config = settings(base, f"train.target_modules={','.join(targets)}", "export.quantizations=Q4_K_M,Q8_0")
    foreseen = foresight.foresee(base, config).plan
    real = plan(base, adapter, ["Q4_K_M", "Q8_0"])
    assert foreseen.bytes == real.bytes and foreseen.memory == real.memory
    assert [(one.layout, one.types, one.change is None) for one in foreseen.tensors] == [
        (one.layout, one.types, one.change is None) for one in real.tensors
    ]
    shutil.rmtree(adapter)
    (base / "model.safetensors").unlink()
    assert foresight.foresee(base, config).plan.bytes == real.bytes


@pytest.mark.parametrize(
    ("name", "renderer"),
    [("gemma4", "gemma4"), ("Gemma4ForConditionalGeneration", "gemma4"), ("nemotron_h_moe", "nemotron-3-nano"),
     ("NemotronHForCausalLM", "nemotron-3-nano"), ("laguna", "laguna"), ("llama", ""), ("Gemma3ForCausalLM", ""),
     ("gemma3", ""), ("qwen3", "")],
)  # fmt: skip
def test_the_renderer_that_ollama_forces(name: str, renderer: str) -> None:
    assert renderers.forced_renderer(name) == renderer
    assert bool(renderers.said_of(name)) == bool(renderer)


def test_a_prompt_that_ollama_overrides_is_said(stub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(renderers.FORCED, "llama", ("llama9", "Llama9"))
    found = asked(stub)
    assert found.ok is None and "RENDERER llama9" in found.found and "register" in found.found
    edit_json(stub / "config.json", architectures=["Gemma4ForConditionalGeneration"], model_type="gemma4")
    assert "RENDERER gemma4" in refused(stub).found


@pytest.fixture
def hub(stub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[hubs.Hub]:
    from huggingface_hub import constants

    for number in (1, 2):
        (stub / f"model-0000{number}-of-00002.safetensors").write_bytes(b"weights" * 1000)
    with hubs.serving(stub) as made:
        template = made.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", made.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
        yield made


def test_of_a_hub_id_only_small_files_are_fetched(hub: hubs.Hub, stub: Path, tmp_path: Path) -> None:
    assert look_ahead(settings("owner/model"), True) is None  # offline, and not here
    assert asked("owner/model", offline=False).ok
    edit_json(stub / "config.json", architectures=["MambaForCausalLM"])
    shutil.rmtree(tmp_path / "hf")
    assert "a Mamba model" in refused("owner/model", offline=False).found
    assert hub.asked == []  # no byte of a weight
    there = {path.name for path in (tmp_path / "hf").rglob("*") if path.is_symlink() or path.is_file()}
    assert {"config.json", "tokenizer.json", "model.safetensors.index.json"} <= there
    assert not [name for name in there if name.endswith(".safetensors")]


@pytest.fixture
def single(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[hubs.Hub]:
    """A hub's base whose weights are one file, without an index."""
    base = bases.save_base(tmp_path / "single", "llama")
    bases.save_vocabulary(base)
    with hubs.serving(base) as made:
        hubs.use(made, tmp_path, monkeypatch)
        yield made


def header_bytes(hub: hubs.Hub) -> int:
    with (hub.folder / "model.safetensors").open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
    return 8 + int(length)


def test_of_one_file_of_weights_the_header_alone_is_fetched(single: hubs.Hub) -> None:
    assert asked("owner/model", offline=False).ok
    assert single.bytes_of("model.safetensors") == header_bytes(single) < 20_000
    assert asked("owner/model", offline=False).ok  # and once
    assert single.bytes_of("model.safetensors") == header_bytes(single)


def test_a_header_on_the_hub_that_contradicts_the_config(single: hubs.Hub) -> None:
    recast(single.folder / "model.safetensors", "model.layers.0.self_attn.q_proj.weight", "F8_E4M3")
    assert "is stored as F8_E4M3" in refused("owner/model", offline=False).found


def test_layers_that_the_hubs_file_has_not(single: hubs.Hub) -> None:
    edit_json(single.folder / "config.json", num_hidden_layers=3)
    assert "states 3 layers" in refused("owner/model", offline=False).found


def test_four_bit_weights_in_one_file_on_the_hub(single: hubs.Hub) -> None:
    name = "model.layers.0.self_attn.q_proj.weight"
    tensors = load_file(single.folder / "model.safetensors")
    packed = {name: np.zeros((32 * 64, 1), np.uint8), f"{name}.absmax": np.zeros(64, np.float32),
              f"{name}.quant_map": np.zeros(16, np.float32),
              f"{name}.quant_state.bitsandbytes__nf4": np.zeros(80, np.uint8)}  # fmt: skip
    save_file({**tensors, **packed}, single.folder / "model.safetensors")
    assert asked("owner/model", "export.merge_base=as-trained", offline=False).ok


@pytest.mark.parametrize("fault", ["busy", "no size"])
def test_a_hub_that_gives_no_header_says_nothing_against_the_base(
    single: hubs.Hub, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """config.json alone decides then, as before."""
    if fault == "busy":
        single.fault = lambda *_: 503
    else:
        monkeypatch.setattr(hubs, "sibling", lambda path: {"rfilename": path.name})
    assert asked("owner/model", offline=False).ok
    edit_json(single.folder / "config.json", architectures=["MambaForCausalLM"])
    shutil.rmtree(Path(constants.HF_HUB_CACHE))
    assert "a Mamba model" in refused("owner/model", offline=False).found


def test_an_fp8_repository_names_the_one_with_16_bits(
    hub: hubs.Hub, stub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(labels, "unquantized", lambda label: f"{label}-BF16")  # the small hub has one name
    edit_json(stub / "config.json", quantization_config={"quant_method": "fp8"})
    assert refused("owner/model", offline=False).fix.startswith("model.base = owner/model-BF16")


def test_a_hub_that_refuses_says_nothing_against_the_base(hub: hubs.Hub) -> None:
    assert look_ahead(settings("gated/model"), False) is None
    assert look_ahead(settings("owner/other"), False) is None


def test_a_gguf_of_another_architecture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name, known in (("mamba", False), ("gemma4", False), ("llama", True)):
        path = tmp_path / f"{name}.gguf"
        path.write_bytes(header(name, {"general.type": ("model", GGUFValueType.STRING)}, []))
        found = look_ahead(settings(path), True)
        assert (found is None) is known  # one that is known is converted first
        if found is not None:
            assert f"architecture {name}" in found.found and "llama" in found.fix
            assert ("RENDERER" in found.found) == (name == "gemma4")


def test_a_gguf_with_experts_is_refused_by_its_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "mixtral.gguf"
    path.write_bytes(header("llama", {"llama.expert_count": (8, GGUFValueType.UINT32)}, []))
    found = look_ahead(settings(path), True)
    assert found is not None and "architecture llama and is a mixture of experts" in found.found
