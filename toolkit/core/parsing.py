"""The only readers of JSON and TOML: a hostile or broken file gives one line that names the key.

Python's own readers raise errors of three kinds for deep nesting and long numbers, and take Infinity and halves of
surrogate pairs, which break whatever works on them later.
"""

import json
import math
import re
import stat
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from toolkit.core.errors import ToolkitError

DEEPEST = 100  # lists and objects within each other; a tokenizer.json has about eight
DIGITS = 40  # model_max_length, where nobody set it, has 31
DIGITS_OF_DATA = 4000  # Python refuses to write or read a number of more than 4,300
LARGEST_JSON = 256 << 20  # bytes; the tokenizer.json of a vocabulary of 256,000 tokens is 35 MB
LARGEST_TOML = 4 << 20
WRITE_AGAIN = "the file is damaged: copy or write it again"

_HALF = re.compile("[\ud800-\udfff]")
_ESCAPED_HALF = re.compile(r"\\u[dD][89a-fA-F]")
_PIECES = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{}:]', re.DOTALL)

Pairs = Callable[[list[tuple[str, Any]]], Any]


class _TooLong:
    """Stands for a number with too many digits until its key is found."""


def parse_json(text: bytes | str, *, data: bool = False, pairs: Pairs | None = None) -> Any:
    """Read JSON text (RFC 8259); `pairs` is json's `object_pairs_hook`.

    Raises ValueError, in words that name the key, for what is not JSON or not UTF-8, nesting of more than 100, numbers
    of more than 40 digits or beyond a float, NaN, Infinity and halves of surrogate pairs. Rows of users (`data`) may
    hold the last three, and numbers of 4,000 digits.
    """
    content = _decoded(text) if isinstance(text, bytes) else text
    most, doubtful = DIGITS_OF_DATA if data else DIGITS, False

    def whole(digits: str) -> Any:
        nonlocal doubtful
        if len(digits) <= most:
            return int(digits)
        doubtful = True
        return _TooLong()

    def broken(number: str) -> float:
        nonlocal doubtful
        value = float(number)
        doubtful = doubtful or not math.isfinite(value)
        return value

    try:
        value = json.loads(content, parse_int=whole, parse_float=broken, parse_constant=broken, object_pairs_hook=pairs)
    except RecursionError:
        raise ValueError(_too_deep(content)) from None
    if _is_deep(value):
        raise ValueError(_too_deep(content))
    if doubtful or (not data and (_ESCAPED_HALF.search(content) or _HALF.search(content))):
        _refuse(value, most, data)
    return value


def parse_toml(text: str) -> dict[str, Any]:
    """Read TOML text (1.0); raises ValueError, in words that name the key, as `parse_json`, and beyond 64 bits."""
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        raise
    except RecursionError:
        raise ValueError(_too_deep(text, toml=True)) from None
    except ValueError:  # Python reads no decimal number of more than 4,300 digits
        line = next((line for line in text.splitlines() if re.search(r"[0-9][0-9_]{3999}", line)), "")
        raise ValueError(f"{_named(line.partition('=')[0].strip())} is a number with too many digits") from None
    if _is_deep(values):
        raise ValueError(_too_deep(text, toml=True))
    _refuse(values, 19, False)
    return values


def read_json(path: Path, hint: str = WRITE_AGAIN) -> dict[str, Any]:
    """Return the object in a JSON file; raises ToolkitError with `hint` if there is none."""
    try:
        values = parse_json(read_bounded(path, LARGEST_JSON))
    except FileNotFoundError:
        raise ToolkitError(f"no `{path.name}` in `{path.parent}`", hint=hint) from None
    except ValueError as exc:
        raise ToolkitError(f"`{path}` cannot be read as JSON: {exc}", hint=WRITE_AGAIN) from None
    if not isinstance(values, dict):
        raise ToolkitError(f"`{path}` holds no JSON object", hint=WRITE_AGAIN)
    return values


def read_json_or_nothing(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file that need not be there; empty where there is none that can be read."""
    try:
        return read_json(path)
    except (OSError, ToolkitError):
        return {}


def read_bounded(path: Path, most: int) -> bytes:
    """Return a file's bytes; raises ValueError where they are more than `most`, as an endless device's are."""
    with path.open("rb") as file:
        there = path.stat()
        size = there.st_size if stat.S_ISREG(there.st_mode) else most
        content = file.read(min(size, most) + 1)
    if len(content) > most:
        raise ValueError(f"it is larger than {most >> 20} MB")
    return content


def _decoded(text: bytes) -> str:
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError as exc:
        raise ValueError(f"it is not UTF-8 text: byte 0x{text[exc.start]:02x} at offset {exc.start:,}") from None


def _is_deep(value: Any) -> bool:
    """Tell whether lists and objects are nested too deeply; one level after the other, for a value of any depth."""
    level = [value] if type(value) in (dict, list) else []
    for _ in range(DEEPEST):
        if not level:
            return False
        level = [
            inner
            for outer in level
            for inner in (outer.values() if type(outer) is dict else outer)
            if type(inner) in (dict, list)
        ]
    return bool(level)


def _too_deep(text: str, *, toml: bool = False) -> str:
    """Say where the nesting is too deep: the outermost key of JSON, the line of TOML."""
    key, last, depth = "", "", 0
    for found in _PIECES.finditer(text):
        piece = found[0]
        depth += (piece in "[{") - (piece in "]}") if len(piece) == 1 else 0
        if depth == 1 and len(piece) > 1:
            last = piece[1:-1]
        elif depth == 1 and piece == ":":
            key = last
        if depth > DEEPEST:
            if toml:
                start = text.rfind("\n", 0, found.start()) + 1
                key = text[start : found.start()].partition("=")[0].strip()
            break
    return f"{_named(key)} is nested more than {DEEPEST} deep"


def _refuse(value: Any, most: int, data: bool) -> None:
    """Raise ValueError for the first number or text in a parsed value that is out of bounds."""
    inside: list[tuple[str, Any]] = [("", value)]
    while inside:
        key, found = inside.pop()
        if isinstance(found, dict):
            for name, inner in reversed(found.items()):
                if not data and _HALF.search(name):
                    raise ValueError(f"the name of {_named(f'{key}.{name}'.lstrip('.'))} is not text")
                inside.append((f"{key}.{name}".lstrip("."), inner))
        elif isinstance(found, list):
            inside += [(f"{key}[{index}]", inner) for index, inner in reversed([*enumerate(found)])]
        elif isinstance(found, _TooLong) or (type(found) is int and found.bit_length() > most * 3.33):
            raise ValueError(f"{_named(key)} is a number with too many digits")
        elif isinstance(found, float) and not (data or math.isfinite(found)):
            raise ValueError(f"{_named(key)} is {'not a number' if math.isnan(found) else 'infinite'}")
        elif isinstance(found, str) and not data and _HALF.search(found):
            raise ValueError(f"{_named(key)} is not text: it holds half of a surrogate pair")


def _named(key: str) -> str:
    shown = key if len(key) <= 80 else key[:79] + "…"
    return f"`{shown.encode('utf-8', 'backslashreplace').decode('utf-8')}`" if key else "its value"
