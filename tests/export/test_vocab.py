"""The vocabulary in the file tokenizes as the base model's tokenizer does; what llama.cpp does not know is refused."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support import models
from tests.support.damage import thorough
from tests.support.properties import tries
from tests.support.texts import ACCENTED, ALPHABET, NASTY, normal
from tests.support.vocabularies import setting
from toolkit import llamacpp
from toolkit.core.errors import ToolkitError
from toolkit.export import export
from toolkit.export.vocab import gguf_keys, pretokenizer_parity
from toolkit.prompt.tokenizer import load_tokenizer

# What some pre-tokenizers of llama.cpp split otherwise, and a text with such words for the small vocabularies to learn.
SPLIT_OTHERWISE = ["e\u0301", "A\u030a", "É", "ÉCOLE", "Straße", "ЖИЗНЬ", "ी", "न्", "한", "ǅ", "ʰ", "İ", "\u20e3"]


@pytest.fixture(scope="module", params=list(models.PRE_TOKENIZERS))
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Any, str]]:
    """The base's tokenizer, the exported file in llama.cpp, and the pre-tokenizer's name."""
    folder = tmp_path_factory.mktemp("vocab")
    base = models.save_model(
        folder / "base", pre=request.param, hidden_size=32, intermediate_size=32, num_attention_heads=2
    )
    models.save_tokenizer(base, request.param, more=[ACCENTED] * 9)
    export(base, None, {"F32": folder / "a.gguf"}, models.TEMPLATE, "small")
    with llamacpp.opened(folder / "a.gguf", 64) as llm:
        yield load_tokenizer(base), llm, request.param


@pytest.fixture(scope="module")
def split_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return the folder of a small vocabulary by its pre-tokenizer's name."""

    def folder(pre: str) -> Path:
        path = tmp_path_factory.getbasetemp() / f"vocabulary-{pre}"
        if not path.exists():
            models.save_tokenizer(path, pre, more=[ACCENTED] * 9)
        return path

    return folder


def test_nasty_text_has_equal_tokens(pair: tuple[Any, Any, str]) -> None:
    tokenizer, llm, pre = pair
    for text in NASTY:
        text = normal(text, pre)
        assert llamacpp.tokenize(llm, text) == tokenizer.prompt_ids(text), repr(text)


@thorough(40, 400)
def test_any_text_has_equal_tokens(pair: tuple[Any, Any, str], examples: int) -> None:
    tokenizer, llm, pre = pair

    @settings(max_examples=tries(examples), deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(st.lists(ALPHABET, max_size=40).map("".join))
    def check(text: str) -> None:
        text = normal(text, pre)
        assert llamacpp.tokenize(llm, text) == tokenizer.prompt_ids(text)

    check()


@thorough(40, 400)
def test_what_llama_cpp_splits_otherwise_is_known_exactly(
    pair: tuple[Any, Any, str], split_folder: Callable[[str], Path], examples: int
) -> None:
    """Of any text, marks, capitals and uncomposed characters included: these ids, and a warning only if they differ."""
    tokenizer, llm, pre = pair
    folder = split_folder(pre)
    runtime = pretokenizer_parity.as_in_llama_cpp(folder)
    assert (runtime is None) == (pre not in ("tekken", "gpt-4o", "qwen2", "qwen35"))

    @settings(max_examples=tries(examples), deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(st.lists(ALPHABET | st.sampled_from(SPLIT_OTHERWISE), max_size=40).map("".join))
    def check(text: str) -> None:
        found = llamacpp.tokenize(llm, text)
        if runtime is not None:
            assert found[1:] == runtime.encode(text, add_special_tokens=False).ids
        alike[found == tokenizer.prompt_ids(text)].append(text)

    alike: dict[bool, list[str]] = {True: [], False: []}
    check()
    assert pretokenizer_parity.unequal(folder, alike[True]) == []
    assert len(pretokenizer_parity.unequal(folder, alike[False])) == len(alike[False])
    assert len(pretokenizer_parity.unequal(folder, ACCENTED.split())) == (0 if runtime is None else 2)


@pytest.mark.parametrize("pre", models.PRE_TOKENIZERS)
def test_the_user_is_warned_of_texts_that_llama_cpp_reads_otherwise(
    split_folder: Callable[[str], Path], pre: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = split_folder(pre)
    word = "cafe\u0301" if pre in ("qwen2", "qwen35") else "हिन्दी"
    pretokenizer_parity.warn_if_split_differs(folder, ["plain", "Sjögren, 39.5 °C"])
    assert capsys.readouterr().err == ""
    pretokenizer_parity.warn_if_split_differs(folder, ["plain", f"the word {word} here", "Sjögren"])
    warned = capsys.readouterr().err
    pretokenizer_parity.warn_if_split_differs(folder, None)
    general = capsys.readouterr().err
    if pre in ("tekken", "gpt-4o", "qwen2", "qwen35"):
        assert f"`{pre}` splits" in warned and "1 of 3 records" in warned and f"`{word}`" in warned
        assert f"`{pre}` splits" in general and "different tokens than in training" in general
    else:
        assert warned == general == ""


def test_special_tokens_are_known_by_id(pair: tuple[Any, Any, str]) -> None:
    import llama_cpp

    tokenizer, llm, _ = pair
    assert llm.token_eos() == tokenizer.eos
    assert llm.token_bos() == tokenizer.bos
    vocabulary = llama_cpp.llama_model_get_vocab(llm.model)
    assert llama_cpp.llama_vocab_is_eog(vocabulary, tokenizer.eos)
    assert llama_cpp.llama_vocab_get_add_bos(vocabulary)
    assert not llama_cpp.llama_vocab_get_add_eos(vocabulary)
    assert llama_cpp.llama_vocab_pad(vocabulary) == tokenizer.encoder.token_to_id("<|pad|>")
    assert llm.tokenize(b"<|end_of_text|>", add_bos=False, special=True) == [tokenizer.eos]


def metadata(folder: Path, rows: int = 512) -> dict[str, Any]:
    (folder / "config.json").write_text("{}") if not (folder / "config.json").exists() else None
    return {key: value for key, (value, _) in gguf_keys.tokenizer_metadata(folder, rows).items()}


def test_rows_without_a_token_are_padding(tmp_path: Path) -> None:
    count = models.save_tokenizer(tmp_path).get_vocab_size()
    values = metadata(tmp_path, count + 2)
    assert values["tokenizer.ggml.tokens"][-2:] == [f"[PAD{count}]", f"[PAD{count + 1}]"]
    kinds = values["tokenizer.ggml.token_type"]
    assert kinds[-3:] == [gguf.TokenType.CONTROL, gguf.TokenType.UNUSED, gguf.TokenType.UNUSED]
    assert kinds[0] == gguf.TokenType.NORMAL


def test_more_tokens_than_rows_are_an_error(tmp_path: Path) -> None:
    models.save_tokenizer(tmp_path)
    with pytest.raises(ToolkitError, match=r"has the id [0-9]+, but the embedding has 64 rows"):
        metadata(tmp_path, 64)


def test_no_bos_where_the_tokenizer_adds_none(tmp_path: Path) -> None:
    """SmolLM2's way: a BOS is named, none is added; llama.cpp's own default for `llama-bpe` would add it."""
    tokenizer = models.save_tokenizer(tmp_path, bos=False)
    values = metadata(tmp_path)
    assert values["tokenizer.ggml.add_bos_token"] is False
    assert values["tokenizer.ggml.bos_token_id"] == tokenizer.token_to_id("<|begin_of_text|>")


def test_added_tokens_keep_their_kind(tmp_path: Path) -> None:
    models.save_tokenizer(tmp_path)
    path = tmp_path / "tokenizer.json"
    layout = json.loads(path.read_text())
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    layout["added_tokens"] += [
        {"id": 505, "content": "<plain>", "special": False, **flags},
        {"id": 506, "content": "<|looks|>", "special": False, **flags},
    ]
    path.write_text(json.dumps(layout))
    kinds = metadata(tmp_path)["tokenizer.ggml.token_type"]
    assert kinds[505:507] == [gguf.TokenType.USER_DEFINED, gguf.TokenType.CONTROL]


def test_eos_is_what_training_used(tmp_path: Path) -> None:
    """The generation config of an instruct model may name another; toolkit.tokens decides, for all rooms alike."""
    models.save_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "<|pad|>"}}))
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 7, "pad_token_id": -1}))
    values = metadata(tmp_path)
    assert values["tokenizer.ggml.eos_token_id"] == load_tokenizer(tmp_path).eos
    assert values["tokenizer.ggml.tokens"][values["tokenizer.ggml.eos_token_id"]] == "<|pad|>"
    assert "tokenizer.ggml.padding_token_id" not in values


def test_both_ways_of_writing_merges_and_sequences(tmp_path: Path) -> None:
    models.save_tokenizer(tmp_path, "gpt-2")
    path = tmp_path / "tokenizer.json"
    layout = json.loads(path.read_text())
    first = metadata(tmp_path)
    layout["model"]["merges"] = [
        pair if isinstance(pair, str) else " ".join(pair) for pair in layout["model"]["merges"]
    ]
    layout["normalizer"] = {"type": "Sequence", "normalizers": []}
    layout["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [layout["pre_tokenizer"]]}
    layout["pre_tokenizer"]["pretokenizers"][0]["trim_offsets"] = False
    path.write_text(json.dumps(layout))
    assert metadata(tmp_path) == first
    assert len(first["tokenizer.ggml.merges"]) > 100


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (setting("normalizer", value={"type": "NFKC"}), "pre-tokenizer"),
        (setting("pre_tokenizer", "pretokenizers", 0, "pattern", "Regex", value=r"\w+"), "pre-tokenizer"),
        (setting("pre_tokenizer", "pretokenizers", 0, "behavior", value="Removed"), "pre-tokenizer"),
        (setting("pre_tokenizer", "pretokenizers", 1, "add_prefix_space", value=True), "pre-tokenizer"),
        (setting("pre_tokenizer", value={"type": "Whitespace"}), r"pre-tokenizer in .* \(Whitespace\)"),
        (setting("pre_tokenizer", value=None), r"pre-tokenizer in .* \(none\)"),
        (setting("model", "end_of_word_suffix", value="</w>"), "end_of_word_suffix"),
        (setting("model", "dropout", value=0.1), "dropout"),
    ],
)
def test_an_unknown_pre_tokenizer_is_refused(tmp_path: Path, change: Callable[[Any], None], words: str) -> None:
    models.save_tokenizer(tmp_path)
    path = tmp_path / "tokenizer.json"
    layout = json.loads(path.read_text())
    change(layout)
    path.write_text(json.dumps(layout))
    with pytest.raises(ToolkitError, match=words) as caught:
        metadata(tmp_path)
    assert "llama-bpe" in caught.value.hint


def test_a_vocabulary_that_is_not_bpe_is_refused(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models

    Tokenizer(models.WordLevel({"a": 0, "</s>": 1}, unk_token="a")).save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>"}))
    with pytest.raises(ToolkitError, match="is WordLevel, not BPE"):
        metadata(tmp_path)
