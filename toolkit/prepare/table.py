"""What reading a data file gives: named columns and numbered rows."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.core.streams import printable


@dataclass(frozen=True)
class Row:
    """One row of the source: `number` from 1 without the header, `line` in the file where that means something.

    `values` is empty where `problem` says why the row cannot be used; `text` then shows what was there. `file` names
    the file where there are several.
    """

    number: int
    line: int | None
    values: dict[str, Any]
    problem: str = ""
    text: str = ""
    file: str = ""


@dataclass(frozen=True)
class Table:
    """All rows of a source, and its column names in the order of their appearance; `part` names a sheet.

    `encoding` is the one that was named for its text. Not `whole` where only its first rows were asked for.
    A name that the file has twice is twice in `columns`; `values` then hold the last cell of that name.
    """

    path: Path
    columns: list[str]
    rows: Sequence[Row]
    part: str = ""
    encoding: str = ""
    whole: bool = True

    @property
    def name(self) -> str:
        """The source as messages and rejected.jsonl name it: a byte that is not UTF-8 is written as `\\xNN`."""
        return printable(f"{self.path}#{self.part}" if self.part else str(self.path))
