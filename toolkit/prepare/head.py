"""Texts that are too large to be held in memory, and the first rows of one, for a check."""

import json

WHOLE = 32 * 2**20  # bytes of a text that is held in memory: MedQuAD's 2,479 rows have 3.5 MB
HEAD = 4 * 2**20  # bytes that are read of a larger one
ROWS = 2500  # that are read of other files


def whole_records(start: bytes) -> bytes:
    """Return the records of a text's first bytes that are whole; all of it where no record ends in it."""
    if start.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] in (b"[", b"{"):
        items = _json_items(start)
        if items:
            return items
    return _whole_lines(start)


def _whole_lines(start: bytes) -> bytes:
    """Cut after the last line that does not end within a quoted cell."""
    end = start.rfind(b"\n") + 1
    while end > 0 and start.count(b'"', 0, end) % 2:
        end = start.rfind(b"\n", 0, start.rfind(b'"', 0, end)) + 1
    return start[:end] if end > 0 else start


def _json_items(start: bytes) -> bytes:
    """Return the whole items of a list that breaks off, as a list; nothing where the text holds one object per line."""
    text = start.decode("utf-8-sig", "surrogateescape")
    opening = text.find("[")
    lines = text.split("\n", 2)
    if opening < 0 or (text.lstrip().startswith("{") and len(lines) > 1 and _is_json(lines[0])):
        return b""
    decoder, end, count = json.JSONDecoder(), opening + 1, 0
    try:
        while True:
            position = end
            while text[position : position + 1] and text[position] in ", \t\r\n":
                position += 1
            _, end = decoder.raw_decode(text, position)
            count += 1
    except (ValueError, RecursionError):  # the item that breaks off
        pass
    return (text[opening:end] + "]").encode("utf-8", "surrogateescape") if count else b""


def _is_json(line: str) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True
