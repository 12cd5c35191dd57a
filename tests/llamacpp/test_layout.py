"""Weights are copied into llama.cpp's own layout only where there is memory for the copy."""

from pathlib import Path

import numpy as np
import pytest

from tests.support import memory, wide
from tests.support.scored_models import tokenizer
from toolkit import llamacpp
from toolkit.core import hardware
from toolkit.export import export
from toolkit.llamacpp.layout import copies_weights

SIZES = {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 8, "num_key_value_heads": 4,
         "vocab_size": 2048}  # fmt: skip


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("layout")
    wide.save_wide(folder / "base", 3, **SIZES)
    wide.save_lora(folder / "adapter", 3, **SIZES)
    tokenizer(folder / "base")
    export(folder / "base", folder / "adapter", {"Q4_0": folder / "a.gguf"}, "{{ messages }}", "wide")
    return folder / "a.gguf"


@pytest.mark.slow
def test_short_memory_keeps_the_weights_in_the_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size, taken, logits = file.stat().st_size, {}, {}
    for times in (100, 2):
        monkeypatch.setattr(hardware, "available_memory", lambda times=times: times * size)
        assert copies_weights(file) == (times == 100)
        with memory.watched() as seen, llamacpp.opened(file, 32) as llm:
            logits[times] = llamacpp.logits(llm, [1, 2, 3, 4], 0)
        taken[times] = seen.taken
    assert taken[2] < size / 2  # nothing but what is computed
    assert taken[100] > taken[2] - size / 4  # a build without other layouts copies nothing
    assert np.allclose(logits[2], logits[100], atol=0.05 * np.abs(logits[2]).max())


def test_the_default_of_others_stays(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import llama_cpp.llama_cpp as library

    monkeypatch.setattr(hardware, "available_memory", lambda: 1)
    before = library.llama_model_default_params
    with llamacpp.opened(file, 32):
        assert library.llama_model_default_params is before
    assert library.llama_model_default_params().use_extra_bufts
