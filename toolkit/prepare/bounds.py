"""An upper bound on a record's tokens, from its words: only few rows of a million then need exact counting."""

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

from toolkit.formats.pretokenizers import PRE_TOKENIZERS
from toolkit.prompt.format import Prompt
from toolkit.prompt.tokenizer import Tokenizer

# Tokens that text of n bytes may have beyond n: BOS, EOS, and a space that the tokenizer puts before prompt and answer.
MARGIN = 4
KEPT = 1 << 21  # characters of the words whose tokens are remembered: where few blanks are, a word is long
# Before a blank between two such characters, each of PRE_TOKENIZERS begins a new word.
_BETWEEN = re.compile(r" (?<=[!-~] )(?=[!-~])")
_PAST_BLANK = re.compile(r"[!-~] ([!-~]|\Z)")  # an added token that takes such a blank from the word behind it
_FORMS = {"NFC", "NFD", "NFKC", "NFKD"}  # normalizers that leave ASCII as it is
_CUTTING = {"ByteLevel", "CharDelimiterSplit", "Digits", "Punctuation", "Split", "UnicodeScripts"}  # they add nothing


class TokenBound:
    """Bounds of the tokens of texts. A word is counted once; a text's first and last word may join others.

    Where the tokenizer's words are not known to end at blanks, a token has at least one byte: byte-level BPE.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self._by_bytes = is_byte_level(tokenizer)
        self._by_words = self._by_bytes and _ends_at_blanks(tokenizer)
        self._of_word: dict[str, int] = {}
        self._characters = 0

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
        if self._characters > KEPT:
            self._of_word.clear()
            self._characters = 0
        new = list({word for words in texts for word in words[1:-1]} - self._of_word.keys())
        found = self.tokenizer.encode_batch([f" {word}" for word in new])
        self._of_word.update(zip(new, map(len, found), strict=True))
        self._characters += sum(map(len, new))


def is_byte_level(tokenizer: Tokenizer) -> bool:
    """Say whether a token has at least one byte of the text, as with GPT-2's and Llama 3's byte-level BPE.

    A step that writes more than the text has makes tokens of nothing; then it is not so. One space before each text
    has its place in MARGIN, but no space before each piece of a text.
    """
    encoder = tokenizer.encoder
    if type(encoder.model).__name__ != "BPE" or encoder.model.byte_fallback:
        return False
    steps = _steps(encoder.pre_tokenizer)
    kinds = [step["type"] for step in steps]
    plain = all(form["type"] in _FORMS for form in _steps(encoder.normalizer)) and {*kinds} <= _CUTTING
    spaced = any(step.get("add_prefix_space") for step in steps) and (len(steps) > 1 or bool(_added(encoder)))
    return plain and kinds.count("ByteLevel") == 1 and not spaced


def _ends_at_blanks(tokenizer: Tokenizer) -> bool:
    """Say whether words are known to end at blanks: those of PRE_TOKENIZERS do, if no added token goes past a blank."""
    encoder = tokenizer.encoder
    forms = _steps(encoder.normalizer)
    fields = {"type", "pattern", "behavior", "invert", "add_prefix_space", "use_regex", "individual_digits"}
    plain = [{name: step[name] for name in step if name in fields} for step in _steps(encoder.pre_tokenizer)]
    known = any(one.steps == plain and forms in ([], [one.normalizer]) for one in PRE_TOKENIZERS.values())
    return known and not any(one.lstrip or one.rstrip or _PAST_BLANK.search(one.content) for one in _added(encoder))


def _steps(part: Any) -> list[dict[str, Any]]:
    """Return the steps of a normalizer or a pre-tokenizer as tokenizer.json has them; of None there are none."""
    whole: dict[str, Any] = json.loads(part.__getstate__()) if part is not None else {"normalizers": []}
    steps: list[dict[str, Any]] = whole.get("normalizers", whole.get("pretokenizers", [whole]))
    return steps


def _added(encoder: Any) -> list[Any]:
    """Return the added tokens that are found in any text."""
    return [token for token in encoder.get_added_tokens_decoder().values() if not token.special]
