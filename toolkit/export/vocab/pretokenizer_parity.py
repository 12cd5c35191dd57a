"""Where llama.cpp splits text into words differently from a base model's tokenizer, and which texts that changes.

llama.cpp's patterns `tekken` and `gpt-4o` know no combining marks, and treat every letter beyond a-z and A-Z as
both upper and lower case; `qwen2` and `qwen35` do not compose characters (NFC). No name that a GGUF could state instead
means what these tokenizers do. Facts: llama.cpp's src/llama-vocab.cpp and src/unicode.cpp.
"""

from collections.abc import Iterable
from itertools import count, islice
from pathlib import Path
from typing import Any

from toolkit.core import console
from toolkit.core.errors import ToolkitError
from toolkit.core.native import guarded
from toolkit.core.parsing import read_json
from toolkit.export.vocab import bpe
from toolkit.prompt.tokenizer import load_tokenizer

_UPPER, _LOWER = r"((?=[\p{L}])([^a-z]))", r"((?=[\p{L}])([^A-Z]))"
_WORDS = (rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+", rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*")
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SHORT = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])?"
# Pre-tokenizer → the pattern that llama.cpp splits by, if it is not the tokenizer's, and what is different about it.
_OTHER_PATTERNS = {
    "tekken": "|".join([*_WORDS, r"\p{N}", _REST]),
    "gpt-4o": "|".join([*(word + _SHORT for word in _WORDS), r"\p{N}{1,3}", _REST]),
}
_WHAT = {
    **dict.fromkeys(_OTHER_PATTERNS, "words with combining marks or with capitals beyond A-Z"),
    **dict.fromkeys(("qwen2", "qwen35"), "characters that Unicode can also write composed (NFC)"),
}


def warn_if_split_differs(folder: Path, texts: Iterable[str] | None) -> None:
    """Warn if llama.cpp reads some of a model's training texts as different tokens, and say how many.

    `texts` is None if they are unknown: the warning then names the kind of text. There is no warning for a vocabulary
    that llama.cpp splits the same way, or does not support at all (the export refuses that).
    """
    pre = _named(folder)
    if pre not in _WHAT:
        return
    what = f"llama.cpp's `{pre}` splits {_WHAT[pre]} differently from this tokenizer"
    if texts is None:
        console.warn(f"{what}: prompts with such text get different tokens than in training")
        return
    numbers = count()
    found = unequal(folder, (text for text, _ in zip(texts, numbers, strict=False)))
    if found:
        console.warn(
            f"{what}: {len(found):,} of {next(numbers):,} records get different tokens than in training, "
            f"the first at `{found[0]}`; `toolkit validate` counts the held-out ones"
        )


def unequal(folder: Path, texts: Iterable[str]) -> list[str]:
    """Return the word of the first difference for each text that llama.cpp reads as different tokens."""
    encoder, runtime = load_tokenizer(folder).encoder, as_in_llama_cpp(folder)
    if runtime is None:
        return []
    # Plain ASCII has neither marks nor other capitals.
    suspects = (text for text in texts if not text.isascii())
    words = []
    while batch := list(islice(suspects, 256)):
        with guarded(_damaged):
            ways = [each.encode_batch(batch, add_special_tokens=False) for each in (encoder, runtime)]
        for text, ours, theirs in zip(batch, *ways, strict=True):
            if ours.ids != theirs.ids:
                pairs = zip(ours.ids, theirs.ids, strict=False)
                first = next((n for n, (one, other) in enumerate(pairs) if one != other), len(ours.ids) - 1)
                words.append(_word(text, ours.offsets[first][0]))
    return words


def as_in_llama_cpp(folder: Path) -> Any:
    """Return a `tokenizers.Tokenizer` that gives llama.cpp's ids; None where the folder's own one does."""
    from tokenizers import Regex, Tokenizer, pre_tokenizers

    pre = _named(folder)
    if pre not in _WHAT:
        return None
    with guarded(_damaged):
        encoder = Tokenizer.from_str(load_tokenizer(folder).encoder.to_str())
    encoder.encode_special_tokens = True
    encoder.normalizer = None
    if pre in _OTHER_PATTERNS:
        split = pre_tokenizers.Split(Regex(_OTHER_PATTERNS[pre]), behavior="isolated")
        encoder.pre_tokenizer = pre_tokenizers.Sequence(
            [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        )
    return encoder


def _damaged(reason: str) -> ToolkitError:
    return ToolkitError(f"the base model's tokenizer.json is damaged: {reason}", hint="copy the base model again")


def _named(folder: Path) -> str:
    try:
        return bpe.pre_tokenizer(read_json(folder / "tokenizer.json", bpe.WHOLE_BASE), folder)
    except ToolkitError:
        return ""


def _word(text: str, place: int) -> str:
    """Return the word at a place, or the next one if there is white space, cut to fit a line."""
    behind = text[place:]
    place += len(behind) - len(behind.lstrip())
    start = max((at + 1 for at, character in enumerate(text[:place]) if character.isspace()), default=0)
    return next(iter(text[start:].split(maxsplit=1)), "")[:40]
