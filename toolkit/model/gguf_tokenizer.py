"""The tokenizer.json of a base that is a GGUF file, from its vocabulary: byte-level BPE, or SentencePiece BPE.

transformers' own conversion forgets the pre-tokenizer (digits of SmolLM2) and takes a wrong EOS; llama.cpp reads these
very keys, so what it does is what the tokenizer must do. Facts: llama.cpp's src/llama-vocab.cpp.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gguf import TokenType

from toolkit.core.errors import ToolkitError
from toolkit.core.native import guarded
from toolkit.formats.pretokenizers import PRE_TOKENIZERS
from toolkit.model.config_values import brief

WHOLE = "use the model's folder with safetensors and tokenizer.json instead of its GGUF"
SPACE = "▁"
FLAGS = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
NAMES = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}


def save_vocabulary(metadata: Mapping[str, Any], path: Path, folder: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json; `path` is the GGUF file, for messages.

    Raises ToolkitError for a vocabulary of another kind, and for keys that are absent or contradict each other.
    """

    def damaged(reason: str) -> ToolkitError:
        return ToolkitError(
            f"the vocabulary in `{path}` cannot be read: {reason}",
            hint="the file is damaged: copy it again, or use a folder with safetensors",
        )

    start = "tokenizer.ggml."
    values = {key.removeprefix(start): value for key, value in metadata.items() if key.startswith(start)}
    kind = values.get("model")
    if kind not in ("gpt2", "llama"):
        raise ToolkitError(
            f"the base GGUF has a `{kind}` vocabulary, but only byte-level BPE (`gpt2`) and SentencePiece BPE "
            "(`llama`) can be converted",
            hint=WHOLE,
        )
    from tokenizers import Tokenizer

    with guarded(damaged):
        layout = _byte_level(values) if kind == "gpt2" else _sentencepiece(values)
        encoder = Tokenizer.from_str(json.dumps(layout))
    tokens = values["tokens"]
    named = {}
    for name, key in NAMES.items():
        index = values.get(f"{key}_token_id")
        if index is not None and not (type(index) is int and 0 <= index < len(tokens)):
            raise ToolkitError(
                f"`{path}` cannot be used: `tokenizer.ggml.{key}_token_id` is {brief(index)}, but it has "
                f"{len(tokens)} tokens",
                hint="copy it again, or use a folder with safetensors",
            )
        if index is not None:
            named[f"{name}_token"] = tokens[index]
    encoder.save(str(folder / "tokenizer.json"))
    settings = {**named, "model_max_length": 10**30, "tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2, ensure_ascii=False), encoding="utf-8")


def _byte_level(values: Mapping[str, Any]) -> dict[str, Any]:
    pre = values.get("pre", "default")
    known = PRE_TOKENIZERS.get(pre)
    if known is None:
        raise ToolkitError(f"the base GGUF's pre-tokenizer `{pre}` is unknown", hint=WHOLE)
    steps = [{**step, "trim_offsets": True} if step["type"] == "ByteLevel" else step for step in known.steps]
    model = {
        "type": "BPE",
        "vocab": {token: index for index, token in enumerate(values["tokens"])},
        "merges": [merge.split(" ", 1) for merge in values["merges"]],
        "ignore_merges": known.ignore_merges,
    }
    return {
        **_around(values, adds_bos=pre == "llama-bpe"),  # llama.cpp adds BOS for Llama-3 even where the key is absent
        "normalizer": known.normalizer,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": model,
    }


def _sentencepiece(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the tokenizer of a vocabulary with scores: what has the highest score is merged first."""
    prefix = values.get("add_space_prefix", True)
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    prepend = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": SPACE}, replace]}
    back: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if prefix:
        back.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    tokens = values["tokens"]
    model = {
        "type": "BPE",
        "vocab": {token: index for index, token in enumerate(tokens)},
        "merges": _merges(tokens, values["scores"], values["token_type"]),
        "unk_token": tokens[values["unknown_token_id"]] if "unknown_token_id" in values else None,
        "fuse_unk": True,
        "byte_fallback": True,
    }
    return {
        **_around(values, adds_bos=True),
        "normalizer": prepend if prefix else replace,
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": back},
        "model": model,
    }


def _merges(tokens: list[str], scores: list[float], kinds: list[int]) -> list[tuple[str, str]]:
    """List every way to make an ordinary token of two others, in the order in which they are tried."""
    normal = {token for token, kind in zip(tokens, kinds, strict=True) if kind == TokenType.NORMAL}
    found = [
        (score, cut, len(token) - cut, token)
        for token, score in zip(tokens, scores, strict=True)
        if token in normal
        for cut in range(1, len(token))
        if token[:cut] in normal and token[cut:] in normal
    ]
    return [(token[:cut], token[cut:]) for _, cut, _, token in sorted(found, reverse=True)]


def _around(values: Mapping[str, Any], *, adds_bos: bool) -> dict[str, Any]:
    """Return what both kinds share: the tokens that are found in a text before it is split, and BOS in front."""
    special = (TokenType.CONTROL, TokenType.UNKNOWN)
    added = [
        {"id": index, "content": token, **FLAGS, "special": kind in special}
        for index, (token, kind) in enumerate(zip(values["tokens"], values["token_type"], strict=True))
        if kind in (*special, TokenType.USER_DEFINED)
    ]
    front = None
    if values.get("add_bos_token", adds_bos):
        index = values["bos_token_id"]
        bos = values["tokens"][index]
        first, text, other = ({"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                              {"Sequence": {"id": "B", "type_id": 1}})  # fmt: skip
        front = {
            "type": "TemplateProcessing",
            "single": [first, text],
            "pair": [first, text, {"SpecialToken": {"id": bos, "type_id": 1}}, other],
            "special_tokens": {bos: {"id": bos, "ids": [index], "tokens": [bos]}},
        }
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "post_processor": front}
