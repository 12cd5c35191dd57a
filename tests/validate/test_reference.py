import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tests.support import scored_models
from tests.validate.conftest import Trained
from toolkit import llamacpp
from toolkit.core.errors import MISSING, ToolkitError
from toolkit.core.records import spread
from toolkit.export import export
from toolkit.prompt import held_out
from toolkit.prompt.format import prompt_format
from toolkit.prompt.tokenizer import load_tokenizer as load
from toolkit.validate import recomputed, reference, spill
from toolkit.validate.layers import head, open_trained
from toolkit.validate.metrics import perplexity


def test_the_head_is_read_once_for_several_rows(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    """In turn, as a file is compared: each block of answer tokens is computed once, whatever the rows' ends."""
    known, reads, real = trained.reference.logits, list[int](), head
    whole = known[:]

    def counted(given: Any) -> Any:
        reads.append(1)
        return real(given)

    monkeypatch.setattr(recomputed, "head", counted)
    monkeypatch.setattr(recomputed, "chunk_size", lambda _: 8)
    logits = recomputed.Recomputed(known.trained, known.states, known.positions)
    parts = [logits[start : start + 5] for start in range(0, len(logits), 5)]
    assert len(logits) > 16 and len(reads) == -(-len(logits) // 8)
    np.testing.assert_allclose(np.concatenate(parts), whole, atol=1e-5)
    assert logits[3:3].shape == (0, whole.shape[1])


def deleted_files() -> list[str]:
    """The files that this process holds open although no name leads to them."""
    links = []
    for entry in Path("/proc/self/fd").iterdir():
        try:
            links.append(str(entry.readlink()))
        except OSError:
            continue
    return [link for link in links if link.endswith("(deleted)")]


def test_spill_holds_what_is_written_and_has_no_name(tmp_path: Path) -> None:
    before = len(deleted_files())
    with spill.spill(tmp_path, 5, 7) as array:
        assert array.shape == (5, 7)
        assert array.dtype == np.float32
        array[:] = np.arange(35).reshape(5, 7)
        assert array[4, 6] == 34
        assert list(tmp_path.iterdir()) == []
        assert len(deleted_files()) > before
        del array
    assert list(tmp_path.iterdir()) == []
    assert len(deleted_files()) == before


def test_spill_leaves_nothing_behind_on_failure(tmp_path: Path) -> None:
    before = len(deleted_files())
    with pytest.raises(RuntimeError, match="midway"), spill.spill(tmp_path, 5, 7):
        raise RuntimeError("midway")
    assert list(tmp_path.iterdir()) == []
    assert len(deleted_files()) == before


def test_spill_checks_the_disk_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=spill.RESERVE + 2_000_000))
    with pytest.raises(ToolkitError) as caught, spill.spill(tmp_path, 1000, 1000):
        pass
    assert "the last layer's states need 4.0 MB of disk" in caught.value.message
    assert "fewer rows (`validate.rows`)" in caught.value.hint
    with spill.spill(tmp_path, 500, 999):
        pass


def test_spill_survives_a_disk_that_fills_after_the_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, start: int, length: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(ToolkitError, match="of disk in"), spill.spill(tmp_path, 5, 7):
        pass
    assert list(tmp_path.iterdir()) == []


def test_spill_allocates_its_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    allocated: list[os.stat_result] = []
    real = os.posix_fallocate

    def allocate(file: int, offset: int, length: int) -> None:
        real(file, offset, length)
        allocated.append(os.fstat(file))

    monkeypatch.setattr(os, "posix_fallocate", allocate)
    with spill.spill(tmp_path, 100, 1000):
        pass
    assert allocated[0].st_size == 400_000
    assert allocated[0].st_blocks * 512 >= 400_000


def test_reference_equals_transformers_over_whole_records(made: scored_models.World, trained: Trained) -> None:
    """The sliced logits are those of a plain forward pass; base perplexity is the base's own."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(made.base.folder, dtype=torch.float32).eval()
    losses = {}
    position = 0
    for name in ("base", "trained"):
        model = base if name == "base" else PeftModel.from_pretrained(base, made.folder.adapter).eval()
        total, count, position = 0.0, 0, 0
        for record in trained.records[:4]:
            ids = torch.tensor([record.ids])
            labels = ids.clone()
            labels[0, : record.start] = -100
            with torch.no_grad():
                out = model(input_ids=ids, labels=labels)
            n = len(record.ids) - record.start
            if name == "trained":
                mine = trained.reference.logits[position : position + n]
                assert np.allclose(mine, out.logits[0, record.start - 1 : -1].numpy(), atol=2e-5)
            position, total, count = position + n, total + float(out.loss) * n, count + n
        losses[name] = float(np.exp(total / count))
    assert position == len(trained.reference.logits)
    assert perplexity(trained.reference.nll) == pytest.approx(losses["trained"], rel=1e-5)
    assert perplexity(trained.reference.base_nll) == pytest.approx(losses["base"], rel=1e-5)
    assert losses["base"] != pytest.approx(losses["trained"], rel=0.01)


def test_answers_before_are_the_bases_own_greedy_ones(
    made: scored_models.World, trained: Trained, tmp_path: Path
) -> None:
    """llama.cpp with the bare base gives the same text: no adapter, no repetition penalty from generation_config."""
    assert json.loads((made.base.folder / "generation_config.json").read_text())["repetition_penalty"] == 5.0
    path = tmp_path / "base.gguf"
    export(made.base.folder, None, {"F32": path}, "{{ messages }}", "base")
    with llamacpp.opened(path, 512, exact=True) as llm:
        for prompt, before in zip(trained.prompts, trained.answers, strict=True):
            ids = trained.tokenizer.prompt_ids(prompt)
            answer = "".join(llamacpp.generate(llm, ids, 8, trained.form.stops, llamacpp.Sampling()))
            # Random weights write broken UTF-8, which llama-cpp-python drops and transformers shows as U+FFFD.
            assert before is not None and answer == before.replace("\ufffd", "")


def test_held_out_records_are_read_as_training_reads_them(made: scored_models.World, trained: Trained) -> None:
    assert [record.row for record in trained.records] == [10, 11, 12, 13, 14, 15]  # U+2028 in row 13 is no line's end
    for record in trained.records:
        assert record.ids[0] == trained.tokenizer.bos
        assert record.ids[-1] == record.targets[-1] == trained.tokenizer.eos
        assert record.ids.count(trained.tokenizer.eos) == 1
        assert record.seen[record.first + 1] == record.targets[0]
        assert (record.prompt + record.answer).text.startswith(record.prompt.text)


def test_a_cut_answer_is_not_scored_for_an_end(made: scored_models.World, tmp_path: Path) -> None:
    form, tokenizer = prompt_format(made.config.prompt), load(made.base.folder)
    rows = [{"row": 1, "instruction": "a", "input": "b", "output": "c d", "truncated": cut} for cut in (False, True)]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    whole, cut = held_out.read_held_out(tmp_path / "test.jsonl", form, tokenizer)
    assert whole.ids == [*cut.ids, tokenizer.eos] and whole.start == cut.start
    assert list(whole.targets) == [*cut.targets, tokenizer.eos] and whole.seen == cut.ids


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no prepared data"),
        ("", "holds no held-out records"),
        ('{"row": 1, "instruction": "a", "input": "b", "output": "c"}\nnot json\n', "line 2 is not a record"),
        ('{"row": 1, "instruction": "a", "input": "b"}\n', "line 1 is not a record: `output` is not text"),
        (
            '{"row": 1, "instruction": "a", "input": "b", "output": "c", "truncated": true}\n'
            '{"row": 2, "instruction": "a", "input": "b", "output": "", "truncated": true}\n',
            "line 2 has an answer without a token",
        ),
    ],
)
def test_bad_held_out_files(made: scored_models.World, tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "test.jsonl"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    with pytest.raises(ToolkitError, match=message) as caught:
        held_out.read_held_out(path, prompt_format(made.config.prompt), load(made.base.folder))
    assert caught.value.hint


def test_an_adapter_of_another_base_is_refused(made: scored_models.World, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(made.folder.adapter, tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    weights = {name: torch.cat([tensor, tensor], dim=1) for name, tensor in load_file(path).items()}
    save_file(weights, path)
    with pytest.raises(ToolkitError, match=r"does not fit the base .*size mismatch"):
        open_trained(made.base.folder, tmp_path / "adapter")


def test_a_pickled_adapter_is_never_loaded(made: scored_models.World, tmp_path: Path) -> None:
    shutil.copytree(made.folder.adapter, tmp_path / "adapter")
    (tmp_path / "adapter" / "adapter_model.safetensors").rename(tmp_path / "adapter" / "adapter_model.bin")
    with pytest.raises(ToolkitError, match=r"has no adapter_model\.safetensors") as caught:
        open_trained(made.base.folder, tmp_path / "adapter")
    assert caught.value.exit_code == MISSING


def test_nan_in_the_adapter_is_named_and_leaves_nothing(
    made: scored_models.World, trained: Trained, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(made.folder.adapter, tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    weights = load_file(path)
    next(iter(weights.values()))[0, 0] = float("nan")
    save_file(weights, path)
    (tmp_path / "run").mkdir()
    with (
        pytest.raises(ToolkitError, match="row 10: the trained model gives logits that are not finite"),
        reference.measured(open_trained(made.base.folder, tmp_path / "adapter"), trained.records[:1], tmp_path / "run"),
    ):
        pass
    assert list((tmp_path / "run").iterdir()) == []


def test_scored_records_are_spread_over_the_whole_side() -> None:
    rows: list[Any] = list(range(10))
    chosen: list[Any] = spread(rows, 4)
    assert chosen == [0, 2, 5, 7]
    assert spread(rows, 10) == spread(rows, 99) == rows
