"""Merged cells of a sheet: only the first holds the text, so the user must say what the others mean."""

import codecs
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import IO, NamedTuple

from toolkit.prepare.cells import is_blank, name_key
from toolkit.prepare.columns import IDS
from toolkit.prepare.packed import PIECE
from toolkit.prepare.table import Row

MERGED = "merged cells"
TAG = rb"<(?:[^\s<>/:]+:)?"  # how a tag begins, with a namespace's prefix or without
_MERGE = re.compile(TAG + rb"""mergeCell\s[^<>]*?\bref\s*=\s*["']([A-Z]{1,3}\d{1,7}:[A-Z]{1,3}\d{1,7})["']""")
_WIDE = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)  # XML is in UTF-8 or UTF-16


class Range(NamedTuple):
    """A range of merged cells: its name in the file, and its first and last column and row, from 1."""

    name: str
    left: int
    top: int
    right: int
    bottom: int


def merged_ranges(stream: IO[bytes]) -> list[Range]:
    """Return the ranges of merged cells in the XML of a sheet."""
    from openpyxl.utils import range_boundaries

    return [Range(name, *range_boundaries(name)) for name in (tag[1].decode() for tag in tags(stream, _MERGE))]


def tags(stream: IO[bytes], pattern: re.Pattern[bytes]) -> Iterator[re.Match[bytes]]:
    """Yield the tags of some XML that a pattern of UTF-8 matches, a piece of the stream after the other."""
    before, piece = b"", stream.read(PIECE)
    wide = codecs.getincrementaldecoder("utf-16")("replace") if piece.startswith(_WIDE) else None
    while piece:
        text = before + (wide.decode(piece).encode() if wide else piece)
        end = max(0, text.rfind(b"<"))  # which may begin a tag; the last one only closes the whole
        yield from pattern.finditer(text, 0, end)
        before, piece = text[end:], stream.read(PIECE)


def without_covered(
    rows: Sequence[Row], columns: Sequence[str], ranges: Sequence[Range], wanted: frozenset[str]
) -> list[Row]:
    """Return the rows; one is a problem where a wanted cell is covered by a merge, and is not its first cell.

    The row's own id may be covered: the number of the row stands for it.
    """
    if not ranges:
        return list(rows)
    ids = {name_key(name) for name in IDS}
    read = {at: name for at, name in enumerate(columns, 1) if name_key(name) in wanted - ids}
    first = {row.line: row for row in rows}
    of_line: dict[int, list[Range]] = {}
    for one in ranges:
        for line in range(one.top, one.bottom + 1):
            if line in first:
                of_line.setdefault(line, []).append(one)

    def covered(row: Row) -> Iterator[str]:
        from openpyxl.utils import get_column_letter

        for one in of_line.get(row.line or 0, ()):
            for at in range(one.left, one.right + 1):
                if at in read and (at, row.line) != (one.left, one.top) and is_blank(row.values.get(read[at])):
                    cell = f"{get_column_letter(at)}{row.line}"
                    yield f"{cell} is a part of {one.name}, whose text is in {one.name.partition(':')[0]}"

    checked = []
    for row in rows:
        said = "" if row.problem else next(covered(row), "")
        if said:
            text = " | ".join(str(cell) for cell in row.values.values() if not is_blank(cell))
            row = replace(row, values={}, problem=f"{MERGED}: {said}", text=text)
        checked.append(row)
    return checked
