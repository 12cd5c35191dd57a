"""Added tokens that llama.cpp finds in a text in another way than the library tokenizers does.

llama.cpp finds every added token as it is written. It has no `lstrip`, `rstrip`, `single_word` and `normalized`, except
for control tokens of files with certain names. A text shows whether that makes a difference.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

STRIPS = ("lstrip", "rstrip", "single_word")


@dataclass(frozen=True)
class AddedToken:
    """An added token: its text, whether it is a control token by its flag, and its flags that llama.cpp lacks."""

    text: str
    special: bool
    flags: tuple[str, ...]

    @property
    def probe(self) -> str:
        """A text with the token inside a word, between spaces and at the ends of lines."""
        token = self.text
        return f"take{token}now, take {token} now\n{token}\ntake{token}"


def added_tokens(layout: Mapping[str, Any]) -> list[AddedToken]:
    """Return the added tokens of a tokenizer.json.

    Those with `▁` are left out: llama.cpp's converter writes them as spaces, and the vocabulary merges runs of spaces.
    """
    found = []
    for entry in layout.get("added_tokens") or []:
        if isinstance(entry, dict) and isinstance(entry.get("content"), str) and "▁" not in entry["content"]:
            text, special = entry["content"], bool(entry.get("special"))
            flags = [flag for flag in STRIPS if entry.get(flag)]
            if entry.get("normalized") and not special and layout.get("normalizer"):
                flags.append("normalized")
            if text.strip():
                found.append(AddedToken(text, special, tuple(flags)))
    return found
