"""Whose tokenizer and EOS belong to the trained model: the base's, or those next to the adapter."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.core import console
from toolkit.core.errors import ToolkitError
from toolkit.core.parsing import read_json
from toolkit.export.vocab import bpe, sentencepiece
from toolkit.formats.names import three_names
from toolkit.prompt.tokenizer import SAVE_IT, Tokenizer, load_tokenizer
from toolkit.prompt.tokenizer_json import read_layout
from toolkit.prompt.vocabulary import named_eos

DAMAGED = "the tokenizer is damaged: copy it again"
FLAGS = ("special", "normalized", "lstrip", "rstrip", "single_word")


@dataclass(frozen=True)
class TokenizerSource:
    """Where a trained model's tokens come from.

    `folder` holds the vocabulary that is written, `trained` the tokenizer that training used: the same, but for an
    adapter's tokenizer that has more tokens than the embedding has rows. `said` is the message to the user; `loud`
    makes it a warning.
    """

    folder: Path
    trained: Path
    said: str = ""
    loud: bool = False

    def say(self) -> None:
        """Tell the user whose vocabulary the output gets, if it is not simply the base's."""
        if self.said:
            (console.warn if self.loud else console.info)(f"vocabulary: {self.said}")


def tokenizer_source(base: Path, adapter: Path | None, rows: int) -> TokenizerSource:
    """Compare the tokenizer next to an adapter with the base's, and choose the one that fits the embedding's rows.

    Equal ones: the base's. Ids within the embedding's `rows`: the adapter's, even if tokens were renamed or added. More
    ids than rows: the base's, because the model was never trained with them (a `[PAD]` added without
    resize_token_embeddings), unless the base has them too (Gemma-3 1B's token of an image). Raises ToolkitError for an
    adapter without tokenizer.json whose settings name tokens that the base's vocabulary does not have.
    """
    if adapter is None or not (base / "tokenizer.json").is_file():
        return TokenizerSource(base, base)
    if not (adapter / "tokenizer.json").is_file():
        _check_named(base, adapter)
        return TokenizerSource(base, base)
    ours, theirs = (read_layout(folder, DAMAGED) for folder in (base, adapter))
    known, found = token_ids(ours), token_ids(theirs)
    place = f"`{adapter}`"
    if not found:
        raise ToolkitError(
            f"`{adapter / 'tokenizer.json'}` holds no vocabulary",
            hint=f"{SAVE_IT}, or delete it: the base's is then used",
        )
    beyond = sorted((index, text) for text, index in found.items() if index >= rows and known.get(text) != index)
    if beyond:
        _check_below(known, {text: index for text, index in found.items() if index < rows}, adapter, len(beyond), rows)
        if not _same_ids(ours, theirs, base, adapter):
            raise _unusable(adapter, "splits text differently from the base's", len(beyond), rows)
        texts = [text for _, text in beyond]
        said = (
            f"the base's; the tokenizer in {place} has {len(beyond)} more tokens than the embedding has rows ({rows:,})"
            f": {three_names(texts)}"
        )
        named = named_eos(adapter)
        if named and named[0] in texts:
            said += f"; its EOS `{named[0]}` is one of them, so answers end in the base's"
        return TokenizerSource(base, adapter, said, loud=True)
    if known == found and _flags(ours) == _flags(theirs) and _same_ids(ours, theirs, base, adapter):
        return TokenizerSource(base, adapter)
    return TokenizerSource(adapter, adapter, *_compared(known, found, place))


def _check_below(known: dict[str, int], found: dict[str, int], adapter: Path, beyond: int, rows: int) -> None:
    """Raise ToolkitError if a tokenizer with more tokens than rows also renames the base's: neither fits alone."""
    there = {index: text for text, index in found.items()}
    renamed = [f"{text} → {there[index]}" for text, index in known.items() if there.get(index, text) != text]
    if renamed:
        raise _unusable(adapter, f"renames tokens of the base ({three_names(renamed)})", beyond, rows)


def _unusable(adapter: Path, what: str, beyond: int, rows: int) -> ToolkitError:
    return ToolkitError(
        f"the tokenizer in `{adapter}` {what}, and has {beyond} more tokens than the embedding has rows ({rows:,})",
        hint="remove those tokens from its tokenizer.json, or save the adapter with its resized embedding: "
        "save_pretrained(…, save_embedding_layers=True)",
    )


def _compared(known: dict[str, int], found: dict[str, int], place: str) -> tuple[str, bool]:
    """Say what is different in an adapter's own tokenizer; loud if much is."""
    texts = {index: text for text, index in known.items()}
    there = {index: text for text, index in found.items()}
    renamed = [f"{texts[index]} → {text}" for index, text in sorted(there.items()) if texts.get(index, text) != text]
    added = [text for index, text in sorted(there.items()) if index not in texts]
    gone = [text for index, text in sorted(texts.items()) if index not in there]
    parts = [
        f"{len(these):,} {what} ({three_names(these)})"
        for what, these in (("renamed", renamed), ("added", added), ("absent", gone))
        if these
    ]
    what = f"tokens {', '.join(parts)}" if parts else "the same tokens, found in a text by other rules"
    loud = len(renamed) + len(gone) > len(known) // 10
    note = "; check that the adapter was trained with this one" if loud else ""
    return f"the adapter's own tokenizer in {place}, compared with the base's: {what}{note}", loud


def _flags(layout: dict[str, Any]) -> dict[Any, tuple[bool, ...]]:
    added = [entry for entry in layout.get("added_tokens") or [] if isinstance(entry, dict)]
    return {entry.get("id"): tuple(bool(entry.get(flag)) for flag in FLAGS) for entry in added}


def _same_ids(ours: dict[str, Any], theirs: dict[str, Any], base: Path, adapter: Path) -> bool:
    """Tell whether two tokenizers with the same tokens make the same ids of a text, with the same BOS in front."""
    if _rules(ours) != _rules(theirs):
        return False
    if any(ours.get(key) != theirs.get(key) for key in ("normalizer", "pre_tokenizer")) and (
        _splits(ours, base) != _splits(theirs, adapter)
    ):
        return False
    if ours.get("post_processor") == theirs.get("post_processor"):
        return True
    return load_tokenizer(base).bos == load_tokenizer(adapter, eos_from=base).bos


def _rules(layout: dict[str, Any]) -> dict[str, Any]:
    """How a tokenizer.json's model makes tokens of a word: merges in their order, and settings that are not off."""
    model = layout.get("model")
    stated = {key: value for key, value in model.items() if key != "vocab"} if isinstance(model, dict) else {}
    return {key: value for key, value in {**stated, "merges": bpe.pairs(stated.get("merges"))}.items() if value}


def _splits(layout: dict[str, Any], folder: Path) -> str | bool:
    """Name how a tokenizer splits text, in llama.cpp's words; empty for a way that llama.cpp does not support."""
    try:
        if sentencepiece.is_sentencepiece(layout):
            return sentencepiece.space_prefix(layout, folder)
        return bpe.pre_tokenizer(layout, folder)
    except ToolkitError:
        return ""


def _check_named(base: Path, adapter: Path) -> None:
    """Raise ToolkitError if an adapter's settings give a token another text than the base's vocabulary does."""
    path = adapter / "tokenizer_config.json"
    values = read_json(path, DAMAGED) if path.is_file() else {}
    named = values.get("added_tokens_decoder")
    texts = {index: text for text, index in token_ids(read_layout(base, DAMAGED)).items()}
    for key, entry in (named if isinstance(named, dict) else {}).items():
        text = entry.get("content") if isinstance(entry, dict) else None
        index = int(key) if str(key).isdecimal() and len(str(key)) < 10 else -1
        if isinstance(text, str) and texts.get(index, text) != text:
            raise ToolkitError(
                f"`{path}` calls token {index} `{text}`, which is `{texts[index]}` in the base's vocabulary, but there "
                "is no tokenizer.json next to it",
                hint=SAVE_IT,
            )
    named_by = named_eos(adapter)
    if named_by and named_by[0] not in texts.values():
        raise ToolkitError(
            f"`{named_by[1]}` names the EOS `{named_by[0]}`, which the base's vocabulary does not have, and there is "
            "no tokenizer.json next to it",
            hint=SAVE_IT,
        )


def eos(adapter: Path | None, tokenizer: Tokenizer) -> int:
    """Return the trained model's EOS: the one that the adapter names, if the vocabulary has it, else the base's."""
    named = named_eos(adapter) if adapter is not None else None
    found: int | None = tokenizer.encoder.token_to_id(named[0]) if named else None
    return tokenizer.eos if found is None else found


def token_ids(layout: dict[str, Any]) -> dict[str, int]:
    """Return the id of each token in a tokenizer.json; a Unigram vocabulary is a list of texts with their scores."""
    model, added = layout.get("model"), layout.get("added_tokens")
    stated = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(stated, list):
        stated = {entry[0]: index for index, entry in enumerate(stated) if isinstance(entry, list) and entry}
    pairs = list(stated.items()) if isinstance(stated, dict) else []
    pairs += [(entry.get("content"), entry.get("id")) for entry in added or [] if isinstance(entry, dict)]
    return {text: index for text, index in pairs if isinstance(text, str) and type(index) is int}
