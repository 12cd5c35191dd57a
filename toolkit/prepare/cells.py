"""Names and cells: which are equal, which are empty, and which hold a spreadsheet's leftovers."""

import math
import re
import unicodedata
from datetime import date, time
from decimal import Decimal
from typing import Any

# The usual names of columns, best first; compared by `name_key`.
QUESTIONS = ("question", "input", "prompt", "query", "user")
ANSWERS = ("answer", "output", "response", "completion", "assistant")
INSTRUCTION = "instruction"
CHATS = ("messages", "conversations")

# Zero-width blanks and joiners, directional marks, BOM, soft hyphen: invisible characters in a name.
_INVISIBLE = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufe0e\ufe0f\ufeff]"
)

_WHOLE = re.compile(r"\A(\d+)\.0+\Z")
_CONTROL = re.compile("[\x00-\x08\x0e-\x1b\x7f]")
_HALF = re.compile("[\ud800-\udfff]")

# What programs write where they have no value. `na` is handled separately: Na is sodium.
_NULL_WORD = re.compile(
    r"-?nan|none|null|nil|nat|n\s?/\s?a|n\.\s?a\.|<(?:na|nan|null|none)>|[(\[](?:null|none|blank|empty)[)\]]|undefined|\\n",
    re.I,
)
# Errors of spreadsheets, in whatever language: #REF!, #DIV/0!, #¿NOMBRE?, #ЗНАЧ!, #名前?; and those without a mark.
_SHEET_ERROR = re.compile(r"#[¡¿]?([^\s!?#]{1,20})[!?]")
_BARE_SHEET_ERROR = re.compile(
    r"#(?:N/?A(?: N/A)?|[^\W\d_]/[^\W\d_]|[^\W\d_]{2,12}/0|NV|YOK|GETTING_DATA)|Err:[0-9]{3}|##+"
)
_NO_WORD = re.compile(r"[-‐-―−._…?*/\\~|\s]+")
LONGEST_NULL = 24  # characters


def tidy_name(name: str) -> str:
    """Return a column's name without what cannot be seen: invisible characters, control characters, outer blanks.

    Bytes that are not text become U+FFFD.
    """
    if not (name.isascii() and name.isprintable()):
        name = _CONTROL.sub("", _HALF.sub("\ufffd", _INVISIBLE.sub("", name)))
    return " ".join(name.split())


def name_key(name: str) -> str:
    """Return what makes a name the same: its letters, case and spaces apart."""
    return "".join(tidy_name(name).casefold().split())


def cell_text(value: Any) -> str | None:
    r"""Return a cell as text with `\n` as the line end and without blank ends; None for a list, an object or bytes.

    A list of one text is that text; a list or an object of nothing, NaN and infinity are empty.
    """
    if value == [] or value == {}:
        return ""
    if isinstance(value, list) and len(value) == 1 and not isinstance(value[0], list):
        value = value[0]
    if value is None or (isinstance(value, float | Decimal) and not math.isfinite(value)):
        return ""  # NaN is how data frames write an empty cell, and no answer is a number beyond all
    if isinstance(value, str):
        if "\r" in value:
            value = value.replace("\r\n", "\n").replace("\r", "\n")
        value = value.strip()
        return value if value.isascii() or _INVISIBLE.sub("", value).strip() else ""
    return str(value) if isinstance(value, int | float | Decimal | date | time) else None


def group_name(value: Any) -> str | None:
    """Return the name of a group, one for all ways to write it: `7` and `7.0`, case and blanks apart; else None."""
    text = cell_text(value)
    if text is None:
        return None
    text = _WHOLE.sub(r"\1", text)  # how data frames write numbers beside empty cells
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def joined_text(value: Any) -> str | None:
    """Return a cell of context as text: passages of a list under each other, an object's as `name: text`."""
    if isinstance(value, dict):
        parts = {name: cell_text(part) for name, part in value.items()}
        if None in parts.values():
            return None
        return "\n".join(f"{name}: {text}" for name, text in parts.items() if text)
    if not isinstance(value, list):
        return cell_text(value)
    passages = [cell_text(part) for part in value]
    return None if None in passages else "\n\n".join(text for text in passages if text)


def is_blank(value: Any) -> bool:
    """Say whether a cell holds nothing: blanks, no value, an empty list or object."""
    return value in ([], {}) or cell_text(value) == ""


def is_null_word(text: str) -> bool:
    """Say whether a whole text is only a program's word for no value, a spreadsheet's error, or invisible."""
    if not text.isascii():
        visible = _INVISIBLE.sub("", text).strip()
        if text and not visible:
            return True
        text = visible
    if len(text) > LONGEST_NULL:
        return False
    return (
        _NULL_WORD.fullmatch(text) is not None
        or text in ("NA", "na", "#NA")
        or _NO_WORD.fullmatch(text) is not None
        or _is_sheet_error(text)
    )


def _is_sheet_error(text: str) -> bool:
    """Say whether a text is a spreadsheet's error: capitals, or letters of a script that has none."""
    if any(char.islower() for char in text.removeprefix("Err:")):
        return False
    if _BARE_SHEET_ERROR.fullmatch(text):
        return True
    match = _SHEET_ERROR.fullmatch(text)
    if match is None or not any(map(str.isalpha, match[1])):
        return False
    return len(match[1]) > 1 or not match[1].isupper()
