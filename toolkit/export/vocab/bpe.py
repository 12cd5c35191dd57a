"""Byte-level BPE vocabularies (`tokenizer.ggml.model` = gpt2): Llama-3, SmolLM2, Qwen, Mistral-Nemo's tekken, Phi-4.

llama.cpp does not read a pre-tokenizer: it has its own, by name (`tokenizer.ggml.pre`). The name is found by comparing
tokenizer.json with what each name means; one that is not known is refused, never guessed. Its definitions:
llama.cpp's src/llama-vocab.cpp.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from gguf import GGUFValueType, Keys, TokenType

from toolkit.core.errors import ToolkitError
from toolkit.formats.gguf_writer import Metadata
from toolkit.formats.pretokenizers import PRE_TOKENIZERS, PreTokenizer

WHOLE_BASE = "give a folder with a complete base model, including its tokenizer"


def bpe_metadata(layout: dict[str, Any], added: dict[int, tuple[str, TokenType]], rows: int, base: Path) -> Metadata:
    """Return tokens, kinds and merges, as the converter's `gpt2` vocabulary has them; raises ToolkitError."""
    pre = pre_tokenizer(layout, base)
    texts, kinds = listed(layout["model"]["vocab"], added, rows, base)
    values: Metadata = {
        Keys.Tokenizer.MODEL: ("gpt2", GGUFValueType.STRING),
        Keys.Tokenizer.PRE: (pre, GGUFValueType.STRING),
        Keys.Tokenizer.LIST: (texts, GGUFValueType.ARRAY),
        Keys.Tokenizer.TOKEN_TYPE: (kinds, GGUFValueType.ARRAY),
    }
    merges = _merges(layout["model"].get("merges"), base)
    if merges:
        values[Keys.Tokenizer.MERGES] = (merges, GGUFValueType.ARRAY)
    return values


def pre_tokenizer(layout: dict[str, Any], base: Path) -> str:
    """Return llama.cpp's name for the pre-tokenizer in a tokenizer.json; raises ToolkitError if it has none."""
    model = checked_bpe(layout, base)
    found = PreTokenizer(
        plain(layout.get("normalizer"), "normalizers"),
        _steps(layout.get("pre_tokenizer")),
        bool(model.get("ignore_merges")),
    )
    for name, known in PRE_TOKENIZERS.items():
        if found == known:
            return name
    kinds = ", ".join(str(step.get("type")) for step in found.steps) or "none"
    if any(replace(found, ignore_merges=known.ignore_merges) == known for known in PRE_TOKENIZERS.values()):
        kinds += f", with `ignore_merges` {str(found.ignore_merges).lower()}"
    raise ToolkitError(
        f"the pre-tokenizer in `{base / 'tokenizer.json'}` ({kinds}) is not one that llama.cpp is known to have",
        hint=SUPPORTED,
    )


SUPPORTED = f"SentencePiece BPE and byte-level BPE of these kinds can be exported: {', '.join(PRE_TOKENIZERS)}"


def checked_bpe(layout: dict[str, Any], base: Path) -> dict[str, Any]:
    """Return the model of a tokenizer.json if llama.cpp supports that BPE; raises ToolkitError."""
    model = layout.get("model")
    if not isinstance(model, dict) or model.get("type") != "BPE" or not isinstance(model.get("vocab"), dict):
        kind = model.get("type") if isinstance(model, dict) else model
        raise ToolkitError(f"the tokenizer in `{base}` is {kind}, not BPE, and is not supported", hint=SUPPORTED)
    for key in ("continuing_subword_prefix", "end_of_word_suffix", "dropout"):
        if model.get(key):
            raise ToolkitError(
                f"the tokenizer in `{base}` sets `{key}`, which llama.cpp does not support", hint=SUPPORTED
            )
    return model


def plain(step: Any, inner: str) -> dict[str, Any] | None:
    """An empty Sequence is nothing, and a Sequence of one is that one."""
    if isinstance(step, dict) and step.get("type") == "Sequence" and len(step.get(inner) or []) < 2:
        return plain((step.get(inner) or [None])[0], inner)
    return step if isinstance(step, dict) else None


def _steps(stated: Any) -> list[dict[str, Any]]:
    """The steps of a pre-tokenizer, without `trim_offsets`, which plays no part in the tokens."""
    stated = plain(stated, "pretokenizers")
    if stated is None:
        return []
    steps = stated.get("pretokenizers") if stated.get("type") == "Sequence" else [stated]
    if not isinstance(steps, list) or not all(isinstance(step, dict) for step in steps):
        return [{"type": "damaged"}]
    cleaned = [{key: value for key, value in step.items() if key != "trim_offsets"} for step in steps]
    for step in cleaned:
        if step.get("type") == "ByteLevel":
            step.setdefault("use_regex", True)  # absent in files older than the setting
    return cleaned


def splits_bytes(layout: dict[str, Any]) -> bool:
    """Tell whether a tokenizer.json turns every text into bytes before it encodes: a ByteLevel step does."""
    return any(step.get("type") == "ByteLevel" for step in _steps(layout.get("pre_tokenizer")))


def listed(
    vocabulary: dict[str, Any], added: dict[int, tuple[str, TokenType]], rows: int, base: Path
) -> tuple[list[str], list[int]]:
    """Return text and type of each token; rows of the embedding without a token get `[PADn]`. Raises ToolkitError."""
    texts = [f"[PAD{index}]" for index in range(rows)]
    kinds = [int(TokenType.UNUSED)] * rows
    for text, index in vocabulary.items():
        check_index(text, index, rows, base)
        texts[index], kinds[index] = text, int(TokenType.NORMAL)
    for index, (text, kind) in added.items():
        texts[index], kinds[index] = text, int(kind)
    return texts, kinds


def check_index(text: str, index: Any, rows: int, base: Path) -> None:
    """Raise ToolkitError unless a token's id is a row of the embedding."""
    if type(index) is not int or not 0 <= index < rows:
        raise ToolkitError(
            f"token `{text}` in `{base / 'tokenizer.json'}` has the id {index}, but the embedding has {rows} rows",
            hint="the tokenizer belongs to another model, or tokens were added without resize_token_embeddings",
        )


def pairs(stated: Any) -> list[list[str]] | None:
    """Return merges as pairs, from either way that tokenizer.json writes them; None if they are damaged."""
    merges = [merge.split(" ") if isinstance(merge, str) else merge for merge in stated or []]
    valid = all(
        type(pair) is list and len(pair) == 2 and type(pair[0]) is str and type(pair[1]) is str for pair in merges
    )
    return merges if valid else None


def _merges(stated: Any, base: Path) -> list[str]:
    merges = pairs(stated)
    if merges is None or any(" " in left or " " in right for left, right in merges):
        raise ToolkitError(f"`{base / 'tokenizer.json'}` holds merges that are not byte-level BPE", hint=SUPPORTED)
    return [f"{left} {right}" for left, right in merges]
