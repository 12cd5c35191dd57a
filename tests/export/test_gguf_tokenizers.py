"""Tokenizers that transformers read from a GGUF and saved: what is exact is exported, the rest has its true reason."""

import ctypes
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.support import families, models
from toolkit.core.errors import ToolkitError
from toolkit.export import export
from toolkit.llamacpp.vocabulary import open_vocabulary
from toolkit.prompt.tokenizer import load_tokenizer

TEXTS = [
    "Hello world",
    "  two  spaces",
    "I've 1234567 things, DON'T you?",
    "Ünïcödé — 发烧 😀 ﷺ",
    "line\n\nbreak\r\n\t3.5 °C\n",
    "<|end_of_text|> is text",
    "ＡＢＣ ﬁ é",
]
SENTENCEPIECE_DECODER = {
    "type": "Sequence",
    "decoders": [
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
    ],
}


def read_back(base: Path, work: Path) -> Path:
    """Export a base, let transformers read the GGUF's tokenizer, and return a copy of the base with that one."""
    from transformers import AutoTokenizer

    export(base, None, {"F16": work / "a.gguf"}, models.TEMPLATE, "x")
    other = Path(shutil.copytree(base, work / "other"))
    for path in other.glob("tokenizer*"):
        path.unlink()
    AutoTokenizer.from_pretrained(work, gguf_file="a.gguf").save_pretrained(other)
    return other


def ids(path: Path, text: str) -> list[int]:
    """What llama.cpp makes of a text, without BOS and with control tokens as text."""
    import llama_cpp

    raw = text.encode("utf-8")
    with open_vocabulary(path) as vocabulary:
        buffer = (llama_cpp.llama_token * (len(raw) + 16))()
        room: Any = ctypes.c_int32(len(raw) + 16)
        count = llama_cpp.llama_tokenize(vocabulary.handle, raw, len(raw), buffer, room, False, False)
        return list(buffer[:count])


@pytest.mark.parametrize("family", ["llama", "nemo", "mistral", "qwen2.5"])
def test_exact_ones_are_exported_and_decode_what_they_encode(family: str, tmp_path: Path) -> None:
    base = read_back(families.save(tmp_path / "base", family), tmp_path)
    export(base, None, {"F16": tmp_path / "b.gguf"}, models.TEMPLATE, "x")
    tokenizer = load_tokenizer(base)
    for text in TEXTS:
        assert ids(tmp_path / "b.gguf", text) == tokenizer.encode(text), text


@pytest.mark.parametrize("pre", ["llama-bpe", "tekken", "gpt-2"])
def test_bytes_are_decoded_as_bytes_whatever_the_decoder_says(pre: str, tmp_path: Path) -> None:
    models.save_tokenizer(tmp_path, pre)
    path = tmp_path / "tokenizer.json"
    layout = json.loads(path.read_text())
    layout["decoder"], layout["model"]["byte_fallback"] = SENTENCEPIECE_DECODER, True
    path.write_text(json.dumps(layout))
    tokenizer = load_tokenizer(tmp_path)
    for text in TEXTS:
        assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize(
    ("family", "reason"),
    [("gemma2", "is Unigram, not BPE"), ("phi3", "no step turns texts into bytes or marks their spaces")],
)
def test_others_are_refused_with_the_true_reason(family: str, reason: str, tmp_path: Path) -> None:
    base = read_back(families.save(tmp_path / "base", family), tmp_path)
    path = base / "tokenizer.json"
    layout = json.loads(path.read_text())
    # transformers adds the real Phi-3's tokens, which a small vocabulary does not have.
    layout["added_tokens"] = [token for token in layout["added_tokens"] if token["id"] < 608]
    path.write_text(json.dumps(layout))
    with pytest.raises(ToolkitError, match=reason) as refusal:
        export(base, None, {"F16": tmp_path / "b.gguf"}, models.TEMPLATE, "x")
    assert "not one that was read from a GGUF" in refusal.value.hint
    assert not (tmp_path / "b.gguf").exists()


def test_marked_spaces_without_bytes_are_sentencepiece_all_the_same(tmp_path: Path) -> None:
    base = families.save(tmp_path / "base", "mistral")
    path = base / "tokenizer.json"
    layout = json.loads(path.read_text())
    layout["model"]["byte_fallback"] = False
    path.write_text(json.dumps(layout))
    with pytest.raises(ToolkitError, match="has no `byte_fallback`"):
        export(base, None, {"F16": tmp_path / "b.gguf"}, models.TEMPLATE, "x")
