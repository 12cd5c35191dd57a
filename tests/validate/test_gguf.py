"""Each kind of wrong GGUF file is found, and the right ones pass, against one measured reference."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader

from tests.support import scored_models
from tests.validate.conftest import Trained
from toolkit import llamacpp
from toolkit.core import console, hardware
from toolkit.core.manifest import record_file
from toolkit.export import export
from toolkit.llamacpp import together
from toolkit.prompt.templates import chat_template
from toolkit.validate.report import quantization_entry, row_entries


def entry(made: scored_models.World, trained: Trained, path: Path, quantization: str) -> dict[str, Any]:
    found = trained.measure(path, quantization)
    return quantization_entry(
        quantization,
        record_file(path, made.folder),
        found,
        made.config.validation.bound(quantization),
        trained.records[:4],
    )


def changed(made: scored_models.World, folder: Path, change: Callable[[GGUFReader], None]) -> Path:
    """Copy the F32 file and change it in place."""
    path = folder / "changed.gguf"
    shutil.copy(made.folder.gguf("F32"), path)
    reader = GGUFReader(str(path), "r+")
    change(reader)
    reader.data.flush()
    return path


def tensor(reader: GGUFReader, name: str) -> np.ndarray:
    return next(found.data for found in reader.tensors if found.name == name)


@pytest.mark.parametrize(("quantization", "most"), [("F32", 1e-9), ("F16", 2e-5), ("Q8_0", 0.01)])
def test_exported_files_pass(made: scored_models.World, trained: Trained, quantization: str, most: float) -> None:
    found = entry(made, trained, made.folder.gguf(quantization), quantization)
    assert found["passed"]
    assert found["problems"] == []
    assert 0 < found["mean_kl"] < most
    assert found["mean_kl"] <= found["kl_99"] <= found["max_kl"]
    assert found["prompts"] == len(scored_models.ROWS)
    assert found["top1"] == 1 if quantization != "Q8_0" else found["top1"] > 0.8
    assert found["bits_per_weight"] == pytest.approx({"F32": 32, "F16": 16, "Q8_0": 8.5}[quantization], abs=0.2)


@pytest.mark.slow
@pytest.mark.parametrize(("quantization", "most"), [("F32", 1e-9), ("Q8_0", 0.01)])
def test_a_file_larger_than_memory_is_read_once_for_many_rows(
    made: scored_models.World, trained: Trained, monkeypatch: pytest.MonkeyPatch, quantization: str, most: float
) -> None:
    passes: list[int] = []
    real = together.logits_together

    def counted(llm: Any, sequences: Any) -> Any:
        passes.append(len(sequences))
        return real(llm, sequences)

    path = made.folder.gguf(quantization)
    one_by_one = trained.measure(path, quantization).distance
    monkeypatch.setattr(together, "logits_together", counted)
    monkeypatch.setattr(together, "TOKENS", 500)
    monkeypatch.setattr(hardware, "available_memory", lambda: 1000)
    at_once = trained.measure(path, quantization).distance
    assert sum(passes) == 4 and max(passes) > 1
    assert one_by_one and at_once
    # 8-bit kernels round otherwise in another batch.
    np.testing.assert_allclose(at_once.nll, one_by_one.nll, rtol=1e-5 if quantization == "F32" else 5e-3)
    assert quantization == "F32" or at_once.kl.mean() == pytest.approx(one_by_one.kl.mean(), rel=0.05)
    assert at_once.kl.mean() < most


def test_rows_are_laid_into_passes_in_order() -> None:
    rows = [(list(range(length)), 1) for length in (900, 900, 300, 5000, 10, 2038, 1)]
    assert [[len(ids) for ids, _ in group] for group in together.groups(rows)] == [
        [900, 900],
        [300],
        [5000],
        [10, 2038],
        [1],
    ]
    assert [len(group) for group in together.groups(rows[4:5] * 100)] == [64, 36]
    assert together.groups([]) == []


@pytest.mark.slow
def test_f32_answers_equal_the_trained_models(
    made: scored_models.World, trained: Trained, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, GenerationConfig

    monkeypatch.setattr(console, "PLAIN_INTERVAL", 0.0)
    answers = trained.measure(made.folder.gguf("F32"), "F32", ask=True).answers
    shown = [line for line in capsys.readouterr().err.splitlines() if line.startswith("answers of F32: ")]
    assert 1 < len(shown) <= 8 * len(trained.prompts)  # each token, as it comes
    base = AutoModelForCausalLM.from_pretrained(made.base.folder, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, made.folder.adapter).eval()
    model.get_base_model().generation_config = GenerationConfig()
    for prompt, answer in zip(trained.prompts, answers, strict=True):
        ids = trained.tokenizer.prompt_ids(prompt)
        given = torch.tensor([ids])
        out = model.generate(
            input_ids=given, attention_mask=torch.ones_like(given), max_new_tokens=8, do_sample=False, eos_token_id=1
        )
        text = trained.tokenizer.decode([i for i in out[0, len(ids) :].tolist() if i != 1])
        assert answer == text.replace("\ufffd", "")  # random weights write broken UTF-8
    assert answers != trained.answers


@pytest.mark.slow
def test_another_adapter_fails(made: scored_models.World, trained: Trained, tmp_path: Path) -> None:
    scored_models.adapter(made.base.folder, tmp_path / "other", seed=2)
    path = tmp_path / "other.gguf"
    export(made.base.folder, tmp_path / "other", {"F32": path}, chat_template(trained.form, bos=True), "other")
    found = entry(made, trained, path, "F32")
    assert not found["passed"]
    assert found["mean_kl"] > 0.01
    assert "over its bound 1e-06" in found["problems"][0]
    assert found["unequal_prompts"] == 0


def test_the_base_without_the_adapter_fails_even_at_the_coarsest_bound(
    made: scored_models.World, trained: Trained, tmp_path: Path
) -> None:
    path = tmp_path / "base.gguf"
    export(made.base.folder, None, {"Q8_0": path}, chat_template(trained.form, bos=True), "base")
    assert not entry(made, trained, path, "Q8_0")["passed"]


@pytest.mark.slow
def test_unpermuted_attention_fails(made: scored_models.World, trained: Trained, tmp_path: Path) -> None:
    def swap(reader: GGUFReader) -> None:
        weights = tensor(reader, "blk.0.attn_q.weight")  # the classic: rows in the other rotary order
        heads = weights.reshape(4, 8, 2, 64).swapaxes(1, 2).reshape(weights.shape).copy()
        weights[:] = heads

    found = entry(made, trained, changed(made, tmp_path, swap), "F32")
    assert not found["passed"]
    assert found["mean_kl"] > 1e-4


def test_one_weight_out_of_place_fails_f32(made: scored_models.World, trained: Trained, tmp_path: Path) -> None:
    def nudge(reader: GGUFReader) -> None:
        tensor(reader, "blk.1.ffn_down.weight")[3, 5] += 1.0

    assert not entry(made, trained, changed(made, tmp_path, nudge), "F32")["passed"]


@pytest.mark.slow
def test_nan_weights_are_a_named_failure(made: scored_models.World, trained: Trained, tmp_path: Path) -> None:
    def poison(reader: GGUFReader) -> None:
        tensor(reader, "output_norm.weight")[0] = np.nan

    path = changed(made, tmp_path, poison)
    found = entry(made, trained, path, "F32")
    assert not found["passed"]
    assert found["mean_kl"] is None and found["perplexity"] is None and found["top1"] is None
    assert "not finite at" in found["problems"][0]
    rows = row_entries(trained.records[:4], trained.measure(path, "F32"))
    assert [row["kl"] for row in rows] == [None] * 4


@pytest.mark.slow
def test_swapped_tokens_fail_and_are_shown(made: scored_models.World, trained: Trained, tmp_path: Path) -> None:
    def swap(reader: GGUFReader) -> None:
        field = reader.fields["tokenizer.ggml.tokens"]
        letters = {}
        for index in field.data:
            text = bytes(field.parts[index])
            if text in (b"e", b"q"):
                letters[text] = field.parts[index]
        letters[b"e"][:], letters[b"q"][:] = ord("q"), ord("e")

    found = entry(made, trained, changed(made, tmp_path, swap), "F32")
    assert not found["passed"]
    assert found["unequal_prompts"] == found["unequal_records"] == len(scored_models.ROWS)
    assert len(found["unequal_examples"]) == 3
    example = found["unequal_examples"][0]
    assert (example["row"], example["what"]) == (10, "prompt")
    assert example["expected"] == trained.tokenizer.prompt_ids(trained.records[0].prompt) != example["found"]
    assert any("6 of 6 prompts have token ids that differ" in problem for problem in found["problems"])


def set_value(key: str, value: int) -> Callable[[GGUFReader], None]:
    def change(reader: GGUFReader) -> None:
        reader.fields[key].parts[-1][0] = value

    return change


def test_another_eos_fails(made: scored_models.World, trained: Trained, tmp_path: Path) -> None:
    path = changed(made, tmp_path, set_value("tokenizer.ggml.eos_token_id", 0))
    found = entry(made, trained, path, "F32")
    assert found["problems"] == ["EOS is 0, but training used 1 (`<|end_of_text|>`)"]


@pytest.mark.slow
def test_a_missing_bos_fails(made: scored_models.World, trained: Trained, tmp_path: Path) -> None:
    found = entry(made, trained, changed(made, tmp_path, set_value("tokenizer.ggml.add_bos_token", 0)), "F32")
    assert found["unequal_prompts"] == len(scored_models.ROWS)
    assert any("training puts [0] before" in problem for problem in found["problems"])


@pytest.mark.slow
def test_an_eos_behind_every_prompt_fails(made: scored_models.World, trained: Trained, tmp_path: Path) -> None:
    found = entry(made, trained, changed(made, tmp_path, set_value("tokenizer.ggml.add_eos_token", 1)), "F32")
    assert found["unequal_prompts"] == len(scored_models.ROWS)
    assert any("nothing after" in problem for problem in found["problems"])


@pytest.mark.slow
def test_another_chat_template_fails(made: scored_models.World, trained: Trained, tmp_path: Path) -> None:
    path = tmp_path / "other.gguf"
    template = chat_template(trained.form, bos=True)
    export(made.base.folder, made.folder.adapter, {"F32": path}, template.replace("English", "pt-BR"), "other")
    assert entry(made, trained, path, "F32")["problems"] == ["its chat template does not match these prompt settings"]


@pytest.mark.parametrize("length", [1023, 1024, 1025])
def test_a_template_of_any_length_is_read_whole(
    made: scored_models.World, trained: Trained, tmp_path: Path, length: int
) -> None:
    """llama-cpp-python's own metadata loses the last byte of a value that fills its buffer exactly."""
    from toolkit.validate.gguf import check_parity

    path, template = tmp_path / "long.gguf", "{{ messages }}".ljust(length, "x")
    export(made.base.folder, made.folder.adapter, {"F32": path}, template, "long")
    with llamacpp.opened(path, 64) as llm:
        width = trained.reference.logits.shape[1]
        assert check_parity(llm, [], trained.tokenizer, template, width).differences == []
        assert check_parity(llm, [], trained.tokenizer, template[:-1], width).differences != []


def test_another_vocabulary_size_is_said_and_not_scored(
    made: scored_models.World, trained: Trained, tmp_path: Path
) -> None:
    scored_models.base_model(tmp_path, extra_rows=8)
    path = tmp_path / "wide.gguf"
    export(tmp_path, None, {"F32": path}, chat_template(trained.form, bos=True), "wide")
    found = entry(made, trained, path, "F32")
    width = trained.reference.logits.shape[1]
    assert found["problems"] == [f"its vocabulary has {width + 8} tokens, the trained model's has {width}"]
    assert found["mean_kl"] is None and not found["passed"]
