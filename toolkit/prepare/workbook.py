"""From an Excel workbook to rows: each cell as the text that Excel shows. openpyxl reads the file."""

import contextlib
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import repeat
from pathlib import Path
from typing import IO, Any

from toolkit.core import console
from toolkit.core.errors import ToolkitError
from toolkit.formats.names import first_names
from toolkit.prepare.cells import ANSWERS, CHATS, INSTRUCTION, QUESTIONS, is_blank, name_key
from toolkit.prepare.columnar import UNREADABLE
from toolkit.prepare.containers import quoted
from toolkit.prepare.delimited import Cells, named_rows
from toolkit.prepare.merged import TAG, merged_ranges, tags, without_covered
from toolkit.prepare.number_format import shown
from toolkit.prepare.packed import Opened, check_members, open_zip
from toolkit.prepare.table import Row

MOST_ROWS = 1_048_576  # of a sheet, in Excel
SHOWN = 6  # names in one line
_NO_VALUE = "\x00"  # stands for the missing value of a formula, until it is known who wants it
_BOOK = re.compile(r"(?:[^/]*/)?workbook[^/]*\.xml", re.IGNORECASE)  # Excel in a browser numbers it
_OUTDATED = re.compile(TAG + rb"""calcPr\s[^<>]*?\bfullCalcOnLoad\s*=\s*["'](?:1|t)""")  # yet to be calculated
_FORMULA = re.compile(TAG + rb"f[\s/>]")
_ROW = re.compile(TAG + rb"row(\s[^<>]*)?>")
_NUMBER = re.compile(rb"""\sr\s*=\s*["'](\d{1,19})["']""")
_ESCAPED = re.compile("_x([0-9A-Fa-f]{4})_")  # how the file holds a character that XML cannot, such as a CR


def read_workbook(
    opened: Opened, wanted: frozenset[str], sheet: str = "", most: int | None = None
) -> tuple[list[str], Sequence[Row], str, bool]:
    """Return names, rows, the sheet's name where there are several, and whether these are all of its rows.

    A formula is its last value; one without, in a wanted column, is refused with its cell. A row whose wanted cell is
    merged with one above or before it says so. Raises ToolkitError where
    the file is broken, or several sheets could be meant.
    """
    path = opened.path
    with opened.stream() as file, open_zip(file, path) as archive:
        check_members(archive, path)
        outdated = any(_holds(archive.open(part), _OUTDATED) for part in filter(_BOOK.fullmatch, archive.namelist()))
    with _workbook(opened, values=True) as book:
        sheets = {one.title: one for one in book.worksheets}
        if sheet and sheet not in sheets:
            hint = f"its sheets are {first_names(list(sheets), SHOWN)}"
            raise ToolkitError(f"`{path}` has no sheet `{sheet}`", hint=hint)
        name = sheet or _only_sheet(opened, sheets, wanted)
        with contextlib.closing(sheets[name]._get_source()) as stream:
            _check_order(stream, f"{path}#{name}")
        with contextlib.closing(sheets[name]._get_source()) as stream:
            merged = merged_ranges(stream)
        formulas = _holds(sheets[name]._get_source(), _FORMULA)
        # A second time for the formulas alone: opening takes longer than the rows of a small file, and reads all texts.
        again: Any = _workbook(opened, values=False) if formulas else contextlib.nullcontext()
        with again as sources:
            rows_of_sources = _rows(sources[name]) if formulas else repeat(repeat(None))
            cells, whole = _cells(zip(_rows(sheets[name]), rows_of_sources, strict=False), outdated, most, path)
    widest, header = max((len(texts) for _, texts in cells), default=0), len(cells[0][1]) if cells else 0
    for at, (_, texts) in enumerate(cells):  # one far cell makes the header wide, and no other row
        texts += [""] * ((header if at else widest) - len(texts))
    columns, rows = named_rows(cells, "\t")
    rows = without_covered(rows, columns, merged, wanted)
    return columns, _without_missing(rows, cells, columns, wanted, f"{path}#{name}"), name, whole


def _cells(
    pairs: Iterable[tuple[Iterable[Any], Iterable[Any]]], outdated: bool, most: int | None, path: Path
) -> tuple[list[Cells], bool]:
    """Return what the cells show, of rows with their formulas, and whether these are all rows."""
    cells: list[Cells] = []
    for line, (row, of_cells) in enumerate(pairs, start=1):
        if line > MOST_ROWS:
            raise ToolkitError(f"`{path}` has a sheet of more than {MOST_ROWS:,} rows", hint="divide it into files")
        if most is not None and line > most:
            return cells, False
        texts = [_text(*pair, outdated=outdated) for pair in zip(row, of_cells, strict=False)]
        while texts and is_blank(texts[-1]):
            texts.pop()
        if texts:  # a sheet may have a million rows that are formatted and empty
            cells.append((line, texts))
    return cells, True


@contextlib.contextmanager
def _workbook(opened: Opened, *, values: bool) -> Iterator[Any]:
    """Open a workbook with its values, or with its formulas."""
    import openpyxl

    with opened.stream() as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of parts that are not read, such as pictures
        book = None
        try:
            book = openpyxl.load_workbook(file, read_only=True, data_only=values)
            yield book
        except ToolkitError:
            raise
        except Exception as exc:  # what is wrong with a part of the file, in a dozen classes
            raise ToolkitError(
                f"`{opened.path}` is an Excel file that cannot be read: {_brief(exc)}",
                hint="open it in Excel or LibreOffice and save it as .xlsx again, or save its sheet as CSV (UTF-8)",
            ) from None
        finally:
            if book is not None:
                book.close()


def _holds(part: IO[bytes], tag: re.Pattern[bytes]) -> bool:
    """Say whether the XML of a part has such a tag, and close it."""
    with contextlib.closing(part):
        return any(tags(part, tag))


def _check_order(stream: IO[bytes], name: str) -> None:
    """Raise ToolkitError where a row of a sheet's XML stands behind a later one: openpyxl leaves it out in silence."""
    last = 0
    for row in tags(stream, _ROW):
        stated = _NUMBER.search(row[1] or b"")
        number = int(stated[1]) if stated else last + 1
        if number <= last:
            raise ToolkitError(
                f"`{name}` is damaged: its row {number:,} comes after row {last:,}",
                hint="open the file in Excel or LibreOffice and save it as .xlsx again",
            )
        last = number


def _brief(exc: Exception) -> str:
    return f"{type(exc).__name__}: {exc}".splitlines()[0][:200]


def _rows(sheet: Any) -> Iterator[tuple[Any, ...]]:
    sheet.reset_dimensions()  # some programs write wrong ones
    rows: Iterator[tuple[Any, ...]] = sheet.iter_rows()
    return rows


def _only_sheet(opened: Opened, sheets: dict[str, Any], wanted: frozenset[str]) -> str:
    """Return the one sheet with data, or of several the one that names question and answer in its first row."""
    headers: dict[str, list[str]] = {}
    for name, sheet in sheets.items():
        texts = ([_text(cell, None) for cell in row] for row in _rows(sheet))
        header = next((row for row in texts if not all(map(is_blank, row))), [])
        if header and sheet.sheet_state == "visible":
            headers[name] = header
    if not headers:
        raise ToolkitError(
            f"`{opened.path}` has no rows", hint="set `data.source` to a file with questions and answers"
        )
    fitting = [name for name, header in headers.items() if _names_both(header, wanted)] or list(headers)
    if len(fitting) > 1:
        one = quoted(f"data.source={opened.path}#{fitting[0]}")
        both = ", ".join(f'"{opened.path}#{name}"' for name in fitting)
        said = (
            "whose first row names questions or chats" if _names_both(headers[fitting[0]], wanted) else "that hold data"
        )
        raise ToolkitError(
            f"`{opened.path}` has {len(fitting)} sheets {said}: {first_names(fitting, SHOWN)}",
            hint=f"name one with `--set {one}`, or all of them with `--set {quoted(f'data.source=[{both}]')}`",
        )
    if len(sheets) > 1:
        others = first_names([name for name in sheets if name != fitting[0]], SHOWN)
        console.info(f"{opened.path}: the sheet `{fitting[0]}` is read, not {others}")
    return fitting[0]


def _names_both(header: list[str], wanted: frozenset[str]) -> bool:
    """Say whether a first row names question and answer, or chats, as is usual, or two names of the settings."""
    keys = {name_key(name) for name in header}
    usual = not keys.isdisjoint((*QUESTIONS, INSTRUCTION)) and not keys.isdisjoint(ANSWERS)
    return usual or not keys.isdisjoint(CHATS) or len(keys & wanted) > 1


def _text(cell: Any, source: Any, *, outdated: bool = False) -> str:
    """Return what a cell shows; `source` is the same cell with its formula, if it has one."""
    value = cell.value
    # An empty text as a formula's last value has a type of its own; a program that calculates nothing writes 0.
    missing = (value is None and cell.data_type != "str") or (value == 0 and outdated)
    if source is not None and source.data_type == "f" and missing:
        return _NO_VALUE
    if value is None:
        return ""
    text = shown(value, cell.number_format)
    return _ESCAPED.sub(lambda match: chr(int(match[1], 16)), text) if "_x" in text else text


def _without_missing(
    rows: Sequence[Row], cells: list[Cells], columns: list[str], wanted: frozenset[str], name: str
) -> Sequence[Row]:
    """Return the rows with a remark for the values that are missing; raises ToolkitError where one is wanted."""
    from openpyxl.utils import get_column_letter

    missing = [(line, at) for line, row in cells for at, text in enumerate(row) if text == _NO_VALUE]
    if not missing:
        return rows
    lines = {row.line for row in rows}
    used = [(line, at) for line, at in missing if line not in lines or name_key(columns[at]) in wanted]
    if used:
        line, at = used[0]
        more = f", and so do others ({len(used) - 1:,})" if len(used) > 1 else ""
        raise ToolkitError(
            f"`{name}`: the cell {get_column_letter(at + 1)}{line} holds a formula without its value{more}",
            hint="open the file in Excel or LibreOffice, which calculate it, and save it again",
        )
    remarks = {_NO_VALUE: UNREADABLE}
    return [replace(row, values={key: remarks.get(text, text) for key, text in row.values.items()}) for row in rows]
