"""SentencePiece BPE vocabularies (`tokenizer.ggml.model` = llama): Mistral 7B, Phi-3, Gemma-2, Llama-2.

llama.cpp merges the pair whose token has the highest score; tokenizer.json merges by rank. Scores come from
tokenizer.model where there is one, else from the ranks. Either way both must mean the same, since a base is trained
with tokenizer.json. Format: sentencepiece_model.proto in google/sentencepiece.
"""

import re
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from gguf import GGUFValueType, Keys, TokenType

from toolkit.core.errors import ToolkitError
from toolkit.export.vocab import bpe
from toolkit.export.vocab.bpe import SUPPORTED, WHOLE_BASE, checked_bpe, listed, pairs, plain
from toolkit.formats.gguf_writer import Metadata

MODEL = "tokenizer.model"
NO_TOKEN, ADDED = -10000.0, -1000.0  # the converter's scores of rows without a token, and of added tokens
BPE = 2  # ModelProto.trainer_spec.model_type
_BYTE = 6  # ModelProto.SentencePiece.Type
KINDS = {2: TokenType.UNKNOWN, 3: TokenType.CONTROL, 5: TokenType.UNUSED, 6: TokenType.BYTE}
_SPACE = "▁"
_REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
_PREPEND = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": _SPACE}, _REPLACE]}
_SPLIT = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}


def _metaspace(scheme: str) -> dict[str, Any]:
    return {"type": "Metaspace", "replacement": _SPACE, "prepend_scheme": scheme, "split": False}


# Normalizer and pre-tokenizer → whether a space is put before the text. (Split has nothing to do after Replace.)
PREFIXES: list[tuple[dict[str, Any] | None, dict[str, Any] | None, bool]] = [
    (_PREPEND, None, True),
    (None, _metaspace("first"), True),
    (None, _metaspace("always"), True),
    (None, _metaspace("never"), False),
    (_REPLACE, None, False),
    (_REPLACE, _SPLIT, False),
]


def is_sentencepiece(layout: dict[str, Any]) -> bool:
    """Tell whether a tokenizer.json is of this kind: characters outside the vocabulary become bytes (`<0x0A>`).

    The steps that split and encode decide: if a ByteLevel step turns every text into bytes, the fallback has nothing to
    do. A tokenizer that transformers makes from a GGUF has both, and also a decoder for `▁`.
    """
    model = layout.get("model")
    return isinstance(model, dict) and bool(model.get("byte_fallback")) and not bpe.splits_bytes(layout)


def sentencepiece_metadata(
    layout: dict[str, Any], added: dict[int, tuple[str, TokenType]], rows: int, base: Path
) -> Metadata:
    """Return tokens, scores and kinds, as the converter's `llama` vocabulary has them.

    Raises ToolkitError for what llama.cpp would tokenize differently from tokenizer.json.
    """
    vocabulary = checked_bpe(layout, base)["vocab"]
    prefix = space_prefix(layout, base)
    merges = pairs(layout["model"].get("merges"))
    if merges is None or not merges:
        raise ToolkitError(f"`{base / 'tokenizer.json'}` holds no valid merges", hint=WHOLE_BASE)
    texts, kinds = listed(vocabulary, added, rows, base)
    names = {index: text for text, index in vocabulary.items()}
    if (base / MODEL).is_file():
        scores = _from_model(base / MODEL, names, added, texts, kinds)
    else:
        scores = _from_ranks(merges, vocabulary, rows)
        for index, text in names.items():
            if re.fullmatch("<0x[0-9A-F]{2}>", text) and index not in added:
                kinds[index] = int(TokenType.BYTE)
    if any(f"<0x{byte:02X}>" not in vocabulary and chr(byte) not in vocabulary for byte in range(256)):
        raise ToolkitError(f"the tokenizer in `{base}` lacks some of the 256 byte tokens", hint=SUPPORTED)
    _check_merges(merges, vocabulary, scores, kinds, base)
    for index in added:
        scores[index] = ADDED
    values: Metadata = {
        Keys.Tokenizer.MODEL: ("llama", GGUFValueType.STRING),
        Keys.Tokenizer.PRE: ("default", GGUFValueType.STRING),
        Keys.Tokenizer.LIST: (texts, GGUFValueType.ARRAY),
        Keys.Tokenizer.SCORES: (scores, GGUFValueType.ARRAY),
        Keys.Tokenizer.TOKEN_TYPE: (kinds, GGUFValueType.ARRAY),
        Keys.Tokenizer.ADD_PREFIX: (prefix, GGUFValueType.BOOL),
    }
    return values


def space_prefix(layout: dict[str, Any], base: Path) -> bool:
    """Return whether a space is put before every text; raises ToolkitError for ways unknown to llama.cpp."""
    normalizer = plain(layout.get("normalizer"), "normalizers")
    step = plain(layout.get("pre_tokenizer"), "pretokenizers")
    if step and step.get("type") == "Metaspace":  # the form in files older than the setting
        step = {key: value for key, value in step.items() if key not in ("add_prefix_space", "str_rep")}
        if "prepend_scheme" not in step and "add_prefix_space" in (layout["pre_tokenizer"] or {}):
            step["prepend_scheme"] = "always" if layout["pre_tokenizer"]["add_prefix_space"] else "never"
    if not layout["model"].get("ignore_merges"):
        for known_normalizer, known_step, prefix in PREFIXES:
            if (normalizer, step) == (known_normalizer, known_step):
                return prefix
    raise ToolkitError(
        f"the SentencePiece tokenizer in `{base / 'tokenizer.json'}` treats spaces in a way that llama.cpp does not "
        "support",
        hint=SUPPORTED,
    )


def _from_model(
    path: Path, names: dict[int, str], added: dict[int, tuple[str, TokenType]], texts: list[str], kinds: list[int]
) -> list[float]:
    """Return each token's score from tokenizer.model, and correct `texts` and `kinds` by it; raises ToolkitError.

    Its tokens must be tokenizer.json's, but for a byte that is its own character there (Gemma's tab).
    """
    pieces = read_model(path)
    rows = len(texts)
    scores = [NO_TOKEN] * rows
    for index, (text, score, kind) in enumerate(pieces[:rows]):
        if index in added:
            continue
        if names.get(index) != text and (kind != _BYTE or names.get(index) != chr(int(text[3:5], 16))):
            raise ToolkitError(
                f"token {index} is `{text}` in `{path}`, but `{names.get(index)}` in tokenizer.json",
                hint="the two belong to different models: copy the base again, or remove tokenizer.model",
            )
        texts[index], scores[index] = text, score
        kinds[index] = int(KINDS.get(kind, TokenType.NORMAL))
    for index in names:
        if index >= len(pieces) and index not in added:
            raise ToolkitError(
                f"`{path}` has {len(pieces)} tokens, tokenizer.json has `{names[index]}` beyond them",
                hint="the two belong to different models: copy the base again, or remove tokenizer.model",
            )
    return scores


def _from_ranks(merges: Sequence[Sequence[str]], vocabulary: dict[str, int], rows: int) -> list[float]:
    """Return each token's score: minus the rank of its first merge; tokens that nothing merges to come last.

    Tokens whose merges are mixed had equal scores (runs of spaces in Mistral's vocabulary).
    """
    scores = [NO_TOKEN] * rows
    for index in vocabulary.values():
        scores[index] = -float(len(merges))
    last = {left + right: rank for rank, (left, right) in enumerate(merges)}
    start, end = 0, -1
    for rank, (left, right) in enumerate(merges):
        if rank > end:
            start = rank
        end = max(end, last[left + right])
        if left + right in vocabulary:
            scores[vocabulary[left + right]] = -float(start)
    return scores


def _check_merges(
    merges: Sequence[Sequence[str]], vocabulary: dict[str, int], scores: list[float], kinds: list[int], base: Path
) -> None:
    """Raise ToolkitError unless merging by rank and merging by score are the same.

    That is so if scores fall with the rank, and if every pair that makes a token may be merged. Equal scores are those
    of runs of one character. Tokens that are not ordinary text play no part: llama.cpp finds them before it merges.
    """
    path = base / "tokenizer.json"
    normal = {text for text, index in vocabulary.items() if kinds[index] == TokenType.NORMAL}
    last, former, possible = float("inf"), "", set()
    for left, right in merges:
        if left + right not in vocabulary:
            raise ToolkitError(
                f"`{path}` merges `{left}` and `{right}` into a token that it does not have", hint=WHOLE_BASE
            )
        text = left + right
        if text in normal:
            possible.add((left, right))
            score = scores[vocabulary[text]]
            if score > last or (score == last and text != former and len(set(text + former)) > 1):
                raise ToolkitError(
                    f"`{path}` merges `{left}` and `{right}` in an order that token scores cannot express",
                    hint="this tokenizer was not made by SentencePiece: llama.cpp would split text differently",
                )
            last, former = score, text
    for text in normal:
        for cut in range(1, len(text)):
            left, right = text[:cut], text[cut:]
            if left in normal and right in normal and (left, right) not in possible:
                raise ToolkitError(
                    f"`{path}` does not merge `{left}` and `{right}`, as llama.cpp would",
                    hint="this tokenizer was not made by SentencePiece: llama.cpp would split text differently",
                )


def read_model(path: Path) -> list[tuple[str, float, int]]:
    """Return text, score and kind (ModelProto.SentencePiece.Type) of each piece of a tokenizer.model.

    Raises ToolkitError for a damaged file, or a model that is not BPE.
    """
    pieces, method = [], 1
    try:
        for number, value in _fields(path.read_bytes()):
            if number == 1:
                parts = dict(_fields(value))
                (score,) = struct.unpack("<f", parts.get(2, b"\0\0\0\0"))
                pieces.append((parts[1].decode("utf-8"), score, parts.get(3, 1)))
            elif number == 2:
                method = dict(_fields(value)).get(3, 1)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, struct.error) as exc:
        raise ToolkitError(f"`{path}` is not a SentencePiece model: {exc}", hint=WHOLE_BASE) from None
    if method != BPE:
        raise ToolkitError(f"`{path}` is not a BPE model (type {method})", hint=SUPPORTED)
    return pieces


def _fields(data: Any) -> Iterator[tuple[int, Any]]:
    """Yield number and value of each field of a protobuf message: an integer, or the bytes of the others."""
    place = 0

    def variable() -> int:
        nonlocal place
        value = shift = 0
        while True:
            byte: int = data[place]
            place += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value
            if shift > 63:
                raise ValueError("a number does not end")

    while place < len(data):
        key = variable()
        kind = key & 7
        if kind == 0:
            yield key >> 3, variable()
            continue
        if kind not in (1, 2, 5):
            raise ValueError(f"a field of the unknown kind {kind}")
        size = variable() if kind == 2 else {1: 8, 5: 4}[kind]
        if size > len(data) - place:
            raise ValueError("it ends in the middle of a field")
        yield key >> 3, bytes(data[place : place + size])
        place += size
