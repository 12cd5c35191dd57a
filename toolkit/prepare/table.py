"""What reading a data file gives: named columns and numbered rows."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Row:
    """One row of the source: `number` from 1 without the header, `line` in the file where that means something.

    `values` is empty where `problem` says why the row cannot be used; `text` then shows what was there.
    """

    number: int
    line: int | None
    values: dict[str, Any]
    problem: str = ""
    text: str = ""


@dataclass(frozen=True)
class Table:
    """All rows of a file, its column names in the order of their appearance, and its SHA-256 (hex).

    A name that the file has twice is twice in `columns`; `values` then hold the last cell of that name.
    """

    path: Path
    columns: list[str]
    rows: list[Row]
    sha256: str
