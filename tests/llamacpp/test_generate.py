"""Answers of llama.cpp end where they should, whatever their tokens are."""

from pathlib import Path

import pytest

from tests.support.models import TEMPLATE
from tests.support.talker import save_talker
from toolkit import llamacpp
from toolkit.export import export
from toolkit.prompt.tokenizer import load_tokenizer

pytestmark = pytest.mark.slow

LEAD = "Ð"  # the byte D0, which begins a character of two bytes


@pytest.mark.parametrize(
    ("says", "answer"),
    [
        ((LEAD, LEAD), ""),
        (("Y", LEAD, LEAD), "Y"),
        (("Y", "Y"), "Y" * 16),
        (("Y", "H", "Y"), "YH" * 8),
        (("Y", "H", "<|im_end|>"), "YH"),
    ],
)
def test_an_answer_has_as_many_tokens_as_asked_for(says: tuple[str, ...], answer: str, tmp_path: Path) -> None:
    """Bytes that never become a character have no text; there is room for few more tokens than are asked for."""
    save_talker(tmp_path / "base", "Ċ", *says)
    export(tmp_path / "base", None, {"F32": tmp_path / "model.gguf"}, TEMPLATE, "talker")
    ids = load_tokenizer(tmp_path / "base").encode("Say it:\n")
    with llamacpp.opened(tmp_path / "model.gguf", len(ids) + 17) as llm:
        for _ in range(2):
            assert "".join(llamacpp.generate(llm, ids, 16, (), llamacpp.Sampling())) == answer
            assert llm.n_tokens <= len(ids) + 16
