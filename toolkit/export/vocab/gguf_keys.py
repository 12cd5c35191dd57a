"""The vocabulary of a base model as GGUF metadata, from tokenizer.json and, for SentencePiece, tokenizer.model.

The two kinds that llama.cpp has for these families have their own modules: byte-level BPE (`gpt2`) in bpe,
SentencePiece (`llama`) in sentencepiece. Any other kind is refused, never guessed.
"""

from pathlib import Path
from typing import Any

from gguf import GGUFValueType, Keys, TokenType

from toolkit.core import console
from toolkit.core.errors import ToolkitError
from toolkit.core.parsing import read_json
from toolkit.export.vocab import bpe, sentencepiece
from toolkit.export.vocab.bpe import WHOLE_BASE
from toolkit.export.vocab.tokenizer_source import eos as trained_eos
from toolkit.formats.gguf_writer import Metadata
from toolkit.formats.names import three_names
from toolkit.model.model_config import read_config
from toolkit.prompt.tokenizer import load_tokenizer
from toolkit.prompt.tokenizer_json import looks_special, read_layout

_SPECIAL_KEYS = {
    "bos": Keys.Tokenizer.BOS_ID,
    "eos": Keys.Tokenizer.EOS_ID,
    "unk": Keys.Tokenizer.UNK_ID,
    "sep": Keys.Tokenizer.SEP_ID,
    "pad": Keys.Tokenizer.PAD_ID,
    "mask": Keys.Tokenizer.MASK_ID,
}


def tokenizer_metadata(
    folder: Path,
    rows: int,
    base: Path | None = None,
    *,
    special_by_flag: bool = False,
    adapter: Path | None = None,
) -> Metadata:
    """Return the tokenizer's key-value pairs for a model whose embedding has `rows` rows.

    The tokenizer is that in `folder`; the config.json of `base`, if that is another folder, fills in special tokens
    that it does not name. Control tokens without a row in the embedding are left out (`_within`).
    BOS and EOS are those of `prompt.tokenizer`, so the runtime sees what training saw, but an `adapter` may name
    another EOS that it was trained with; EOS is never added to a prompt.
    `special_by_flag`: whether an added token is a control token is decided by its flag alone, not also by its text.
    Raises ToolkitError for a tokenizer that is neither byte-level BPE of a known kind nor SentencePiece BPE, or that
    has more tokens than the embedding has rows.
    """
    tokenizer = load_tokenizer(folder, eos_from=base)
    layout = _within(read_layout(folder, WHOLE_BASE), rows)
    added = _added(layout, rows, folder, special_by_flag)
    if sentencepiece.is_sentencepiece(layout):
        values = sentencepiece.sentencepiece_metadata(layout, added, rows, folder)
    else:
        values = bpe.bpe_metadata(layout, added, rows, folder)
    known = _special_ids(folder, base or folder, tokenizer.encoder, rows)
    special = {
        **known,
        "eos": trained_eos(adapter, tokenizer),
        **({} if tokenizer.bos is None else {"bos": tokenizer.bos}),
    }
    for name, index in special.items():
        if index >= rows:
            raise ToolkitError(f"{name} is token {index}, but the embedding has {rows} rows", hint=WHOLE_BASE)
        values[_SPECIAL_KEYS[name]] = (index, GGUFValueType.UINT32)
    values[Keys.Tokenizer.ADD_BOS] = (tokenizer.bos is not None, GGUFValueType.BOOL)
    values[Keys.Tokenizer.ADD_EOS] = (False, GGUFValueType.BOOL)
    return values


def _within(layout: dict[str, Any], rows: int) -> dict[str, Any]:
    """Return a tokenizer.json without the added control tokens whose ids are beyond the embedding's `rows`, and say so.

    Gemma-3 1B, 270M and MedGemma's 27B for text name an image's token that only their siblings that see have a row
    for. Text never becomes a control token, so none was trained; llama.cpp's converter leaves them out too.
    """
    stated, model = layout.get("added_tokens"), layout.get("model")
    entries = [entry for entry in stated if isinstance(entry, dict)] if isinstance(stated, list) else []
    over = {
        str(entry.get("content")): entry["id"]
        for entry in entries
        if entry.get("special") and type(entry.get("id")) is int and entry["id"] >= rows
    }
    if not over:
        return layout
    console.info(f"control tokens that the embedding has no row for are left out: {three_names(list(over))}")
    kept = [entry for entry in stated or [] if not isinstance(entry, dict) or entry.get("content") not in over]
    if isinstance(model, dict) and isinstance(model.get("vocab"), dict):
        vocabulary = {text: index for text, index in model["vocab"].items() if over.get(text) != index}
        model = {**model, "vocab": vocabulary}
    return {**layout, "added_tokens": kept, "model": model}


def _added(layout: dict[str, Any], rows: int, base: Path, by_flag: bool) -> dict[int, tuple[str, TokenType]]:
    """Return text and kind of each added token. llama.cpp finds user-defined ones in the text as written."""
    added = {}
    try:
        for entry in layout.get("added_tokens") or []:
            text, index = entry["content"], entry["id"]
            bpe.check_index(text, index, rows, base)
            if entry.get("special") or (not by_flag and looks_special(text)):
                added[index] = text, TokenType.CONTROL
            else:
                added[index] = text if by_flag else text.replace("▁", " "), TokenType.USER_DEFINED
    except (TypeError, KeyError, AttributeError):
        raise ToolkitError(f"`{base / 'tokenizer.json'}` holds damaged added_tokens", hint=WHOLE_BASE) from None
    return added


def _special_ids(folder: Path, base: Path, encoder: Any, rows: int) -> dict[str, int]:
    """Return the ids of the special tokens that tokenizer_config.json names by text or config.json by number.

    A model that also sees images may have the numbers in its `text_config`.
    """
    path = folder / "tokenizer_config.json"
    named = read_json(path, WHOLE_BASE) if path.is_file() else {}
    config = read_config(base)
    inner = config.get("text_config")
    ids = {}
    for name in _SPECIAL_KEYS:
        entry = named.get(f"{name}_token")
        text = entry.get("content") if isinstance(entry, dict) else entry
        index = encoder.token_to_id(text) if isinstance(text, str) else None
        if index is None:
            index = config.get(f"{name}_token_id")
        if index is None and isinstance(inner, dict):
            index = inner.get(f"{name}_token_id")
        if type(index) is int and 0 <= index < rows:
            ids[name] = index
    return ids
