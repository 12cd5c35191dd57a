"""What a damaged file holds, by another reading than the toolkit's, for fuzz_data.py: is any of it lost?"""

import gzip
import io
import json
import re
import zipfile

from damaged_files import MEMBER, SHEET

from toolkit.prepare.cells import is_blank
from toolkit.prepare.table import Row, Table

_LETTERS = re.compile(r"[^\W_]+")
_INVENTED = re.compile(r"column \d+")  # the name of a column without one
_SEPARATOR = re.compile(rb'\s*"?sep=')  # a line that Excel reads, and no row
_ROW = re.compile(rb"<row(?: [^<>]*)?>(?:(?!</row>).)*?<(?:v|is|f)[ />]", re.DOTALL)  # one with a value


def lost(kind: str, content: bytes, table: Table) -> str:
    """Say what of a file, which was read, is in no row and no column's name; "" if all is.

    Of text in columns that is any letter, of JSON lines and workbooks a row.
    """
    if kind == "csv.gz":
        content = gzip.decompress(content)
    if kind in ("zip", "xlsx"):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            content = archive.read(MEMBER if kind == "zip" else SHEET)
    if kind in ("csv", "tsv", "txt", "csv.gz", "zip") and not _SEPARATOR.match(content):
        read = [*(name for name in table.columns if not _INVENTED.fullmatch(name)), *map(_text, table.rows)]
        there, found = _letters(content.decode("utf-8", "surrogateescape")), _letters("".join(read))
        return "" if there == found else f"{len(there):,} letters and digits, but {len(found):,} in rows, or others"
    if kind in ("jsonl", "chats.jsonl"):
        values = _values(content)
        used = len(values) if kind == "jsonl" else min(len(values), len(table.rows))  # a chat may be rows of messages
        return "" if used == len(table.rows) or not values else f"{len(values):,} lines, but {len(table.rows):,} rows"
    if kind == "xlsx":
        count = len(_ROW.findall(content)) - 1  # the header
        return "" if count == len(table.rows) else f"{count:,} rows in its XML, but {len(table.rows):,} read"
    return ""


def _text(row: Row) -> str:
    return row.text if row.problem else "".join(map(str, row.values.values()))


def _letters(text: str) -> str:
    return "".join(_LETTERS.findall(text))


def _values(content: bytes) -> list[object]:
    """Return what the lines hold; nothing where a line is no JSON alone."""
    try:
        values = [json.loads(line) for line in content.decode("utf-8", "surrogateescape").split("\n") if line.strip()]
    except ValueError:
        return []
    return [value for value in values if not isinstance(value, dict) or not all(map(is_blank, value.values()))]
