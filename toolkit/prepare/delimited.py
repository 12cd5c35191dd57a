"""From delimited text to rows: CSV and TSV in the dialects that programs write."""

import csv
import io
import re
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

from toolkit.core.errors import ToolkitError
from toolkit.core.spool import Spool
from toolkit.prepare.cells import is_blank, name_key, tidy_name
from toolkit.prepare.decoding import Text
from toolkit.prepare.table import Row

DELIMITERS = (",", ";", "\t", "|")
WRONG_COLUMNS = "wrong number of columns"

# Excel's own first line, which names the delimiter and is not a row.
_SEP = re.compile(r'\s*"?sep=(?P<delimiter>[^\r\n"])"?[ ,;\t]*(?:\r\n|\r|\n|\Z)', re.IGNORECASE)

Cells = tuple[int, list[str]]  # the line where a row begins, and its cells
Reading = Callable[[], Iterator[Cells]]  # of a whole text, which may be too large to be kept


def read_delimited(text: Text, path: Path, wanted: frozenset[str]) -> tuple[list[str], Sequence[Row]]:
    """Read text whose first row names the columns; quoted cells may hold anything (RFC 4180).

    `wanted` are keys of column names, by which the delimiter is recognised unless a line `sep=` names it. A row of
    empty cells is not a row. Returns the names and the rows.
    """
    csv.field_size_limit(sys.maxsize)
    start = text.start()
    named = _SEP.match(start)
    skipped = start[: named.end()].count("\n") if named else 0
    text, start = (text.without(named.end()), start[named.end() :]) if named else (text, start)
    delimiter = named["delimiter"] if named else max(DELIMITERS, key=lambda mark: _fit_of_header(start, mark, wanted))
    plain = partial(_quoted, text, delimiter, path, skipped)
    found = _tabbed(text, plain, skipped) if delimiter == "\t" else _spaced(text, delimiter, plain)
    return named_rows(_markdown(found) if delimiter == "|" else found(), delimiter)


def named_rows(found: Iterable[Cells], delimiter: str) -> tuple[list[str], Sequence[Row]]:
    """Return the names in the first filled row, unnamed columns as `column N`, and the rows below it."""
    filled = ((line, cells) for line, cells in found if not all(map(is_blank, cells)))
    header = [tidy_name(name) for name in next(filled, (0, []))[1]]
    columns = [name or f"column {number}" for number, name in enumerate(header, start=1)]
    needed = max((number for number, name in enumerate(header, start=1) if name), default=0)
    rows = Spool[Row]()
    widest = needed
    for number, (line, cells) in enumerate(filled, start=1):
        while len(cells) > needed and is_blank(cells[-1]):  # spreadsheets write the empty columns next to a table
            cells.pop()
        if needed <= len(cells) <= len(columns):
            widest = max(widest, len(cells))
            rows.append(Row(number, line, dict(zip(columns, cells, strict=False))))
        else:
            problem = f"{WRONG_COLUMNS}: {len(cells)} instead of {needed}"
            rows.append(Row(number, line, {}, problem, delimiter.join(cells)))
    return columns[:widest], rows


def _markdown(found: Reading) -> Iterator[Cells]:
    """Return rows without what only draws a table: the line under the header, and a bar at both ends."""

    def is_rule(cells: list[str]) -> bool:
        return any(cells) and all(re.fullmatch(" *:?-{2,}:? *|", cell) for cell in cells)

    ruled = any(is_rule(cells) for _, cells in found())
    barred = ruled and all(
        len(cells) > 2 and is_blank(cells[0]) and is_blank(cells[-1])
        for _, cells in found()
        if any(cells) and not is_rule(cells)
    )
    return ((line, cells[1:-1] if barred else cells) for line, cells in found() if not is_rule(cells))


def _spaced(text: Text, delimiter: str, plain: "partial[Iterator[Cells]]") -> Reading:
    """Read text whose quoted cells may have blanks in front, as in `"q", "a"`; a quote inside other cells is text."""
    begins = re.compile(rf'(?:\A|{re.escape(delimiter)}) +"')
    if delimiter == " " or not any(map(begins.search, text.lines())):
        return plain
    spaced = partial(plain, blanks=True)
    opened = closed = 0
    widths = set()
    try:
        for _, cells in plain():
            if not all(map(is_blank, cells)):
                widths.add(len(cells))
            if quoted := _from_quote(cells):
                opened += 1
                closed += _is_closed(delimiter.join(quoted), delimiter)
    except ToolkitError:
        return spaced
    if not opened or (not closed and len(widths) < 2):
        return plain
    return plain if closed * 2 < opened and _is_refused(spaced) else spaced


def _is_refused(reading: Reading) -> bool:
    try:
        deque(reading(), maxlen=0)
    except ToolkitError:
        return True
    return False


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


def _quoted(text: Text, delimiter: str, path: Path, skipped: int, blanks: bool = False) -> Iterator[Cells]:
    # Strict: a quote that is never closed would otherwise silently swallow all rows after it.
    reader = csv.reader(text.lines(), delimiter=delimiter, skipinitialspace=blanks, strict=True)
    start = skipped + 1
    try:
        for cells in reader:
            yield start, cells
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


def _tabbed(text: Text, quoted: Reading, skipped: int) -> Reading:
    """Read tab-separated text, in which a quote is text unless the file quotes its cells.

    It does where it doubles a quote inside one, quotes each name of the header, or has rows of an odd number of
    cells that quoted cells would explain.
    """
    if not any('"' in line for line in text.lines()):
        return quoted

    def plain() -> Iterator[Cells]:
        for number, line in enumerate(text.lines(), start=skipped + 1):
            yield number, line.rstrip("\r\n").split("\t")

    filled = (cells for _, cells in plain() if not all(map(is_blank, cells)))
    header = next(filled, [])
    names_quoted = any(header) and all(re.fullmatch(r'\s*"[^"]*"\s*', name) for name in header if name)
    if names_quoted or _doubles_quotes(text.lines()):
        return quoted
    if all(len(cells) == len(header) for cells in filled) or _is_refused(quoted):
        return plain
    return plain if any(_holds_rows(cell, len(header)) for _, cells in quoted() for cell in cells) else quoted


def _doubles_quotes(lines: Iterable[str]) -> bool:
    """Say whether a quote is written twice inside a quoted cell of a TSV."""
    inside = False  # a cell that began with a quote
    for line in lines:
        for match in re.finditer('"', line):
            if inside and line.startswith('"', match.end()):
                return True
            inside = line[: match.start()][-1:] in ("", "\t")
    return False


def _holds_rows(cell: str, width: int) -> bool:
    """Say whether a cell of several lines contains rows: two stray quotes are not a cell."""
    return any(line.count("\t") == width - 1 for line in re.split(r"\r\n|\r|\n", cell)[1:])


def _fit_of_header(start: str, delimiter: str, wanted: frozenset[str]) -> tuple[int, int]:
    """Rate a delimiter by the header it gives: names that are known, then the number of columns."""
    try:
        rows = csv.reader(io.StringIO(start, newline=""), delimiter=delimiter, skipinitialspace=True)
        header = next((row for row in rows if not all(map(is_blank, row))), [])
    except csv.Error:
        return (0, 0)
    return (sum(name_key(name) in wanted for name in header), len(header))
