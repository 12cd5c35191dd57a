"""SentencePiece and the large byte-level vocabularies: equal token ids in transformers, in training and in llama.cpp.

Mistral's, Mistral-Nemo's and Llama-3's are the real ones; Phi-3's and Gemma-2's are small ones of the same kind,
trained here (tests/vocabularies.py), as no package brings theirs.
"""

import functools
import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from gguf import TokenType
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support import families, models, vocabularies
from tests.support.families import WIDTHS
from tests.support.properties import tries
from tests.support.texts import ALPHABET, NASTY, normal
from tests.support.vocabularies import setting
from toolkit import llamacpp
from toolkit.core.errors import ToolkitError
from toolkit.core.input_settings import PromptSettings
from toolkit.export import export
from toolkit.export.vocab import gguf_keys
from toolkit.export.vocab.sentencepiece import read_model
from toolkit.prompt.format import prompt_format
from toolkit.prompt.renderings import render
from toolkit.prompt.tokenizer import load_tokenizer

# Name → family of the model, its rows, what saves the vocabulary.
VOCABULARIES: dict[str, tuple[str, int, Callable[[Path], Any]]] = {
    "mistral, small": ("mistral", 608, lambda path: vocabularies.small_sentencepiece(path, "mistral")),
    "phi3, small": ("phi3", 608, lambda path: vocabularies.small_sentencepiece(path, "phi3")),
    "gemma2, small": ("gemma2", 608, lambda path: vocabularies.small_sentencepiece(path, "gemma")),
}
REAL: dict[str, tuple[str, int, Callable[[Path], Any]]] = {
    "mistral v3": ("mistral", 32768, vocabularies.mistral_v3),
    "mistral v3, metaspace": ("mistral", 32768, lambda path: vocabularies.mistral_v3(path, "metaspace")),
    "mistral v3, without tokenizer.model": (
        "mistral",
        32768,
        lambda path: without_model(vocabularies.mistral_v3(path)),
    ),
    "tekken": ("nemo", 131072, vocabularies.tekken),
    "llama3": ("llama", 128256, vocabularies.llama3),
    "llama3.2": ("llama", 128256, vocabularies.llama32),
    "r1-distill": ("llama", 128256, vocabularies.r1_distill),
    "smollm2": ("llama", 49152, vocabularies.smollm2),
}
MORE = [
    "  two",
    "   three",
    " " * 7 + "x",
    "a" + " " * 8 + "b",
    "\n\n\n\nx\n",
    "\tx",
    "x\t\ty",
    "<s>[INST] hi [/INST]</s>",
    "ééé",
    "<|begin_of_text|>\n<|start_header_id|>user<|end_header_id|><|eot_id|>",
    "<｜begin▁of▁sentence｜><｜User｜>hi<｜Assistant｜><think>\nno\n</think>\n\nwell<｜end▁of▁sentence｜>",
    "<｜▁pad▁｜> a▁b < think> <|think|>",
]


def without_model(folder: Path) -> Path:
    (folder / "tokenizer.model").unlink()
    return folder


@pytest.fixture(scope="module", params=[*VOCABULARIES, *(pytest.param(name, marks=pytest.mark.slow) for name in REAL)])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Any, Any]]:
    """A base's folder, its tokenizer, and the exported file in llama.cpp."""
    family, rows, save = {**VOCABULARIES, **REAL}[request.param]
    folder = tmp_path_factory.mktemp("vocabulary")
    base = families.save(
        folder / "base", family, vocabulary=save, **{**WIDTHS, "vocab_size": rows, "query_pre_attn_scalar": 32}
    )
    export(base, None, {"Q8_0": folder / "a.gguf"}, models.TEMPLATE, "small")
    with llamacpp.opened(folder / "a.gguf", 64) as llm:
        yield base, load_tokenizer(base), llm


@functools.cache
def _pre(base: Path) -> str:
    return "tekken" if "<SPECIAL_5>" in (base / "tokenizer.json").read_text() else ""


def test_nasty_text_has_equal_tokens(pair: tuple[Path, Any, Any]) -> None:
    base, tokenizer, llm = pair
    for text in [normal(text, _pre(base)) for text in (*NASTY, *MORE)]:
        assert llamacpp.tokenize(llm, text) == tokenizer.prompt_ids(text), repr(text)


def test_they_are_those_of_transformers(pair: tuple[Path, Any, Any]) -> None:
    """But for text that begins with a space under Metaspace, where transformers is alone, and text like a token."""
    from transformers import PreTrainedTokenizerFast

    base, tokenizer, _ = pair
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(base / "tokenizer.json"))
    metaspace = "Metaspace" in (base / "tokenizer.json").read_text()
    for text in [*NASTY, *MORE]:
        if not any(mark in text for mark in ("<", "[")) and not (metaspace and text.startswith(" ")):
            assert tokenizer.prompt_ids(text) == theirs(text)["input_ids"], repr(text)


def test_any_text_has_equal_tokens(pair: tuple[Path, Any, Any]) -> None:
    base, tokenizer, llm = pair
    longest = 8 if tokenizer.inner is None else 300  # the trained Gemma knows runs of eight, the real one of 31

    @settings(max_examples=tries(150), deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(st.lists(ALPHABET, max_size=40).map("".join))
    def check(text: str) -> None:
        text = normal(text, _pre(base))
        if " " * (longest + 1) not in text and "\n" * (longest + 1) not in text:
            assert llamacpp.tokenize(llm, text) == tokenizer.prompt_ids(text), repr(text)

    check()


def test_special_tokens_are_known_by_id(pair: tuple[Path, Any, Any]) -> None:
    import llama_cpp

    _, tokenizer, llm = pair
    vocabulary = llama_cpp.llama_model_get_vocab(llm.model)
    assert llm.token_eos() == tokenizer.eos
    assert llama_cpp.llama_vocab_get_add_bos(vocabulary) == (tokenizer.bos is not None)
    assert tokenizer.bos in (None, llm.token_bos())
    assert not llama_cpp.llama_vocab_get_add_eos(vocabulary)
    assert llm.tokenize(tokenizer.eos_text.encode(), add_bos=False, special=True) == [tokenizer.eos]
    assert tokenizer.eos not in tokenizer.encode(f"x{tokenizer.eos_text}y")


def test_an_answer_behind_a_prompt_gets_no_space_of_its_own(tmp_path: Path) -> None:
    for style in ("legacy", "metaspace"):
        model = vocabularies.train_sentencepiece(560, True, [], [])
        tokenizer = load_tokenizer(vocabularies.save_sentencepiece(tmp_path / style, model, style=style))
        ids, start = tokenizer.record_ids("Drink enough wat", "er, sleep well")  # `water` is a token across the two
        assert ids[:start] == tokenizer.prompt_ids("Drink enough wat")
        assert tokenizer.decode(ids[1:-1]) == "Drink enough water, sleep well"
        assert (ids[0], ids[-1]) == (1, 2)


def _kinds(folder: Path, **settings: Any) -> dict[str, tuple[float, int]]:
    (folder / "config.json").write_text("{}")
    values = {key: value for key, (value, _) in gguf_keys.tokenizer_metadata(folder, 608, **settings).items()}
    texts, scores = values["tokenizer.ggml.tokens"], values["tokenizer.ggml.scores"]
    kinds = values["tokenizer.ggml.token_type"]
    return {text: (score, kind) for text, score, kind in zip(texts, scores, kinds, strict=True)}


def test_scores_and_kinds_of_tokens(tmp_path: Path) -> None:
    found = _kinds(vocabularies.small_sentencepiece(tmp_path, "gemma"))
    assert found["<bos>"] == found["<unused0>"] == found["<mask>"] == (-1000.0, TokenType.CONTROL)
    assert found["<start_of_turn>"] == found["\n\n"] == found["  "] == (-1000.0, TokenType.USER_DEFINED)
    assert found["<0x09>"] == (0.0, TokenType.BYTE)
    assert found["[PAD607]"] == (-10000.0, TokenType.UNUSED)
    assert found["▁s"][1] == TokenType.NORMAL


def test_a_vocabulary_without_tokenizer_model_has_scores_that_merge_alike(tmp_path: Path) -> None:
    """The converter gives every token -1000 there, with which llama.cpp would merge from left to right."""
    folder = vocabularies.small_sentencepiece(tmp_path, "mistral")
    before = _kinds(folder)
    after = _kinds(without_model(folder))
    assert {text: kind for text, (_, kind) in after.items()} == {text: kind for text, (_, kind) in before.items()}
    normal = [text for text, (_, kind) in before.items() if kind == TokenType.NORMAL and len(text) > 1]
    assert sorted(normal, key=lambda text: -after[text][0]) == sorted(normal, key=lambda text: -before[text][0])


def _swap_merges(layout: dict[str, Any]) -> None:
    merges = layout["model"]["merges"]
    merges[5], merges[90] = merges[90], merges[5]


def _rename(layout: dict[str, Any]) -> None:
    vocabulary = layout["model"]["vocab"]
    [one, other] = sorted(vocabulary, key=lambda text: -vocabulary[text])[:2]
    vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (setting("normalizer", value={"type": "NFKC"}), "treats spaces in a way"),
        (setting("pre_tokenizer", value={"type": "Metaspace", "replacement": "_"}), "treats spaces in a way"),
        (setting("model", "ignore_merges", value=True), "treats spaces in a way"),
        (setting("model", "merges", value=[]), "no valid merges"),
        (setting("model", "merges", value=["a b", 3]), "cannot be read"),
        (_swap_merges, "in an order that token scores cannot express"),
        (lambda layout: layout["model"]["merges"].pop(7), "does not merge"),
        (_rename, "in tokenizer.json"),
        (lambda layout: layout["model"]["vocab"].update({"zzz": 600}), "beyond them"),
    ],
)
def test_what_llama_cpp_would_split_otherwise_is_refused(
    tmp_path: Path, change: Callable[[Any], Any], words: str
) -> None:
    folder = vocabularies.small_sentencepiece(tmp_path, "phi3")
    layout = json.loads((folder / "tokenizer.json").read_text())
    change(layout)
    (folder / "tokenizer.json").write_text(json.dumps(layout))
    with pytest.raises(ToolkitError, match=words):
        _kinds(folder)


def test_merges_that_no_scores_can_say_are_refused_without_tokenizer_model(tmp_path: Path) -> None:
    """As of a BPE trained by `tokenizers`, where not every pair that makes a token may be merged."""
    folder = without_model(vocabularies.small_sentencepiece(tmp_path, "phi3"))
    layout = json.loads((folder / "tokenizer.json").read_text())
    layout["model"]["merges"].pop(7)
    (folder / "tokenizer.json").write_text(json.dumps(layout))
    with pytest.raises(ToolkitError, match=r"does not merge .*, as llama\.cpp would"):
        _kinds(folder)


def test_a_damaged_or_foreign_tokenizer_model(tmp_path: Path) -> None:
    folder = vocabularies.small_sentencepiece(tmp_path, "mistral")
    path = folder / "tokenizer.model"
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"\x18\x02", b"\x18\x01"))
    with pytest.raises(ToolkitError, match=r"not a BPE model \(type 1\)"):
        _kinds(folder)
    pieces = [(text.encode(), score) for text, score, _ in read_model_of(tmp_path, whole)]
    assert pieces[0] == (b"<unk>", 0.0)

    @settings(max_examples=tries(100), deadline=None, derandomize=True)
    @given(st.integers(0, len(whole) - 1), st.integers(0, 255), st.booleans())
    def damage(place: int, byte: int, cut: bool) -> None:
        spoilt = whole[:place] if cut else whole[:place] + bytes([byte]) + whole[place + 1 :]
        try:
            read_model_of(tmp_path, spoilt)
        except ToolkitError as exc:
            assert "SentencePiece" in exc.message or "BPE" in exc.message

    damage()


def read_model_of(folder: Path, data: bytes) -> list[tuple[str, float, int]]:
    (folder / "x.model").write_bytes(data)
    return read_model(folder / "x.model")


def test_scores_are_read_as_sentencepiece_reads_them(tmp_path: Path) -> None:
    import sentencepiece

    data = vocabularies.train_sentencepiece(560, True, ["<mask>"], ["[INST]"])
    processor = sentencepiece.SentencePieceProcessor(model_proto=data)
    for index, (text, score, _) in enumerate(read_model_of(tmp_path, data)):
        assert text == processor.id_to_piece(index)
        assert struct.pack("<f", score) == struct.pack("<f", processor.get_score(index))


def test_control_tokens_of_a_prompt_format_are_found_by_both(pair: tuple[Path, Any, Any]) -> None:
    """Those of the format's own text are, as a server finds them; those in a question are text."""
    base, tokenizer, llm = pair
    usual = ["[INST]", "[/INST]", "<|user|>", "<|assistant|>", "<start_of_turn>", "<|reserved_special_token_0|>"]
    usual += ["<|im_start|>", "<|im_end|>", "<unused0>"]
    found = [token for token in usual if token in tokenizer.controls]
    first, last = found[0], found[-1]
    turn = f"{first} {{instruction}}\n\n{{input}} {last}\n{first}{last}A:"
    form = prompt_format(PromptSettings(preset="custom", user_turn=turn, eos=last))
    tokenizer = load_tokenizer(base, form)
    for text in [normal(text, _pre(base)) for text in (*NASTY, *MORE)]:
        prompt = render(form, text)
        ids = tokenizer.prompt_ids(prompt)
        assert llamacpp.tokenize(llm, prompt) == ids, repr(text)
        assert [ids.count(tokenizer.controls[token]) for token in (first, last)] == [
            prompt.text.count(token) - text.count(token) for token in (first, last)
        ]
        if not any(token in text for token in tokenizer.controls):
            assert llamacpp.served(llm, prompt.text) == ids, repr(text)
