"""The tokenizer next to an adapter is the base's, whatever class its tokenizer_config.json names."""

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from tests.support import models
from toolkit.export.vocab.tokenizer_source import tokenizer_source
from toolkit.train.library_tokenizer import library_tokenizer, save_library_tokenizer

TEXTS = ["Hello  two  spaces", "He'LL be 12345 times", "a\n\n\tb", *models.TEXT]


def named(folder: Path, pre: str, name: str, bos: bool = True) -> Tokenizer:
    """Save a small tokenizer and the class that its tokenizer_config.json names."""
    models.save_tokenizer(folder, pre, bos=bos)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "tokenizer_class": name}))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize(
    ("pre", "name"),
    [
        ("llama-bpe", "LlamaTokenizerFast"),  # R1-Distill-Llama
        ("smollm", "GPT2Tokenizer"),  # Granite 3.x
        ("dbrx", "GPT2Tokenizer"),  # Granite 4.0, OLMo-2
        ("qwen2", "LlamaTokenizerFast"),  # R1-0528-Qwen3
        ("tekken", "LlamaTokenizer"),
        ("llama-bpe", "PreTrainedTokenizerFast"),
    ],
)
def test_it_is_saved_as_the_base_has_it(pre: str, name: str, bos: bool, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    base = named(tmp_path / "base", pre, name, bos)
    save_library_tokenizer(library_tokenizer(tmp_path / "base"), tmp_path / "adapter")
    ours, theirs = (json.loads((tmp_path / place / "tokenizer.json").read_text()) for place in ("adapter", "base"))
    same = ("normalizer", "pre_tokenizer", "added_tokens", "model")
    assert {key: ours[key] for key in same} == {key: theirs[key] for key in same}
    saved = Tokenizer.from_file(str(tmp_path / "adapter" / "tokenizer.json"))
    loaded = AutoTokenizer.from_pretrained(tmp_path / "adapter")
    for text in TEXTS:
        assert saved.encode(text).ids == loaded(text)["input_ids"] == base.encode(text).ids
    assert tokenizer_source(tmp_path / "base", tmp_path / "adapter", 10_000).said == ""  # the export takes the base's
    kept = json.loads((tmp_path / "adapter" / "tokenizer_config.json").read_text())
    assert (kept["bos_token"], kept["eos_token"], kept["pad_token"]) == tuple(models.SPECIALS)
