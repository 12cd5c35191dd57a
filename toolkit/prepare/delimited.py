"""From delimited text to rows: CSV and TSV in the dialects that programs write."""

import csv
import io
import re
import sys
from pathlib import Path

from toolkit.core.errors import ToolkitError
from toolkit.prepare.cells import is_blank, name_key, tidy_name
from toolkit.prepare.table import Row

DELIMITERS = (",", ";", "\t", "|")
WRONG_COLUMNS = "wrong number of columns"

# Excel's own first line, which names the delimiter and is not a row.
_SEP = re.compile(r'\s*"?sep=(?P<delimiter>[^\r\n"])"?[ ,;\t]*(?:\r\n|\r|\n|\Z)', re.IGNORECASE)
_DOUBLED = re.compile(r'(?:\A|[\t\r\n])"[^"]*""')  # a quote written twice inside a quoted cell of a TSV

Cells = tuple[int, list[str]]  # the line where a row begins, and its cells


def read_delimited(text: str, path: Path, wanted: frozenset[str]) -> tuple[list[str], list[Row]]:
    """Read text whose first row names the columns; quoted cells may hold anything (RFC 4180).

    `wanted` are keys of column names, by which the delimiter is recognised unless a line `sep=` names it. A row of
    empty cells is not a row. Returns the names and the rows.
    """
    csv.field_size_limit(sys.maxsize)
    named = _SEP.match(text)
    skipped = text[: named.end()].count("\n") if named else 0
    text = text[named.end() :] if named else text
    delimiter = named["delimiter"] if named else max(DELIMITERS, key=lambda mark: _fit_of_header(text, mark, wanted))
    found = _tabbed(text, path, skipped) if delimiter == "\t" else _spaced(text, delimiter, path, skipped)
    return named_rows(_markdown(found) if delimiter == "|" else found, delimiter)


def named_rows(found: list[Cells], delimiter: str) -> tuple[list[str], list[Row]]:
    """Return the names in the first filled row, unnamed columns as `column N`, and the rows below it."""
    filled = ((line, cells) for line, cells in found if not all(map(is_blank, cells)))
    header = [tidy_name(name) for name in next(filled, (0, []))[1]]
    columns = [name or f"column {number}" for number, name in enumerate(header, start=1)]
    needed = max((number for number, name in enumerate(header, start=1) if name), default=0)
    rows = []
    for number, (line, cells) in enumerate(filled, start=1):
        while len(cells) > needed and is_blank(cells[-1]):  # spreadsheets write the empty columns next to a table
            cells.pop()
        if needed <= len(cells) <= len(columns):
            rows.append(Row(number, line, dict(zip(columns, cells, strict=False))))
        else:
            problem = f"{WRONG_COLUMNS}: {len(cells)} instead of {needed}"
            rows.append(Row(number, line, {}, problem, delimiter.join(cells)))
    widest = max((len(row.values) for row in rows), default=0)
    return columns[: max(needed, widest)], rows


def _markdown(rows: list[Cells]) -> list[Cells]:
    """Return rows without what only draws a table: the line under the header, and a bar at both ends."""
    ruled = [cells for _, cells in rows if any(cells) and all(re.fullmatch(" *:?-{2,}:? *|", cell) for cell in cells)]
    if not ruled:
        return rows
    rows = [(line, cells) for line, cells in rows if cells not in ruled]
    barred = all(len(cells) > 2 and is_blank(cells[0]) and is_blank(cells[-1]) for _, cells in rows if any(cells))
    return [(line, cells[1:-1]) for line, cells in rows] if barred else rows


def _spaced(text: str, delimiter: str, path: Path, skipped: int) -> list[Cells]:
    """Read text whose quoted cells may have blanks in front, as in `"q", "a"`; a quote inside other cells is text."""
    if delimiter == " " or not re.search(rf'(?:\A|[\r\n]|{re.escape(delimiter)}) +"', text):
        return _quoted(text, delimiter, path, skipped)
    try:
        plain = _quoted(text, delimiter, path, skipped)
    except ToolkitError:
        return _quoted(text, delimiter, path, skipped, blanks=True)
    opened = [_from_quote(cells) for _, cells in plain]
    opened = [cells for cells in opened if cells]
    closed = sum(_is_closed(delimiter.join(cells), delimiter) for cells in opened)
    filled = [cells for _, cells in plain if not all(map(is_blank, cells))]
    if not opened or (not closed and all(len(cells) == len(filled[0]) for cells in filled)):
        return plain
    try:
        return _quoted(text, delimiter, path, skipped, blanks=True)
    except ToolkitError:
        if closed * 2 >= len(opened):
            raise
        return plain


def _from_quote(cells: list[str]) -> list[str]:
    """Return a row's cells from the first that begins with blanks and a quote."""
    first = next((at for at, cell in enumerate(cells) if re.match(' +"', cell)), len(cells))
    return cells[first:]


def _is_closed(text: str, delimiter: str) -> bool:
    """Say whether the end of a row is whole when its quotes are those of cells."""
    try:
        list(csv.reader([text], delimiter=delimiter, skipinitialspace=True, strict=True))
    except csv.Error:
        return False
    return True


def _quoted(text: str, delimiter: str, path: Path, skipped: int, blanks: bool = False) -> list[Cells]:
    # Strict: a quote that is never closed would otherwise silently swallow all rows after it.
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=blanks, strict=True)
    rows: list[Cells] = []
    start = skipped + 1
    try:
        for cells in reader:
            rows.append((start, cells))
            start = skipped + reader.line_num + 1
    except csv.Error as exc:
        if "unexpected end" in str(exc):
            raise ToolkitError(
                f"`{path}` is truncated: the quoted cell of the row at line {start:,} is never closed",
                hint="copy or export the file again; a quote inside a quoted cell is written twice",
            ) from None
        raise ToolkitError(
            f"`{path}` line {skipped + reader.line_num:,} is not valid CSV: {exc}",
            hint='a quote inside a quoted cell is written twice: `"She said ""rest""."`, not `\\"rest\\"`',
        ) from None
    return rows


def _tabbed(text: str, path: Path, skipped: int) -> list[Cells]:
    """Read tab-separated text, in which a quote is text unless the file quotes its cells.

    It does where it doubles a quote inside one, quotes each name of the header, or has rows of an odd number of
    cells that quoted cells would explain.
    """
    if '"' not in text:
        return _quoted(text, "\t", path, skipped)
    plain = [(line, row.split("\t")) for line, row in enumerate(re.split(r"\r\n|\r|\n", text), start=skipped + 1)]
    header = next((cells for _, cells in plain if not all(map(is_blank, cells))), [])
    names_quoted = any(header) and all(re.fullmatch(r'\s*"[^"]*"\s*', name) for name in header if name)
    whole = all(len(cells) == len(header) for _, cells in plain if not all(map(is_blank, cells)))
    doubled = _DOUBLED.search(text) is not None
    if whole and not names_quoted and not doubled:
        return plain
    try:
        found = _quoted(text, "\t", path, skipped)
    except ToolkitError:
        if doubled or names_quoted:
            raise
        return plain
    swallowed = any(_holds_rows(cell, len(header)) for _, cells in found for cell in cells)
    return plain if swallowed and not doubled and not names_quoted else found


def _holds_rows(cell: str, width: int) -> bool:
    """Say whether a cell of several lines contains rows: two stray quotes are not a cell."""
    return any(line.count("\t") == width - 1 for line in re.split(r"\r\n|\r|\n", cell)[1:])


def _fit_of_header(text: str, delimiter: str, wanted: frozenset[str]) -> tuple[int, int]:
    """Rate a delimiter by the header it gives: names that are known, then the number of columns."""
    sample = io.StringIO(text[:65536], newline="")
    try:
        rows = csv.reader(sample, delimiter=delimiter, skipinitialspace=True)
        header = next((row for row in rows if not all(map(is_blank, row))), [])
    except csv.Error:
        return (0, 0)
    return (sum(name_key(name) in wanted for name in header), len(header))
