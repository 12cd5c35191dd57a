"""How Ollama shows the tokens of an answer: broken characters, control tokens and candidates, by generation.

From 0.30 it sends what llama.cpp's own server makes of the bytes. 0.24 shows control tokens by name and drops broken
bytes, with what stands behind them in the same piece (runner/ollamarunner/runner.go, `flushPending`).
"""

import re
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Shown:
    """What a server shows of an answer's first tokens, and where its candidates for the next one stand, if they do."""

    text: str
    following: int | None


Manner = Callable[[list[bytes]], Shown]


def replaced(texts: list[bytes]) -> Shown:
    """Show tokens as 0.30 and later do: whole characters, a mark for broken ones; candidates come with such pieces."""
    raw, entries = b"", 0
    for text in texts:
        raw += text
        entries += bool(text) and complete(raw) == raw
    shown = one_mark(complete(raw).decode("utf-8", errors="replace"))
    return Shown(shown, entries if complete(raw) == raw else None)


def dropped(texts: list[bytes]) -> Shown:
    """Show tokens as 0.24 does: it waits for whole characters, then sends a piece up to its first broken byte.

    Candidates come with every token of a piece, unless nothing of it is left.
    """
    shown, entries = "", 0
    pending: list[bytes] = []
    for text in texts:
        pending.append(text.replace(b"\0", b""))
        piece = b"".join(pending)
        if not _waits(piece):
            valid = _valid(piece)
            shown += valid
            entries += len(pending) if valid else 0
            pending = []
    return Shown(one_mark(shown + _valid(b"".join(pending))), entries + len(pending))


def _waits(raw: bytes) -> bool:
    """Say whether 0.24 waits for the rest of a character (runner/common/stop.go, `IncompleteUnicode`)."""
    for index, byte in enumerate(reversed(raw[-4:]), 1):
        if byte & 0xC0 != 0x80:  # the first that continues nothing decides
            return _leads_further(byte, index)
    return False


def _leads_further(byte: int, count: int) -> bool:
    """Say whether a byte begins a character of more than `count` bytes."""
    leads = ((0xE0, 0xC0, 2), (0xF0, 0xE0, 3), (0xF8, 0xF0, 4))
    return any(byte & mask == lead and count < length for mask, lead, length in leads)


def _valid(raw: bytes) -> str:
    """Return the longest beginning that is UTF-8."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as exc:
        return raw[: exc.start].decode("utf-8")


def one_mark(text: str) -> str:
    """Write one replacement character for each run of them, none at the end: programs differ in how many they make."""
    return re.sub("\ufffd+", "\ufffd", text).rstrip("\ufffd")


def complete(raw: bytes) -> bytes:
    """Cut off a last character that is not whole, as llama.cpp's server judges it (validate_utf8, tools/server)."""
    for index, byte in enumerate(reversed(raw[-4:]), 1):
        if _leads_further(byte, index):
            return raw[:-index]
    return raw
