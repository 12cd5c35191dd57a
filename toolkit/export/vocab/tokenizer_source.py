"""Whose tokenizer and EOS belong to the trained model: the base's, or those that lie beside the adapter."""

from pathlib import Path
from typing import Any

from toolkit.formats.checkpoint import read_json
from toolkit.prompt.tokenizer import Tokenizer

DAMAGED = "the tokenizer is damaged: copy it again"


def tokenizer_folder(base: Path, adapter: Path, rows: int) -> Path:
    """Return the adapter's folder where its tokenizer is the base's with tokens added that fit, else the base's.

    A tokenizer beside an adapter mostly is a copy of the base's. Where it knows more tokens than the embedding has
    rows, the model was never trained with them: a `[PAD]` added without resize_token_embeddings.
    """
    if not (adapter / "tokenizer.json").is_file() or not (base / "tokenizer.json").is_file():
        return base
    known, found = (_ids(read_json(folder / "tokenizer.json", DAMAGED)) for folder in (base, adapter))
    return adapter if known.items() < found.items() and max(found.values()) < rows else base


def eos(adapter: Path | None, tokenizer: Tokenizer) -> int:
    """Return the trained model's EOS: the one named beside the adapter, if the vocabulary has it, else the base's."""
    path = adapter / "tokenizer_config.json" if adapter is not None else None
    if path is None or not path.is_file():
        return tokenizer.eos
    named = read_json(path, DAMAGED).get("eos_token")
    text = named.get("content") if isinstance(named, dict) else named
    found: int | None = tokenizer.encoder.token_to_id(text) if isinstance(text, str) else None
    return tokenizer.eos if found is None else found


def _ids(layout: dict[str, Any]) -> dict[str, int]:
    """The id of each token in a tokenizer.json; a Unigram vocabulary is a list of texts with their scores."""
    model, added = layout.get("model"), layout.get("added_tokens")
    stated = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(stated, list):
        stated = {entry[0]: index for index, entry in enumerate(stated) if isinstance(entry, list) and entry}
    pairs = list(stated.items()) if isinstance(stated, dict) else []
    pairs += [(entry.get("content"), entry.get("id")) for entry in added or [] if isinstance(entry, dict)]
    return {text: index for text, index in pairs if isinstance(text, str) and type(index) is int}
