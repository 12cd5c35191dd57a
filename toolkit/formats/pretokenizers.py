"""llama.cpp's pre-tokenizers of byte-level BPE, by the name that `tokenizer.ggml.pre` gives them.

Definitions: llama.cpp's src/llama-vocab.cpp.
"""

from dataclasses import dataclass
from typing import Any

LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2_SPLIT = LLAMA3_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}")
QWEN35_SPLIT = QWEN2_SPLIT.replace(r"]?\p{L}+", r"]?[\p{L}\p{M}]+").replace(
    r"[^\s\p{L}\p{N}]+", r"[^\s\p{L}\p{M}\p{N}]+"
)
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_WORDS = (rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+", rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*")
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
TEKKEN_SPLIT = "|".join([*_WORDS, r"\p{N}", _REST])
GPT4O_SPLIT = "|".join([*(word + _SHORT for word in _WORDS), r"\p{N}{1,3}", _REST])


@dataclass(frozen=True)
class PreTokenizer:
    """What a name in llama.cpp stands for: tokenizer.json's normalizer and steps, and BPE's ignore_merges."""

    normalizer: dict[str, Any] | None
    steps: list[dict[str, Any]]
    ignore_merges: bool


def _split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def _bytes(use_regex: bool) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "use_regex": use_regex}


PRE_TOKENIZERS = {
    "llama-bpe": PreTokenizer(None, [_split(LLAMA3_SPLIT), _bytes(False)], True),
    "tekken": PreTokenizer(None, [_split(TEKKEN_SPLIT), _bytes(False)], True),
    "smollm": PreTokenizer(None, [{"type": "Digits", "individual_digits": True}, _bytes(True)], False),
    "gpt-2": PreTokenizer(None, [_bytes(True)], False),
    "gpt-4o": PreTokenizer(None, [_split(GPT4O_SPLIT), _bytes(False)], False),
    "dbrx": PreTokenizer(None, [_split(LLAMA3_SPLIT), _bytes(False)], False),
    "qwen2": PreTokenizer({"type": "NFC"}, [_split(QWEN2_SPLIT), _bytes(False)], False),
    "qwen35": PreTokenizer({"type": "NFC"}, [_split(QWEN35_SPLIT), _bytes(False)], False),
}
