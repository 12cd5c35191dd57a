"""The importance matrix: from training records only, right by an independent count, and used as llama.cpp uses it."""

import contextlib
import ctypes
import json
import subprocess
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.conftest import needed, ollama_binary
from tests.support import families, models
from tests.support.damage import thorough
from tests.support.properties import tries
from toolkit.core.errors import ToolkitError
from toolkit.core.input_settings import PromptSettings
from toolkit.core.run_folder import RunFolder
from toolkit.export import export, imatrix, imatrix_file, plan
from toolkit.formats.ggml_types import BASE
from toolkit.formats.gguf_reader import open_gguf
from toolkit.prompt.format import prompt_format
from toolkit.prompt.renderings import prompt_text, render
from toolkit.prompt.tokenizer import load_tokenizer

FORM = prompt_format(PromptSettings())
LINEAR = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("imatrix")
    base = models.save_model(folder / "base", dtype=torch.bfloat16, num_hidden_layers=3)
    models.save_adapter(folder / "adapter", base)
    return folder


def run_folder(path: Path, **splits: list[str]) -> RunFolder:
    """A run folder whose records have these answers."""
    folder = RunFolder(path / "run", "small")
    folder.data.mkdir(parents=True)
    for side in ("train", "val", "test"):
        records = [{"instruction": "Explain:", "input": f"Why {text}?", "output": text} for text in splits[side]]
        folder.split_file(side).write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def squares_by_hand(base: Path, adapter: Path | None, ids: list[list[int]]) -> dict[str, np.ndarray]:
    """The same sums from PEFT's unmerged model, whole, its inputs taken from the functions that compute, not hooks."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="eager").eval()
    if adapter:
        model = PeftModel.from_pretrained(model, adapter).eval()
    kind = "base_layer" if adapter else "in_features"
    places = {id(module.weight): name for name, module in model.named_modules() if hasattr(module, kind)}
    sums: dict[str, np.ndarray] = {}
    linear = torch.nn.functional.linear

    def counted(rows: torch.Tensor, weight: torch.Tensor, bias: Any = None) -> torch.Tensor:
        if id(weight) in places:
            square = (rows.double() ** 2).reshape(-1, rows.shape[-1]).sum(0).numpy()
            sums[places[id(weight)]] = sums.get(places[id(weight)], 0) + square
        return linear(rows, weight, bias)

    torch.nn.functional.linear = counted
    try:
        with torch.no_grad():
            for chunk in ids:
                model(torch.tensor([chunk]))
    finally:
        torch.nn.functional.linear = linear
    return sums


@pytest.mark.slow
def test_it_equals_an_independent_count(work: Path) -> None:
    ids = np.random.default_rng(0).integers(0, 480, (3, 64)).tolist()
    planned = plan(work / "base", work / "adapter", ["Q4_K_M"])
    sums, counts = imatrix.compute(work / "base", planned, ids)
    assert set(sums) == {f"blk.{layer}.{name}.weight" for layer in range(3) for name in LINEAR}
    assert set(counts.values()) == {3 * 64}
    expected = squares_by_hand(work / "base", work / "adapter", ids)
    assert len(expected) == len(sums)
    for tensor in planned.tensors:
        if tensor.name in sums:
            by_hand = expected["base_model.model." + tensor.layout.source.removesuffix(".weight")]
            np.testing.assert_allclose(sums[tensor.name], by_hand, rtol=1e-4)
    untrained, _ = imatrix.compute(work / "base", plan(work / "base", None, ["Q4_K_M"]), ids)
    assert not np.allclose(untrained["blk.2.ffn_down.weight"], sums["blk.2.ffn_down.weight"], rtol=1e-2)


@pytest.mark.parametrize(
    "family",
    [
        pytest.param(name, marks=() if name in ("phi3.5", "gemma2", "qwen3") else pytest.mark.slow)
        for name in families.FAMILIES
    ],
)
def test_other_families_scale_and_fuse_what_they_look_up(tmp_path: Path, family: str) -> None:
    base = families.save(tmp_path / "base", family)
    ids = np.random.default_rng(0).integers(0, 480, (2, 64)).tolist()
    planned = plan(base, None, ["IQ2_XXS"], weighed=True)
    sums, _ = imatrix.compute(base, planned, ids)
    expected = squares_by_hand(base, None, ids)
    del expected["lm_head"]
    sources = {tensor.name: tensor.layout.source.removesuffix(".weight") for tensor in planned.tensors}
    assert {sources[name] for name in sums} == set(expected)
    assert set(sums) == {name for name, source in sources.items() if source in expected}
    orders = {tensor.name: tensor.layout.order for tensor in planned.tensors}
    for name, found in sums.items():
        by_hand, order = expected[sources[name]], orders[name]
        if order and order.columns:  # GGUF has the inputs of this matrix in another order
            by_hand = order.applied(np.asarray(by_hand)[None])[0]
        np.testing.assert_allclose(found, by_hand, rtol=1e-4)
    # the plan made before it foresees what is chosen with it
    matrix = imatrix_file.Imatrix(sums, dict.fromkeys(sums, 128), 2, 64, "x").importance()
    assert plan(base, None, ["IQ2_XXS"], imatrix=matrix) == planned


def test_the_chunks_hold_training_records_only(work: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(work / "base")
    trained = [f"water {number}" for number in range(40)]
    folder = run_folder(tmp_path, train=trained, val=["secret fever"], test=["secret doctor"])
    pieces = imatrix.chunks(folder, FORM, tokenizer, 128)
    assert len(pieces) > 3
    assert {len(piece) for piece in pieces} == {128}
    assert {piece[0] for piece in pieces} == {tokenizer.bos}
    whole = tokenizer.decode([token for piece in pieces for token in piece])
    assert "secret" not in whole
    assert "water 7" in whole
    record = tokenizer.record_ids(prompt_text(FORM, "Why water 3?", "Explain:"), "water 3")[0]
    joined = ",".join(str(token) for piece in imatrix.chunks(folder, FORM, tokenizer, 10**6) for token in piece)
    assert ",".join(map(str, record[1:])) in joined  # exactly the ids that training saw


def test_the_chunks_hold_chats_with_their_earlier_turns(work: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(work / "base")
    folder = run_folder(tmp_path, train=[f"water {number}" for number in range(9)], val=["a"], test=["b"])
    chat = {"instruction": "Explain:", "history": [["Why rest?", "water"]], "input": "Why a?", "output": "a"}
    with folder.split_file("train").open("a") as file:
        file.write(json.dumps(chat) + "\n")  # its last turn alone is held out: as another record
    joined = ",".join(str(token) for piece in imatrix.chunks(folder, FORM, tokenizer, 10**6) for token in piece)
    prompt = render(FORM, "Why a?", "Explain:", [("Why rest?", "water")], tokenizer.eos_text)
    assert ",".join(map(str, tokenizer.record_ids(prompt, "a")[0][1:])) in joined
    folder.split_file("test").write_text(json.dumps(chat) + "\n")
    with pytest.raises(ToolkitError, match="1 records of"):
        imatrix.chunks(folder, FORM, tokenizer, 128)


def test_a_training_split_with_a_held_out_record_is_refused(work: Path, tmp_path: Path) -> None:
    folder = run_folder(tmp_path, train=["a", "b", "c"], val=["d"], test=["c"])
    with pytest.raises(ToolkitError, match=r"1 records of .*train\.jsonl` are also held out"):
        imatrix.chunks(folder, FORM, load_tokenizer(work / "base"), 128)


def test_the_number_of_chunks_is_bounded(work: Path, tmp_path: Path) -> None:
    folder = run_folder(tmp_path, train=[f"water {number}" for number in range(500)], val=[], test=[])
    assert len(imatrix.chunks(folder, FORM, load_tokenizer(work / "base"), 64)) == imatrix.CHUNKS


def test_no_training_split(work: Path, tmp_path: Path) -> None:
    with pytest.raises(ToolkitError, match="no prepared data"):
        imatrix.chunks(RunFolder(tmp_path, "x"), FORM, load_tokenizer(work / "base"), 64)


def some_matrix(columns: dict[str, int]) -> imatrix_file.Imatrix:
    random = np.random.default_rng(5)
    sums = {name: (random.random(count) ** 6 * 1e4).astype(np.float32) for name, count in columns.items()}
    return imatrix_file.Imatrix(sums, dict.fromkeys(sums, 1536), 3, 512, "data/train.jsonl")


def test_the_file_is_llama_cpps(tmp_path: Path) -> None:
    matrix = some_matrix({"blk.0.attn_q.weight": 64, "blk.0.ffn_down.weight": 96})
    path = tmp_path / "gguf" / "small-imatrix.gguf"
    imatrix_file.write_imatrix(path, matrix)
    reader = gguf.GGUFReader(path)
    fields = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    assert fields == {
        "general.type": "imatrix",
        "imatrix.datasets": ["data/train.jsonl"],
        "imatrix.chunk_count": 3,
        "imatrix.chunk_size": 512,
    }
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    assert list(tensors) == [
        f"blk.0.{name}.weight.{end}" for name in ("attn_q", "ffn_down") for end in ("in_sum2", "counts")
    ]
    assert tensors["blk.0.ffn_down.weight.in_sum2"].shape.tolist() == [96]
    assert tensors["blk.0.ffn_down.weight.counts"].data.tolist() == [1536.0]
    assert {tensor.tensor_type for tensor in reader.tensors} == {gguf.GGMLQuantizationType.F32}
    again = imatrix_file.read_imatrix(path)
    assert (again.counts, again.chunks, again.chunk_size, again.dataset) == (matrix.counts, 3, 512, "data/train.jsonl")
    assert all(np.array_equal(again.sums[name], matrix.sums[name]) for name in matrix.sums)


def llama_quantize(source: Path, target: Path, quantization: str, importance: dict[str, np.ndarray]) -> None:
    """llama_model_quantize with the entries of an imatrix file, divided as llama.cpp's tools/quantize does."""
    import llama_cpp

    entry = llama_cpp.llama_model_imatrix_data
    rows = (entry * (len(importance) + 1))()
    for place, (name, values) in zip(rows, importance.items(), strict=False):
        place.name, place.size = name.encode(), values.size
        place.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread = int(BASE[quantization][1]), 2
    params.imatrix = ctypes.cast(rows, type(params.imatrix))
    assert llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), params) == 0


@pytest.mark.parametrize(
    "names", [("Q4_K_M", "Q8_0"), pytest.param(("Q5_K_S", "Q6_K", "Q3_K_M", "Q2_K"), marks=pytest.mark.slow)]
)
def test_llama_cpp_quantizes_to_the_same_bytes(work: Path, tmp_path: Path, names: tuple[str, ...]) -> None:
    ids = np.random.default_rng(1).integers(0, 480, (2, 128)).tolist()
    planned = plan(work / "base", work / "adapter", ["Q4_K_M"])
    sums, counts = imatrix.compute(work / "base", planned, ids)
    path = tmp_path / "imatrix.gguf"
    imatrix_file.write_imatrix(path, imatrix_file.Imatrix(sums, counts, 2, 128, "x", "ab" * 32))
    stored = {tensor.name: tensor.data.reshape(-1) for tensor in gguf.GGUFReader(path).tensors}
    theirs_in = {
        name.removesuffix(".in_sum2"): np.ascontiguousarray(values / stored[name.replace(".in_sum2", ".counts")])
        for name, values in stored.items()
        if name.endswith(".in_sum2")
    }
    importance = imatrix_file.read_imatrix(path).importance()
    targets = {name: tmp_path / f"{name}.gguf" for name in ("F32", *names)}
    weighed = export(work / "base", work / "adapter", targets, models.TEMPLATE, "small", imatrix=importance).figures
    plain = {name: tmp_path / f"plain-{name}.gguf" for name in names}
    unweighed = export(work / "base", work / "adapter", plain, models.TEMPLATE, "small").figures
    for name in names:
        oracle = tmp_path / "oracle.gguf"
        llama_quantize(targets["F32"], oracle, name, theirs_in)
        expected = {tensor.name: tensor for tensor in gguf.GGUFReader(oracle).tensors}
        for tensor in gguf.GGUFReader(targets[name]).tensors:
            assert tensor.tensor_type == expected[tensor.name].tensor_type
            assert np.array_equal(tensor.data, expected[tensor.name].data), f"{name}: {tensor.name}"
        assert (weighed[name]["sha256"] != unweighed[name]["sha256"]) == (name != "Q8_0")


@pytest.mark.slow
@pytest.mark.ollama
def test_llama_quantize_itself_reads_the_file(work: Path, tmp_path: Path) -> None:
    """The program that comes with an Ollama server, given our F32 file and our imatrix file."""
    program = ollama_binary().parents[1] / "lib" / "ollama" / "llama-quantize"
    needed(program.is_file(), str(program))
    ids = np.random.default_rng(1).integers(0, 480, (2, 128)).tolist()
    sums, counts = imatrix.compute(work / "base", plan(work / "base", work / "adapter", ["Q4_K_M"]), ids)
    matrix = imatrix_file.Imatrix(sums, counts, 2, 128, "data/train.jsonl", "ab" * 32)  # with the key of our own
    imatrix_file.write_imatrix(tmp_path / "imatrix.gguf", matrix)
    targets = {name: tmp_path / f"{name}.gguf" for name in ("F32", "Q4_K_M")}
    export(work / "base", work / "adapter", targets, models.TEMPLATE, "small", imatrix=matrix.importance())
    oracle = tmp_path / "oracle.gguf"
    call: list[str | Path] = [program, "--imatrix", tmp_path / "imatrix.gguf", targets["F32"], oracle, "Q4_K_M"]
    done = subprocess.run(call, capture_output=True, text=True)
    assert done.returncode == 0 and f"loaded {len(sums)} importance matrix entries" in done.stdout + done.stderr, done
    expected = {tensor.name: tensor.data for tensor in gguf.GGUFReader(oracle).tensors}
    for tensor in gguf.GGUFReader(targets["Q4_K_M"]).tensors:
        assert np.array_equal(tensor.data, expected[tensor.name]), tensor.name


@pytest.mark.parametrize("values", [np.ones(7, np.float32), np.full(256, np.nan, np.float32), -np.ones(256)])
def test_a_matrix_that_does_not_fit_is_refused(work: Path, tmp_path: Path, values: Any) -> None:
    with pytest.raises(ToolkitError, match=r"importance matrix has .* for `blk.1.attn_k.weight`"):
        export(work / "base", None, {"Q4_K_M": tmp_path / "a.gguf"}, "", "x", imatrix={"blk.1.attn_k.weight": values})
    assert not list(tmp_path.iterdir())


@thorough(60, 1000)
def test_any_damage_to_the_file_is_a_toolkit_error(tmp_path: Path, examples: int) -> None:
    path = tmp_path / "imatrix.gguf"
    imatrix_file.write_imatrix(path, some_matrix({"blk.0.attn_q.weight": 8, "blk.1.attn_q.weight": 8}))
    whole = path.read_bytes()

    edits = st.lists(st.tuples(st.integers(0, len(whole) - 1), st.binary(min_size=1, max_size=9)), max_size=3)

    @settings(max_examples=tries(examples), deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(edits, st.integers(0, len(whole)) | st.just(len(whole)))
    def check(edits: list[tuple[int, bytes]], length: int) -> None:
        data = bytearray(whole)
        for place, new in edits:
            data[place : place + len(new)] = new
        path.write_bytes(data[:length])
        try:
            found = imatrix_file.read_imatrix(path)
        except ToolkitError:
            return
        assert all(np.isfinite(values).all() for values in found.importance().values())

    check()


@thorough(60, 2000)
def test_any_bytes_as_gguf(tmp_path: Path, examples: int) -> None:
    path = tmp_path / "any.gguf"

    @settings(max_examples=tries(examples), deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(st.binary(max_size=80))
    def check(data: bytes) -> None:
        for version in (2, 3):
            path.write_bytes(b"GGUF" + version.to_bytes(4, "little") + data)
            with contextlib.suppress(ToolkitError):
                open_gguf(path)

    check()
