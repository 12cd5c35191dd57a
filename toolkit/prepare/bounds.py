"""More tokens than a record can have, counted by its words: of a million rows few are near the limit."""

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

from toolkit.formats.pretokenizers import PRE_TOKENIZERS
from toolkit.prompt.format import Prompt
from toolkit.prompt.tokenizer import Tokenizer

# Tokens that text of n bytes may have beyond n: BOS, EOS, and a space that the tokenizer puts before prompt and answer.
MARGIN = 4
KEPT = 1 << 18  # words whose tokens are remembered
# Before a blank between two such characters, each of PRE_TOKENIZERS begins a new word.
_BETWEEN = re.compile(r" (?<=[!-~] )(?=[!-~])")


class TokenBound:
    """Bounds of the tokens of texts. A word is counted once; a text's first and last word may join others.

    Where the tokenizer's words are not known to end at blanks, a token has at least one byte: byte-level BPE.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self._by_bytes = is_byte_level(tokenizer)
        self._by_words = self._by_bytes and _ends_at_blanks(tokenizer)
        self._of_word: dict[str, int] = {}

    def over(self, limit: int, records: Sequence[tuple[Prompt, str]]) -> list[int]:
        """Return the numbers of the records that may have more tokens, with BOS and EOS."""
        if not self._by_bytes:
            return [*range(len(records))]
        texts = ((prompt.text, answer) for prompt, answer in records)
        over = [number for number, some in enumerate(texts) if sum(map(self._bytes, some)) + MARGIN > limit]
        if not self._by_words:
            return over
        runs = ((*self.tokenizer.segments(records[number][0]), records[number][1]) for number in over)
        parted = [[run if isinstance(run, int) else _BETWEEN.split(run) for run in some] for some in runs]
        self._learn(words for some in parted for words in some if not isinstance(words, int))
        sizes = (sum(1 if isinstance(words, int) else self._tokens(words) for words in some) for some in parted)
        return [number for number, size in zip(over, sizes, strict=True) if size + MARGIN > limit]

    def _tokens(self, words: list[str]) -> int:
        ends = self._bytes(words[0]) + (self._bytes(words[-1]) + 1 if len(words) > 1 else 0)
        return ends + sum(map(self._of_word.__getitem__, words[1:-1]))

    def _bytes(self, text: str) -> int:
        if text.isascii():
            return len(text)
        normalizer = self.tokenizer.encoder.normalizer
        return len((normalizer.normalize_str(text) if normalizer is not None else text).encode("utf-8"))

    def _learn(self, texts: Iterable[list[str]]) -> None:
        """Count the tokens of words that are met first, all at once."""
        if len(self._of_word) > KEPT:
            self._of_word.clear()
        new = list({word for words in texts for word in words[1:-1]} - self._of_word.keys())
        found = self.tokenizer.encode_batch([f" {word}" for word in new])
        self._of_word.update(zip(new, map(len, found), strict=True))


def is_byte_level(tokenizer: Tokenizer) -> bool:
    """Say whether the tokenizer cuts bytes into tokens, as GPT-2's and Llama 3's do."""
    pre_tokenizer = tokenizer.encoder.pre_tokenizer
    return type(tokenizer.encoder.model).__name__ == "BPE" and "ByteLevel(" in repr(pre_tokenizer)


def _ends_at_blanks(tokenizer: Tokenizer) -> bool:
    """Say whether words are known to end at blanks: those of PRE_TOKENIZERS do, and no added token has one inside."""
    encoder = tokenizer.encoder
    normalizer = json.loads(encoder.normalizer.__getstate__()) if encoder.normalizer is not None else None
    steps: dict[str, Any] = json.loads(encoder.pre_tokenizer.__getstate__())
    fields = {"type", "pattern", "behavior", "invert", "add_prefix_space", "use_regex", "individual_digits"}
    plain = [{name: step[name] for name in step if name in fields} for step in steps.get("pretokenizers", [steps])]
    known = any(one.steps == plain and normalizer in (None, one.normalizer) for one in PRE_TOKENIZERS.values())
    added = (token for token in encoder.get_added_tokens_decoder().values() if not token.special)
    return known and not any(one.lstrip or one.rstrip or _BETWEEN.search(one.content) for one in added)
